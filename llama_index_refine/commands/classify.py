"""The command `classify`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import (
    ApiKey,
    Collection,
    EmbedBaseUrl,
    EmbedModel,
    FeedbackTopK,
    Instruction,
    LocalPath,
    OutFile,
    TextKey,
    Url,
    VectorName,
    needed_grader,
    opened_retriever,
)
from llama_index_refine.commands.progress import progress_on
from llama_index_refine.commands.rows import Rows
from llama_index_refine.commands.teacher import LLMBaseUrl, LLMKwargs, LLMModel

if TYPE_CHECKING:
    from llama_index.core.schema import BaseNode

    from llama_index_refine.classifier import RefinedClassifier
    from llama_index_refine.retriever import RefinedRetriever

COLUMNS = ("id", "label", "probability", "text")
BATCH = 256


def classify(
    labels: Annotated[
        Path,
        typer.Option(
            help="The labels: a JSON object of names and definitions, or names, one a line.", show_default=False
        ),
    ],
    collection: Collection,
    out: OutFile,
    texts: Annotated[
        Path | None, typer.Option(help="Texts to classify, one a line.", show_default="the collection's documents")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="File of the classifier: read where it is there, else written.", show_default="beside --out"),
    ] = None,
    none_of_these: Annotated[bool, typer.Option(help="Leave the label empty where none fits.")] = False,
    url: Url = "http://localhost:6333",
    api_key: ApiKey = None,
    path: LocalPath = None,
    text_key: TextKey = None,
    vector_name: VectorName = None,
    embed_model: EmbedModel = "minilm",
    embed_base_url: EmbedBaseUrl = None,
    llm_base_url: LLMBaseUrl = None,
    llm_model: LLMModel = None,
    llm_kwargs: LLMKwargs = None,
    instruction: Instruction = None,
    feedback_top_k: FeedbackTopK = 20,
) -> None:
    """Give your documents, or other texts, the label that fits best; each label is refined over your collection."""
    console = Console(highlight=False)
    with plain_errors() as warned:
        wanted = read_labels_file(labels)
        kept = model or out.with_name(out.name + ".safetensors")
        # A classifier that is there has been taught.
        grader = None if kept.exists() else needed_grader(llm_base_url, llm_model, instruction, llm_kwargs)
        settings = {"collection": collection, "labels": wanted, "texts": str(texts), "none": none_of_these}
        rows = Rows(out, COLUMNS, settings)
        with (
            opened_retriever(
                collection,
                url,
                api_key,
                path,
                embed_model,
                embed_base_url,
                text_key=text_key,
                vector_name=vector_name,
                grader=grader,
                feedback_top_k=feedback_top_k,
            ) as retriever,
            progress_on(console) as bars,
        ):
            classifier = _classifier(retriever, wanted, kept, none_of_these)
            total, items = _texts(texts) if texts is not None else _documents(retriever)
            done = sum(rows.done)
            bar = bars.add_task("Classifying", total=total, completed=done)
            rest = islice(items, done, None)
            while batch := list(islice(rest, BATCH)):
                rows.add(_rows(classifier, batch), len(batch))
                bars.advance(bar, len(batch))
        console.print(f"{sum(rows.done)} rows in {out}; the classifier is in {kept}", soft_wrap=True, markup=False)
        tell(console, warned)


def read_labels_file(path: Path) -> list[str] | dict[str, str]:
    """Read --labels.

    :param path: a JSON object or list, or names one a line.
    :return: what `RefinedClassifier.fit` takes.
    :raises ValueError: the file is not there, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"--labels {path} is no file")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--labels {path} is not JSON: {error}") from error
    if not isinstance(found, dict | list):
        raise ValueError(f"--labels {path} must hold an object of names and definitions, or a list of names")
    return found


def _classifier(
    retriever: RefinedRetriever, labels: list[str] | dict[str, str], path: Path, none: bool
) -> RefinedClassifier:
    from llama_index_refine.classifier import RefinedClassifier
    from llama_index_refine.commands.embedding import embed_query

    if not path.exists():
        # What is wrong with the embedding model is said in a line.
        embed_query(retriever.embed_model, "test")
        RefinedClassifier(retriever).fit(labels).save(path)
    classifier = RefinedClassifier.load(path, retriever)
    if sorted(classifier.classes_) != sorted(labels):
        raise ValueError(f"--model {path} has other labels than --labels: remove it, or name another file")
    return classifier.set_params(none_of_these=none)


def _texts(path: Path) -> tuple[int, Iterator[tuple[str, BaseNode]]]:
    from llama_index.core.schema import TextNode

    if not path.is_file():
        raise ValueError(f"--texts {path} is no file")
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    return len(lines), ((str(at), TextNode(text=line)) for at, line in enumerate(lines, 1))


def _documents(retriever: RefinedRetriever) -> tuple[int, Iterator[tuple[str, BaseNode]]]:
    """Return all documents of the collection in the order of their ids, with their vectors."""
    from llama_index_refine.qdrant.points import NodeReader
    from llama_index_refine.scheduling import run

    store = retriever._collection.store
    space = run([retriever._collection.space()])[0].get()
    name, reader, client = space.name, NodeReader(store), store._client

    def documents() -> Iterator[tuple[str, BaseNode]]:
        offset = None
        while True:
            points, offset = client.scroll(
                store.collection_name,
                limit=BATCH,
                offset=offset,
                with_payload=True,
                with_vectors=[name] if name else True,
            )
            for point in points:
                vector: Any = point.vector.get(name) if isinstance(point.vector, dict) else point.vector
                node = reader.node(point)
                yield str(point.id), node.model_copy(update={"embedding": vector})
            if offset is None:
                return

    return client.count(store.collection_name).count, documents()


def _rows(classifier: RefinedClassifier, batch: list[tuple[str, BaseNode]]) -> list[dict[str, Any]]:
    nodes = [node for _, node in batch]
    proba = classifier.predict_proba(nodes)
    rows = []
    for (name, node), label, chances in zip(batch, classifier.labels_of(proba), proba, strict=True):
        likely = float(chances.max()) if label is not None else 1 - float(chances.sum())
        rows.append({"id": name, "label": label, "probability": round(likely, 6), "text": node.get_content()})
    return rows
