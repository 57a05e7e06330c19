"""Labelled collections: documents, queries and which document answers which query."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_index_refine.lines import read_lines


@dataclass(frozen=True)
class Document:
    """One document of a collection. A query with a group searches the documents that carry it."""

    id: str
    text: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """One query.

    :param group: search only documents that carry this group, as a metadata filter; None searches all.
    :param exclude: a document that must not be found, such as the query's own text where queries are documents.
    """

    id: str
    text: str
    group: str | None = None
    exclude: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A collection with human labels.

    :param qrels: query id to document id to label; a label above 0 is relevant, pairs without one are not.
    :param vectors: name of an embedding model to an `.npz` file with its `corpus` and `queries`, row by row.
    :param changed: for data with changed instructions (FollowIR), the query's stem to the documents whose label
        the change took away; its queries are called stem-og and stem-changed.
    :raises ValueError: no documents, or no query with a relevant document.
    """

    name: str
    documents: Sequence[Document]
    queries: Sequence[Query]
    qrels: Mapping[str, Mapping[str, float]]
    vectors: Mapping[str, Path] = field(default_factory=dict)
    changed: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.documents:
            raise ValueError(f"{self.name}: the corpus has no documents")
        if not self.answerable():
            raise ValueError(f"{self.name}: no query has a relevant document; do the ids in the qrels match?")

    def answerable(self) -> list[int]:
        """Rows of the queries with at least one relevant document in the corpus."""
        return [row for row, query in enumerate(self.queries) if self.relevant(query)]

    def relevant(self, query: Query) -> set[int]:
        """Rows of the documents that are relevant to a query, among those it searches."""
        found = (self.rows.get(document, -1) for document, label in self.qrels.get(query.id, {}).items() if label > 0)
        return {row for row in found if row >= 0 and _searches(query, self.documents[row])}

    @cached_property
    def digest(self) -> str:
        """Names what is measured: documents, queries and labels, whatever the data set is called."""
        parts = [map(asdict, self.documents), map(asdict, self.queries), [self.qrels, self.changed]]
        found = hashlib.sha256()
        for part in parts:
            for row in part:
                found.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        return found.hexdigest()

    @cached_property
    def rows(self) -> dict[str, int]:
        """Document id to row."""
        return {document.id: row for row, document in enumerate(self.documents)}

    @cached_property
    def _groups(self) -> dict[str, NDArray[np.intp]]:
        rows: dict[str, list[int]] = {}
        for row, document in enumerate(self.documents):
            for group in document.groups:
                rows.setdefault(group, []).append(row)
        return {group: np.array(members, dtype=np.intp) for group, members in rows.items()}

    def sample(self, max_queries: int | None, seed: int = 1) -> list[int]:
        """Rows of the queries to measure, drawn without replacement; the same for the same seed.

        :param max_queries: how many at most, None for all. Both halves of a changed instruction stay together.
        """
        rows = self.answerable()
        if max_queries is None or len(rows) <= max_queries:
            return rows
        if self.changed:
            stems = sorted({self.queries[row].id.rsplit("-", 1)[0] for row in rows})
            count = max(1, max_queries // 2)
            kept = {stems[i] for i in np.random.default_rng(seed).choice(len(stems), count, replace=False)}
            return [row for row in rows if self.queries[row].id.rsplit("-", 1)[0] in kept]
        return [rows[i] for i in np.random.default_rng(seed).choice(len(rows), max_queries, replace=False)]

    def pool(self, query: Query) -> NDArray[np.intp]:
        """Rows of the documents this query searches."""
        rows = np.arange(len(self.documents))
        if query.group is not None:
            rows = self._groups.get(query.group, rows[:0])
        if query.exclude is not None and query.exclude in self.rows:
            rows = rows[rows != self.rows[query.exclude]]
        return rows


def _searches(query: Query, document: Document) -> bool:
    return document.id != query.exclude and (query.group is None or query.group in document.groups)


def load_folder(folder: Path, split: str = "test") -> Dataset:
    """Read a data set in BEIR's form.

    :param folder: has `corpus.jsonl` (`_id`, `text`, optionally `title` and `group`), `queries.jsonl` (`_id`, `text`,
        optionally `group`), and `qrels/SPLIT.tsv` or `qrels.tsv`, with or without a header, or with spaces as
        TREC has them. `group` is a string or a list of strings. Any `NAME.npz` with `corpus` and `queries` holds their
        vectors under the embedding model NAME. Files may begin with a byte order mark, also that of UTF-16.
    :param split: which file of `qrels/`; ignored where there is only one.
    :return: the data set, named after its folder. A query with the id of a document is taken for that document, and
        does not find it, as BEIR and MTEB measure, unless it is labelled as relevant to itself.
    :raises FileNotFoundError: a file is missing; the message says which.
    :raises ValueError: a line cannot be read; the message says which file and line.
    """
    documents = [
        Document(_text_of(row, "_id", where), _titled(row, where), _groups(row))
        for where, row in _read_jsonl(folder / "corpus.jsonl")
    ]
    queries = [
        Query(_text_of(row, "_id", where), _text_of(row, "text", where), next(iter(_groups(row)), None))
        for where, row in _read_jsonl(folder / "queries.jsonl")
    ]
    qrels = _read_qrels(_qrels_file(folder, split))
    vectors = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    return Dataset(folder.resolve().name, documents, _without_themselves(queries, documents, qrels), qrels, vectors)


def _without_themselves(
    queries: Sequence[Query], documents: Sequence[Document], qrels: Mapping[str, Mapping[str, float]]
) -> list[Query]:
    ids = {document.id for document in documents}
    return [
        replace(query, exclude=query.id) if query.id in ids and qrels.get(query.id, {}).get(query.id, 0) <= 0 else query
        for query in queries
    ]


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a folder in BEIR's form has corpus.jsonl, queries.jsonl and qrels")
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} must be a JSON object with _id and text")
        yield where, row


def _text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    if row.get(key) is None:
        raise ValueError(f"{where} has no {key!r}")
    return str(row[key])


def _titled(row: Mapping[str, Any], where: str) -> str:
    return f"{row.get('title') or ''} {_text_of(row, 'text', where)}".strip()


def _groups(row: Mapping[str, Any]) -> tuple[str, ...]:
    group = row.get("group")
    if group is None:
        return ()
    return tuple(map(str, group)) if isinstance(group, list) else (str(group),)


def _qrels_file(folder: Path, split: str) -> Path:
    found = sorted((folder / "qrels").glob("*.tsv"))
    if (folder / "qrels.tsv").is_file():
        return folder / "qrels.tsv"
    if len(found) == 1:
        return found[0]
    for path in found:
        if path.stem == split:
            return path
    raise FileNotFoundError(f"{folder} has neither qrels.tsv nor qrels/{split}.tsv; it has {[p.name for p in found]}")


def _read_qrels(path: Path) -> dict[str, dict[str, float]]:
    qrels: dict[str, dict[str, float]] = {}
    for number, line in read_lines(path):
        row = [cell.strip() for cell in line.rstrip().split("\t")]
        if len(row) == 1 and len(row[0].split()) == 4:
            # As TREC's tools write them.
            row = row[0].split()
        if row == [""] or (number == 1 and not _is_number(row[-1])):
            continue
        if len(row) not in (3, 4) or not _is_number(row[-1]):
            raise ValueError(
                f"{path}, line {number} must be query-id, corpus-id, score, with tabs between them; got {row}"
            )
        query, document = row[0], row[-2]
        qrels.setdefault(query, {})[document] = float(row[-1])
    return qrels


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
