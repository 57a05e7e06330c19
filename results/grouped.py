"""How many documents the first ten nodes come from, and how good they are: grouped by document, and not.

    python -m results.grouped data/cranfield --out results/grouped.md

Documents are cut into sentences, each a node with a vector of all-MiniLM-L6-v2. The teacher finds a sentence relevant
where its document is. A list of nodes counts as the list of their documents, each where it comes first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import MockEmbedding
from llama_index.core.schema import BaseNode, QueryBundle, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from llama_index_refine import BaseGrader, RefinedRetriever
from llama_index_refine.evaluation.corpus import same_samples
from llama_index_refine.evaluation.datasets import Dataset, load_folder
from llama_index_refine.evaluation.embeddings import PACKAGED, SentenceTransformerEmbedding
from llama_index_refine.evaluation.metrics import score_rankings
from llama_index_refine.evaluation.teachers import LabelledQuery, make_teacher, node_id

TEACHERS = ("gold", "good", "noisy")
GROUPED: dict[str, Any] = {"vector_store_kwargs": {"group_by": "document", "group_size": 1}}
WAYS: dict[str, dict[str, Any]] = {"as they are ranked": {}, "one a document": GROUPED}


class OfDocuments(BaseGrader):
    """Finds a sentence as relevant as a teacher finds its document.

    :param teacher: grades documents.
    """

    def __init__(self, teacher: BaseGrader) -> None:
        super().__init__()
        self.teacher = teacher

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Sequence[float | None]:
        """Grade each sentence's document."""
        return self.teacher.grade(query, [TextNode(id_=node_id(node.metadata["document"])) for node in nodes])


def chosen(dataset: Dataset, queries: Sequence[int], documents: int) -> list[int]:
    """Rows of documents: what is relevant to the queries, and others at random, so many in all."""
    relevant = {at for row in queries for at in dataset.relevant(dataset.queries[row])}
    others = [at for at in range(len(dataset.documents)) if at not in relevant]
    more = np.random.default_rng(7).permutation(others)[: max(documents - len(relevant), 0)]
    return sorted([*relevant, *more.tolist()])


def sentences(text: str) -> list[str]:
    """Cut a text; what is shorter than twenty characters says nothing by itself."""
    return [part for part in text.split(" . ") if len(part) >= 20] or [text]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--max-queries", type=int, default=40)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    dataset, model = load_folder(args.data), SentenceTransformerEmbedding(PACKAGED)
    rows = dataset.sample(args.max_queries, 3)
    kept = chosen(dataset, rows, args.documents)
    texts = [(dataset.documents[at].id, part) for at in kept for part in sentences(dataset.documents[at].text)]
    vectors = model.get_text_embedding_batch([text for _, text in texts])
    asked = {dataset.queries[row].id: model.get_query_embedding(dataset.queries[row].text) for row in rows}
    store = QdrantVectorStore(collection_name="sentences", client=QdrantClient(":memory:"), batch_size=1024)
    store.add(
        [
            TextNode(id_=node_id(f"{document} {at}"), text=text, metadata={"document": document}, embedding=vector)
            for at, ((document, text), vector) in enumerate(zip(texts, vectors, strict=True))
        ]
    )
    command = f"python -m results.grouped data/{args.data.name} --max-queries {len(rows)} --documents {len(kept)}"
    lines = [
        "# One node a document",
        "",
        f"`{command} --out results/grouped.md`: {len(texts)} sentences of {len(kept)} documents, {len(rows)} queries.",
        "",
        "| teacher | nodes | documents in the first ten | nDCG@10 of the documents |",
        "|---|---|---:|---:|",
    ]
    labels = {dataset.queries[row].id: dataset.qrels[dataset.queries[row].id] for row in rows}
    for teacher in TEACHERS:
        for way, options in WAYS.items():
            grader = OfDocuments(make_teacher(teacher, dataset))
            retriever = RefinedRetriever(store, MockEmbedding(embed_dim=len(vectors[0])), grader, **options)
            ranked: dict[str, dict[str, list[str]]] = {"first search": {}, "refined": {}}
            for row in rows:
                query = dataset.queries[row]
                with same_samples(row):
                    found = retriever.refine(LabelledQuery(query.text, embedding=asked[query.id], query_id=query.id))
                for name, nodes in (("first search", found.nodes_before), ("refined", found.nodes)):
                    ranked[name][query.id] = list(dict.fromkeys(entry.node.metadata["document"] for entry in nodes))
            for name, lists in ranked.items():
                distinct = np.mean([len(one) for one in lists.values()])
                quality = np.mean(list(score_rankings(lists, labels)["nDCG@10"].values()))
                lines.append(f"| {teacher} | {name}, {way} | {distinct:.1f} | {quality:.3f} |")
                print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
