"""How well selections are cut, whether certificates are kept, and how well classes are told apart.

    python results/selection.py cuts data/banking77 data/clinc150 data/argkp data/cranfield --out results/selection
    python results/selection.py certificates data/banking77 data/clinc150 --out results/selection
    python results/selection.py classes data/banking77 data/clinc150 --out results/selection

The folders are those of `docs/measuring.md`, with vectors. Collections live in Qdrant Edge, teachers grade from the
labels. `cuts` needs matplotlib for the reliability diagram.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from llama_index.core.embeddings import MockEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models
from scipy.stats import beta

from llama_index_refine import QueryRefiner, RefinedClassifier, RefinedRetriever
from llama_index_refine.evaluation.corpus import Corpus, filters_of, read_vectors
from llama_index_refine.evaluation.datasets import load_folder
from llama_index_refine.evaluation.teachers import LabelledQuery, make_teacher
from llama_index_refine.qdrant.edge import EdgeClient

FIRST = 200
BINS = 10


@contextmanager
def collection(folder: Path, embedding: str, queries: int | None) -> Iterator[tuple[Corpus, QdrantVectorStore]]:
    """Write a data set into a collection."""
    dataset = load_folder(folder)
    corpus = read_vectors(dataset, embedding, dataset.sample(queries))
    with tempfile.TemporaryDirectory() as home:
        client = EdgeClient(home)
        size = corpus.document_vectors.shape[1]
        client.create_collection("c", models.VectorParams(size=size, distance=models.Distance.COSINE))
        store = QdrantVectorStore(collection_name="c", client=client, batch_size=1024)
        pairs = zip(corpus.nodes, corpus.document_vectors, strict=True)
        store.add([node.model_copy(update={"embedding": vector.tolist()}) for node, vector in pairs])
        client.optimize("c")
        yield corpus, store
        client.close()


def retriever(corpus: Corpus, store: QdrantVectorStore, grader: object, row: int, **kwargs: object) -> RefinedRetriever:
    """Make the retriever for one query, with its filters."""
    size = corpus.document_vectors.shape[1]
    filters = filters_of(corpus.queries[row])
    return RefinedRetriever(store, MockEmbedding(embed_dim=size), grader, filters=filters, on_error="raise", **kwargs)


def f1(hits: float, selected: float, relevant: float) -> float:
    return 2 * hits / (selected + relevant)


def best_f1(relevant: np.ndarray) -> float:
    """The best F1 that any cut of a ranking reaches, from its labels in order."""
    hits = np.cumsum(relevant)
    return float((2 * hits / (np.arange(1, len(relevant) + 1) + relevant.sum())).max())


def calibration_error(said: np.ndarray, true: np.ndarray) -> float:
    """Expected calibration error over ten bins of equal width (Guo et al. 2017)."""
    bins = np.minimum((said * BINS).astype(int), BINS - 1)
    return float(sum(abs(said[bins == at].sum() - true[bins == at].sum()) for at in range(BINS)) / len(said))


def cuts(folder: Path, embedding: str, teacher: str, queries: int | None) -> tuple[dict[str, object], list[np.ndarray]]:
    """Measure cuts without a target: 20 grades that refine, 20 more that cut."""
    rows: list[dict[str, float]] = []
    said, true = [], []
    with collection(folder, embedding, queries) as (corpus, store):
        grader = make_teacher(teacher, corpus.dataset)
        usual = round(float(np.mean([len(corpus.dataset.relevant(query)) for query in corpus.queries])))
        for row, query in enumerate(corpus.queries):
            places, vectors = corpus.searched(query)
            relevant = np.isin(places, list(corpus.dataset.relevant(query)))
            names = [corpus.dataset.documents[place].id for place in places]
            of = dict(zip(names, relevant.tolist(), strict=True))
            measured: dict[str, float] = {}
            for how, refiner in (("refined", None), ("unrefined", QueryRefiner(reach=1e-4))):
                one = retriever(corpus, store, grader, row, refiner=refiner)
                selection = one.select(corpus.bundle(row))
                hits = sum(of[entry.node.metadata["document"]] for entry in selection.nodes)
                similarity = vectors @ selection.vector
                ranked = relevant[np.argsort(-similarity, kind="stable")]
                measured[how] = f1(hits, len(selection.nodes), relevant.sum())
                measured[f"best {how}"] = best_f1(ranked)
                measured["graded"] = max(measured.get("graded", 0), selection.graded)
                if how == "refined":
                    measured["fixed number"] = f1(ranked[:usual].sum(), min(usual, len(ranked)), relevant.sum())
            nodes = retriever(corpus, store, grader, row, score="probability", similarity_top_k=FIRST).retrieve(
                corpus.bundle(row)
            )
            said.append(np.array([entry.score for entry in nodes]))
            true.append(np.array([of[entry.node.metadata["document"]] for entry in nodes]))
            measured["calibration error, each"] = calibration_error(said[-1], true[-1])
            rows.append(measured)
    mean = {name: float(np.mean([one[name] for one in rows])) for name in rows[0]}
    mean["graded"] = max(one["graded"] for one in rows)
    pooled = [np.concatenate(said), np.concatenate(true)]
    mean |= {"share": mean["refined"] / mean["best refined"], "calibration error": calibration_error(*pooled)}
    return {"data": f"{folder.name}:{embedding}", "teacher": teacher, "queries": len(rows), **mean}, pooled


def certificates(folder: Path, embedding: str, teacher: str, queries: int | None) -> dict[str, object]:
    """Measure selections with precision=0.9, confidence=0.9 and 100 grades."""
    certified, recall, precision = [], [], []
    with collection(folder, embedding, queries) as (corpus, store):
        grader = make_teacher(teacher, corpus.dataset)
        for row, query in enumerate(corpus.queries):
            relevant = {corpus.dataset.documents[place].id for place in corpus.dataset.relevant(query)}
            selection = retriever(corpus, store, grader, row).select(
                corpus.bundle(row), precision=0.9, confidence=0.9, budget=100
            )
            hits = sum(entry.node.metadata["document"] in relevant for entry in selection.nodes)
            certified.append(selection.certified)
            precision.append(hits / max(len(selection.nodes), 1))
            recall.append(hits / len(relevant))
    kept = np.array(certified)
    failed = int((np.array(precision)[kept] < 0.9).sum())
    many = int(kept.sum())
    high = float(beta.ppf(0.95, failed + 1, many - failed)) if many > failed else 1.0
    low = float(beta.ppf(0.05, failed, many - failed + 1)) if failed else 0.0
    return {
        "data": f"{folder.name}:{embedding}",
        "teacher": teacher,
        "queries": len(kept),
        "certified": many,
        "of them under 0.9": failed,
        "share under 0.9, 90 % interval": f"{low:.3f} to {high:.3f}",
        "precision of certified": float(np.mean(np.array(precision)[kept])) if many else float("nan"),
        "recall of certified": float(np.mean(np.array(recall)[kept])) if many else float("nan"),
    }


def classes(folder: Path, embedding: str, teacher: str, queries: int | None) -> dict[str, object]:
    """Measure classes that are queries of the data set, 20 grades each; with a third left out, none of these."""
    with collection(folder, embedding, queries) as (corpus, store):
        dataset, grader = corpus.dataset, make_teacher(teacher, corpus.dataset)
        texts = [query.text for query in corpus.queries]
        own = {
            dataset.documents[place].id: at
            for at, query in enumerate(corpus.queries)
            for place in dataset.relevant(query)
        }
        truth = np.array([own.get(document.id, -1) for document in dataset.documents])
        named = corpus.document_vectors @ corpus.query_vectors.T
        ids = dict(zip(texts, (query.id for query in corpus.queries), strict=True))
        vectors = dict(zip(texts, corpus.query_vectors.tolist(), strict=True))

        class Labelled(RefinedRetriever):
            """Hands the teacher the query's id, and the vector in the file."""

            def refine_batch(self, queries: list[str], **kwargs: object) -> list[object]:
                return super().refine_batch(
                    [LabelledQuery(text, embedding=vectors[text], query_id=ids[text]) for text in queries], **kwargs
                )

        size = corpus.document_vectors.shape[1]
        make = lambda: Labelled(store, MockEmbedding(embed_dim=size), grader, on_error="raise")  # noqa: E731
        nodes = [
            node.model_copy(update={"embedding": v.tolist()})
            for node, v in zip(corpus.nodes, corpus.document_vectors, strict=True)
        ]
        known = truth >= 0
        every = RefinedClassifier(make()).fit(texts)
        place = {text: at for at, text in enumerate(texts)}
        found = np.array([place[label] for label in every.predict_nodes(nodes)])
        row: dict[str, object] = {
            "data": f"{folder.name}:{embedding}",
            "teacher": teacher,
            "classes": len(texts),
            "label embeddings": float((named.argmax(1) == truth)[known].mean()),
            "refined": float((found == truth)[known].mean()),
        }
        row["gain"] = row["refined"] - row["label embeddings"]
        proba = every.predict_proba(nodes)
        row["calibration error"] = calibration_error(proba.max(1)[known], (found == truth)[known].astype(float))
        some = sorted(np.random.default_rng(1).permutation(len(texts))[: 2 * len(texts) // 3].tolist())
        part = RefinedClassifier(make(), none_of_these=True).fit([texts[at] for at in some])
        labels = part.predict_nodes(nodes)
        left = ~np.isin(truth, some)
        none = np.array([label is None for label in labels])
        right = np.array([label is not None and place[label] == at for label, at in zip(labels, truth, strict=True)])
        return {
            **row,
            "none of these: of leftovers": float(none[left].mean()),
            "none of these: of others": float(none[~left].mean()),
            "accuracy with none of these": float((right | (none & left)).mean()),
        }


def table(rows: list[dict[str, object]]) -> str:
    """Write rows as Markdown."""
    names = list(rows[0])
    text = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    lines = [names, ["---"] * len(names), *text]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(pools: dict[str, list[np.ndarray]], path: Path) -> None:
    """Draw the reliability diagram: how many are relevant of those that are said to be with a probability."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    for name, (said, true) in pools.items():
        bins = np.minimum((said * BINS).astype(int), BINS - 1)
        there = [at for at in range(BINS) if (bins == at).sum() >= 20]
        axes.plot(
            [said[bins == at].mean() for at in there], [true[bins == at].mean() for at in there], marker="o", label=name
        )
    axes.set(xlabel="probability of relevance", ylabel="share that is relevant", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cuts", "certificates", "classes"])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--embed-model", nargs="*", default=["minilm"])
    parser.add_argument("--teacher", nargs="*", default=["gold", "noisy"])
    parser.add_argument("--max-queries", type=int)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows, pools = [], {}
    for folder in arguments.folders:
        for embedding in arguments.embed_model:
            if not (folder / f"{embedding}.npz").exists():
                continue
            for teacher in arguments.teacher:
                if arguments.what == "cuts":
                    row, pools[f"{folder.name}, {teacher}"] = cuts(folder, embedding, teacher, arguments.max_queries)
                elif arguments.what == "classes":
                    row = classes(folder, embedding, teacher, arguments.max_queries)
                else:
                    row = certificates(folder, embedding, teacher, arguments.max_queries)
                rows.append(row)
                print(json.dumps(row), flush=True)
    (arguments.out / f"{arguments.what}.md").write_text(table(rows))
    (arguments.out / f"{arguments.what}.json").write_text(json.dumps(rows, indent=1) + "\n")
    if pools:
        draw(pools, arguments.out / "reliability.png")


if __name__ == "__main__":
    main()
