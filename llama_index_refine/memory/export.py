"""Remembered grades as training data for embedding models: rows that sentence-transformers' losses read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Literal, get_args

from llama_index.core.schema import MetadataMode
from llama_index.vector_stores.qdrant import QdrantVectorStore

from llama_index_refine.ids import same_id
from llama_index_refine.memory.remembered import RememberedGrade, RememberedQuery, content_of, opinions
from llama_index_refine.qdrant.clients import CallOnce
from llama_index_refine.qdrant.points import NodeReader, points_of
from llama_index_refine.scheduling import perform

Kind = Literal["triplets", "pairs"]
# By a node's id and a hash of its content.
Texts = dict[tuple[str, str], str]

# Nodes that one call brings.
PAGE = 256
# From this grade on a node is taken for relevant.
RELEVANT = 0.5


def check(kind: str, store: QdrantVectorStore) -> None:
    """See that there is something to write, and texts for it.

    :raises ValueError: another kind of rows, or of store.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be 'triplets' or 'pairs', got {kind!r}")
    if not isinstance(store, QdrantVectorStore):
        raise ValueError(
            "vector_store must be the QdrantVectorStore that was searched, as the memory keeps no text of a node, got "
            f"{type(store).__name__}"
        )


async def texts_in(store: QdrantVectorStore, queries: Sequence[RememberedQuery], mode: MetadataMode) -> Texts:
    """Fetch the texts of graded nodes.

    :param store: the collection that was searched.
    :param queries: what was graded.
    :param mode: which metadata stands before each text.
    :return: the texts of the nodes that are there.
    :raises ValueError: nodes were graded, and none of them is there as it was.
    """
    graded = {(grade.node_id, grade.content) for query in queries for grade in query.grades}
    ids = [point for node_id in dict.fromkeys(node_id for node_id, _ in sorted(graded)) for point in points_of(node_id)]
    operation, reader, found = CallOnce(store), NodeReader(store), Texts()
    for start in range(0, len(ids), PAGE):
        asked = {"ids": ids[start : start + PAGE], "with_payload": True, "with_vectors": False}
        for node in reader.nodes(await perform("fetch", operation, ("retrieve", asked))):
            found[same_id(node.node_id), content_of(node)] = node.get_content(mode)
    if graded and graded.isdisjoint(found):
        raise ValueError(
            f"vector_store holds none of the graded nodes as they were graded: is {store.collection_name!r} the "
            "collection that was searched?"
        )
    return found


def rows_of(query: RememberedQuery, texts: Texts, kind: Kind) -> Iterator[dict[str, Any]]:
    """Write down what was graded for one query.

    :param query: the query.
    :param texts: of the nodes that are as they were graded; of no other node anything is written.
    :param kind: pairs with scores, one a node; or triplets, so many that every node is in one at least.
    :return: rows as `RefinementMemory.export` describes them; no triplet without a relevant node and another.
    """
    known = [
        (texts[node_id, one.content], one)
        for node_id, one in opinions(query.grades).items()
        if texts.get((node_id, one.content), "").strip()
    ]
    if kind == "pairs":
        for text, one in known:
            said = {"sentence1": query.query_str, "sentence2": text, "score": one.grade}
            yield said | _facts(query, one)
        return
    known.sort(key=lambda entry: -entry[1].grade)
    positives = [entry for entry in known if entry[1].grade >= RELEVANT]
    negatives = known[len(positives) :]
    for at in range(max(len(positives), len(negatives)) if positives and negatives else 0):
        (positive, for_it), (negative, against) = positives[at % len(positives)], negatives[at % len(negatives)]
        texts_of_it = {"anchor": query.query_str, "positive": positive, "negative": negative}
        yield texts_of_it | _facts(query, for_it, against)


def _facts(query: RememberedQuery, *heard: RememberedGrade) -> dict[str, str]:
    by = sorted({"people" if one.people else "teacher" for one in heard})
    date = datetime.fromtimestamp(max(one.time for one in heard), timezone.utc)
    return {
        "by": by[0] if len(by) == 1 else "both",
        "date": date.isoformat(timespec="seconds"),
        "filters": query.filters,
    }


def write(path: str | Path, rows: Sequence[dict[str, Any]]) -> int:
    """Write rows as JSON lines, or replace them.

    :param path: the file.
    :param rows: what JSON knows.
    :return: how many.
    :raises OSError: it cannot be written; what was there is there still.
    """
    path = Path(path)
    with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(file.name).replace(path)
    return len(rows)
