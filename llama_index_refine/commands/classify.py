"""The command `classify`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import CollectionOptions, OutFile, takes
from llama_index_refine.commands.progress import progress_on
from llama_index_refine.commands.rows import Rows, differences, digest_of
from llama_index_refine.commands.teacher import LLMOptions
from llama_index_refine.lines import read_lines

if TYPE_CHECKING:
    from llama_index.core.schema import BaseNode
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from llama_index_refine.classifier import RefinedClassifier
    from llama_index_refine.qdrant.points import NodeReader
    from llama_index_refine.retriever import RefinedRetriever

    Items = Iterator[tuple[str, BaseNode]]

COLUMNS = ("id", "label", "probability", "text")
BATCH = 256


@takes(CollectionOptions, LLMOptions)
def classify(
    collection: CollectionOptions,
    llm: LLMOptions,
    labels: Annotated[
        Path,
        typer.Option(
            help="The labels: a JSON object of names and definitions, or names, one a line.", show_default=False
        ),
    ],
    out: OutFile,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Texts to classify, one a line, or the column text of a .csv file.",
            show_default="the collection's documents",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="File of the classifier. It is read if it exists, and written otherwise.", show_default="beside --out"
        ),
    ] = None,
    none_of_these: Annotated[bool, typer.Option(help="Leave the label empty if none fits.")] = False,
) -> None:
    """Give your documents, or other texts, the label that fits best; each label is refined over your collection."""
    console = Console(highlight=False)
    with plain_errors() as warned:
        from llama_index_refine.classifying.labels import read_labels

        wanted = read_labels(read_labels_file(labels))
        grader = llm.grader(collection.instruction)
        run = {**collection.run(llm, grader), "--labels": wanted}
        kept = Kept(model or out.with_name(out.name + ".safetensors"))
        # A classifier that is named, and no LLM beside it, is taken as it is.
        kept.check(run if llm.given or model is None else {"--labels": wanted}, out)
        given = {"--texts": texts and str(texts.resolve()), "--none-of-these": none_of_these}
        rows = Rows(out, COLUMNS, {**run, **given, kept.name: kept.digest})
        grader = grader or (None if kept.path.exists() else llm.needed_grader())
        with collection.opened(grader) as (retriever, client), progress_on(console) as bars:
            classifier = kept.classifier(retriever, wanted, run).set_params(none_of_these=none_of_these)
            rows.run[kept.name] = kept.digest
            store = retriever.vector_store
            total, items = read_texts(texts) if texts is not None else _documents(client, store)
            bar = bars.add_task("Classifying", total=total)
            finished = Finished.of(rows)
            for batch, left in finished.batches(items, partial(bars.advance, bar)):
                # The whole batch, as it would be undisturbed: what stands beside a row moves its last bits.
                found = [row for row in _rows(classifier, batch) if row["id"] in left]
                rows.add(found, {row["id"]: digest_of(row["text"]) for row in found})
        written = sum(map(len, rows.done))
        finished.check(rows, "--texts" if texts is not None else "the collection")
        console.print(f"{written} rows in {out}; the classifier is in {kept.path}", soft_wrap=True, markup=False)
        tell(console, warned)


@dataclass
class Kept:
    """The file of the classifier, which says in its header what it was taught with.

    :param path: the file, which may not be there yet.
    """

    path: Path

    @property
    def name(self) -> str:
        """What it is called where runs are compared."""
        return f"the classifier {self.path.name}"

    @property
    def digest(self) -> str | None:
        """What tells it from another one, None where it is not there."""
        return digest_of(self.path.read_bytes()) if self.path.exists() else None

    def check(self, run: dict[str, Any], out: Path) -> None:
        """See that the classifier, where it is there, is the one that would be taught.

        :param run: what it would be taught with.
        :param out: the rows, which are of this classifier.
        :raises ValueError: it is another one.
        """
        if not self.path.exists():
            return
        from llama_index_refine import storage

        _, facts = storage.read(self.path, "RefinedClassifier")
        begun = {**facts.get("run", {}), "--labels": {one["name"]: one["text"] for one in facts["labels"]}}
        if different := differences({name: begun.get(name, value) for name, value in run.items()}, run):
            there = [str(file) for file in (self.path, out, out.with_name(out.name + ".run")) if file.exists()]
            raise ValueError(
                f"{self.name} was trained with other options: {different}. Give those again, or remove "
                f"{' and '.join(there)} to start again"
            )

    def classifier(self, retriever: RefinedRetriever, labels: dict[str, str], run: dict[str, Any]) -> RefinedClassifier:
        """Load the classifier, or teach it and keep it.

        :param retriever: the collection and the teacher.
        :param labels: names and what is searched for.
        :param run: what it is taught with.
        :return: the classifier.
        :raises RuntimeError: a label could not be refined; nothing is kept.
        """
        from llama_index_refine import storage
        from llama_index_refine.classifier import RefinedClassifier
        from llama_index_refine.commands.embedding import embed_query
        from llama_index_refine.evaluation.corpus import same_samples

        if not self.path.exists():
            # What is wrong with the embedding model is said in a line.
            embed_query(retriever.embed_model, "test")
            with same_samples():
                taught = RefinedClassifier(retriever).fit(labels)
            tensors, facts = taught.memory_.to_file()
            storage.write(self.path, "RefinedClassifier", tensors, {**facts, "none_of_these": False, "run": run})
        return RefinedClassifier.load(self.path, retriever)


@dataclass
class Finished:
    """What has a row already, by id, and whether it is still what the row was made of.

    :param rows: the digest of each row's text, by id.
    """

    rows: dict[str, str]
    seen: set[str] = field(default_factory=set)
    changed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Rows) -> Finished:
        """Read what is written. :param rows: the rows, each noted with the digest of its text."""
        return cls({key: text for note in rows.done for key, text in note.items()})

    def batches(
        self, items: Items, advance: Callable[[int], None]
    ) -> Iterator[tuple[list[tuple[str, BaseNode]], set[str]]]:
        """Go through what is to have a row.

        :param items: all of it, by id.
        :param advance: called with the number of those that are done.
        :return: batches in which something has no row yet, and the ids of that.
        """
        while batch := list(islice(items, BATCH)):
            if left := {name for name, node in batch if self.lacks(name, node)}:
                yield batch, left
            advance(len(batch))

    def lacks(self, key: str, node: BaseNode) -> bool:
        """Say whether something has no row yet.

        :param key: its id.
        :param node: its text.
        """
        if key not in self.rows:
            return True
        self.seen.add(key)
        if self.rows[key] != digest_of(node.get_content()):
            self.changed.append(key)
        return False

    def check(self, rows: Rows, source: str) -> None:
        """See that all that has a row was there.

        :param rows: the rows.
        :param source: where what has a row comes from.
        :raises ValueError: something has changed, or is gone, since its row was written.
        """
        if stale := [*self.changed, *(key for key in self.rows if key not in self.seen)]:
            some = ", ".join(stale[:5]) + (" ..." if len(stale) > 5 else "")
            raise ValueError(
                f"{source} has changed since the rows were written: {len(stale)} of them are about texts that are "
                f"gone (id {some}): {rows.start_anew()}"
            )


def read_labels_file(path: Path) -> list[str] | dict[str, str]:
    """Read --labels.

    :param path: a JSON object or list, or names one a line.
    :return: what `RefinedClassifier.fit` takes.
    :raises ValueError: the file is not there, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"--labels {path} is not a file")
    lines = [line for _, line in read_lines(path, "--labels")]
    if path.suffix != ".json":
        return [line.strip() for line in lines if line.strip()]
    try:
        found = json.loads("\n".join(lines), object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        raise ValueError(f"--labels {path} is not JSON: {error}") from error
    if not isinstance(found, dict | list):
        raise ValueError(f"--labels {path} must hold an object of names and definitions, or a list of names")
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"labels holds duplicates: {twice!r} twice")
    return dict(pairs)


def read_texts(path: Path) -> tuple[int, Items]:
    """Read --texts.

    :param path: texts one a line, or a CSV file with a column text, or with one column.
    :return: how many texts there are, and each with the number of its line; a text of several lines with the first's.
    :raises ValueError: the file is not there, or cannot be read.
    """
    from llama_index.core.schema import TextNode

    if not path.is_file():
        raise ValueError(f"--texts {path} is not a file")
    numbered: Sequence[tuple[int, str]] = list(read_lines(path, "--texts"))
    if path.suffix == ".csv":
        numbered = _column(path, numbered)
    texts = [(str(number), text) for number, text in numbered if text.strip()]
    return len(texts), ((number, TextNode(text=text)) for number, text in texts)


def _column(path: Path, lines: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    reader = csv.reader(line + "\n" for _, line in lines)
    header = next(reader, [])
    if "text" not in header and len(header) != 1:
        raise ValueError(f"--texts {path} has the columns {', '.join(header)}: call one of them text")
    at, began, found = header.index("text") if "text" in header else 0, reader.line_num + 1, []
    try:
        for row in reader:
            found.append((began, row[at] if at < len(row) else ""))
            began = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"--texts {path}, line {began} is not CSV: {error}") from error
    return found


def _documents(client: Any, store: QdrantVectorStore) -> tuple[int, Items]:
    """Return all documents of the collection in the order of their ids, with their vectors."""
    from llama_index_refine.qdrant.points import NodeReader

    collection, name, reader = store.collection_name, store.dense_vector_name, NodeReader(store)

    def documents() -> Items:
        offset = None
        while True:
            points, offset = client.scroll(collection, limit=BATCH, offset=offset, with_vectors=True)
            for point, node in zip(points, _nodes(reader, points, collection), strict=True):
                # Of several vectors, the classifier knows which is meant, and looks it up.
                vector = point.vector if isinstance(point.vector, list) else (point.vector or {}).get(name)
                yield str(point.id), node.model_copy(update={"embedding": vector})
            if offset is None:
                return

    return client.count(collection).count, documents()


def _nodes(reader: NodeReader, points: Sequence[Any], collection: str) -> list[BaseNode]:
    """Read points as nodes; some may have no text, as long as others have."""
    try:
        return reader.nodes(points, all_odd=False)
    except ValueError as error:
        raise ValueError(f"--collection {collection} has no texts that can be read: give --text-key") from error


def _rows(classifier: RefinedClassifier, batch: list[tuple[str, BaseNode]]) -> list[dict[str, Any]]:
    nodes = [node for _, node in batch]
    proba = classifier.predict_proba(nodes)
    rows = []
    for (name, node), label, chances in zip(batch, classifier.labels_of(proba), proba, strict=True):
        likely = float(chances.max()) if label is not None else 1 - float(chances.sum())
        rows.append({"id": name, "label": label, "probability": round(likely, 4), "text": node.get_content()})
    return rows
