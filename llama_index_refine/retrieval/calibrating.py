"""What people have judged, read from wherever it is, and graded by the teacher."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.schema import MetadataMode, QueryBundle

from llama_index_refine.calibration import Calibration, Label
from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import GraderError
from llama_index_refine.ids import same_id, same_text
from llama_index_refine.lines import as_meant, read_lines
from llama_index_refine.memory.export import texts_in
from llama_index_refine.memory.memory import RefinementMemory
from llama_index_refine.memory.remembered import opinions
from llama_index_refine.qdrant.points import points_of
from llama_index_refine.retrieval.grading import Sheet
from llama_index_refine.retrieval.pipeline import Pipeline
from llama_index_refine.retrieval.remembering import Remembering
from llama_index_refine.scheduling import gather, perform

logger = logging.getLogger(__name__)

# Labels, or (query, node id, relevant or not); a memory; or a file.
Judgements = Iterable["Label | tuple[str, str, bool]"] | RefinementMemory | str | Path

# Queries on their way at a time.
QUERIES = 32
_WORDS = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "y"), True),
    **dict.fromkeys(("0", "0.0", "false", "no", "n"), False),
}


@dataclass(frozen=True)
class Graded:
    """One query's labels, and what the teacher gave them; None for nothing.

    :param missing: how many of its nodes are not in the collection, or outside the filter.
    """

    labels: Sequence[Label]
    grades: Sequence[float | None]
    missing: int = 0


async def calibrated(pipeline: Pipeline, judgements: Judgements) -> Calibration:
    """Have the teacher grade what people have judged, many queries at a time.

    :param pipeline: the collection and the teacher.
    :param judgements: labels, a memory or a file.
    :return: how far its grades are theirs.
    :raises ValueError: no label, or one that is none; people's judgements are the teacher's own.
    :raises OSError: the file cannot be read.
    """
    labels, said = await read_judgements(judgements, pipeline)
    graded: list[Graded] = []
    for batch in by_query(labels):
        graded += [outcome.get() for outcome in await gather("calibrate", [grade(pipeline, one) for one in batch])]
    return calibration_of(pipeline.grading.grader.memory_fingerprint(), graded, said)


async def read_judgements(given: Judgements, pipeline: Pipeline) -> tuple[list[Label], list[str]]:
    """Read what people have judged, each node of a query once.

    :param given: labels, a memory or a file.
    :param pipeline: whose collection and teacher a memory's judgements have to be of.
    :return: the labels, and what is wrong with those that were left out.
    :raises ValueError: no label, or what is none; the message says where.
    :raises OSError: the file cannot be read.
    """
    notes: list[str] = []
    if isinstance(given, RefinementMemory):
        top_k = pipeline.feedback_top_k
        memory = Remembering(given, pipeline.collection, pipeline.grading.grader, pipeline.embedding, top_k)
        queries = await memory.judgements()
        there = await texts_in(pipeline.collection.store, queries, MetadataMode.NONE)
        said = [
            (query.query_str, node_id, opinion)
            for query in queries
            for node_id, opinion in opinions(query.grades).items()
            if opinion.people
        ]
        found = [(query, node, one.grade) for query, node, one in said if (node, one.content) in there]
        if lost := len(said) - len(found):
            notes.append(f"{lost} of the nodes that people have judged are gone, or have changed since")
        # Where as many say yes as no, both are kept, and told of as a contradiction.
        labels = [Label(query, node, grade > 0.5) for query, node, grade in found]
        labels += [Label(query, node, True) for query, node, grade in found if grade == 0.5]
    elif isinstance(given, (str, Path)):
        labels = list(read_file(Path(given)))
    else:
        labels = [_label(one) for one in given]
    if not labels:
        raise ValueError(
            "judgements hold no label: give (query, node id, relevant or not), a memory in which people have judged "
            "this collection, or a file whose column relevant is filled in"
        )
    kept, said_again = each_once(labels)
    return kept, [*notes, *said_again]


def read_file(path: Path, name: str = "judgements") -> Iterator[Label]:
    """Read labels from a file, JSONL or CSV by its name, with query, id, relevant and perhaps weight.

    :param path: the file; rows whose `relevant` is empty are not filled in yet.
    :param name: what the file is called in errors.
    :return: the labels.
    :raises ValueError: another name, or a row that is no label; the message says which line.
    """
    if path.suffix == ".jsonl":
        rows: Iterator[tuple[int, Any]] = (
            (number, _parsed(line, f"{name} {path}, line {number}"))
            for number, line in read_lines(path, name)
            if line.strip()
        )
    elif path.suffix == ".csv":
        table = csv.DictReader(f"{line}\n" for _, line in read_lines(path, name))
        rows = ((table.line_num, {key: as_meant(cell) for key, cell in row.items()}) for row in table)
    else:
        raise ValueError(f"{name} {path} must be named .jsonl or .csv")
    for number, row in rows:
        where = f"{name} {path}, line {number}"
        if not isinstance(row, Mapping) or not all(row.get(key) for key in ("query", "id")) or "relevant" not in row:
            raise ValueError(f"{where} must have query, id and relevant")
        said = row["relevant"]
        if said is None or not str(said).strip():
            continue
        relevant = _WORDS.get(str(said).strip().lower())
        if relevant is None:
            raise ValueError(f"{where}: relevant must be 1 or 0, or empty for not judged yet; got {str(said)[:40]!r}")
        yield Label(str(row["query"]), str(row["id"]), relevant, _weight(row.get("weight"), where))


async def grade(pipeline: Pipeline, labels: Sequence[Label]) -> Graded:
    """Have the teacher grade what people have judged for a query.

    :param pipeline: the collection and the teacher.
    :param labels: of one query.
    :return: the grades.
    :raises ValueError: people's judgements are the teacher's own.
    """
    query, grader = QueryBundle(labels[0].query), pipeline.grading.grader
    own = {same_id(node_id) for node_id in grader.judged(query)}
    if grader.trusted or any(label.node_id in own for label in labels):
        raise ValueError("grader answers by what people have judged: calibrate the teacher behind it by itself")
    asked = await pipeline.asked(query)
    points = [point for label in labels for point in points_of(label.node_id)]
    found = await pipeline.collection.those(asked, points)
    given: dict[str, float | None] = {}
    if found.nodes:
        try:
            grades = await perform("grade", pipeline.grading, Sheet(query, found.nodes, Account()))
            given = {same_id(node.node_id): grade for node, grade in zip(found.nodes, grades, strict=True)}
        except Exception as error:
            if isinstance(error, GraderError) or pipeline.on_error == "raise":
                raise
            logger.warning("Going on without the grades of a query: %s: %s", type(error).__name__, error)
    there = {same_id(node.node_id) for node in found.nodes}
    return Graded(
        labels, [given.get(label.node_id) for label in labels], sum(label.node_id not in there for label in labels)
    )


def by_query(labels: Sequence[Label]) -> list[list[list[Label]]]:
    """Put the labels of each query together, so many queries at a time."""
    found: dict[str, list[Label]] = {}
    for label in labels:
        found.setdefault(label.query, []).append(label)
    each = list(found.values())
    return [each[start : start + QUERIES] for start in range(0, len(each), QUERIES)]


def calibration_of(teacher: str, graded: Sequence[Graded], said: Sequence[str]) -> Calibration:
    """Put together what the teacher gave.

    :param teacher: its fingerprint.
    :param graded: its grades, query by query.
    :param said: what is wrong with labels that were left out.
    :raises ValueError: nothing was graded.
    """
    pairs = [pair for one in graded for pair in zip(one.labels, one.grades, strict=True)]
    kept = [(label, value) for label, value in pairs if value is not None]
    missing = sum(one.missing for one in graded)
    notes = [*said]
    if missing:
        notes.append(f"{missing} of the nodes that were judged are gone, or outside the filter")
    if ungraded := len(pairs) - len(kept) - missing:
        notes.append(f"{ungraded} of the nodes that were judged got no grade; call calibrate again for them")
    if not kept:
        raise ValueError(f"judgements cannot be compared, as the teacher graded none of them: {'; '.join(notes)}")
    return Calibration(teacher, [label for label, _ in kept], np.array([value for _, value in kept]), tuple(notes))


def each_once(labels: Sequence[Label]) -> tuple[list[Label], list[str]]:
    """Leave out what is said twice, and what is said to be both."""
    first: dict[tuple[str, str], Label] = {}
    against: set[tuple[str, str]] = set()
    for label in labels:
        key = same_text(label.query), same_id(label.node_id)
        kept = first.setdefault(key, Label(label.query, key[1], label.relevant, label.weight))
        against.update([key] if kept.relevant != label.relevant else [])
    said = len(labels) - len(first)
    notes = [f"{len(against)} nodes are called relevant and not relevant; they are left out"] if against else []
    notes += [f"{said} labels say again what another says, and count once"] if said > len(against) else []
    kept_ones = [label for key, label in first.items() if key not in against]
    if not kept_ones:
        raise ValueError("judgements contradict each other, all of them: no label is left")
    return kept_ones, notes


def _label(one: Any) -> Label:
    if isinstance(one, Label):
        return one
    try:
        query, node_id, relevant = one
    except (TypeError, ValueError):
        query = node_id = relevant = None
    if not isinstance(query, str) or not isinstance(node_id, str) or relevant not in (True, False):
        raise ValueError(f"judgements must be (query, node id, relevant or not), with True or False; got {one!r}")
    return Label(query, node_id, bool(relevant))


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _weight(given: Any, where: str) -> float:
    try:
        value = 1.0 if given is None or given == "" else float(given)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ValueError(f"{where}: weight must be above 0, or empty; got {str(given)[:40]!r}")
    return value
