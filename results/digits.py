"""One picture of a digit as the query, and the other pictures of that digit to be found: before, reranked and refined.

    python -m results.digits --out results/digits.md

The pictures are the 1,797 of scikit-learn's `load_digits`, 8 x 8 pixels, ten classes; their vectors are principal
components of the pixels. The teachers grade from the labels, exactly or with errors: the logit of a grade is normal,
around opposite means for relevant and irrelevant pairs.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.schema import BaseNode, ImageNode, QueryBundle
from llama_index.vector_stores.qdrant import QdrantVectorStore
from PIL import Image
from qdrant_client import QdrantClient, models
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from llama_index_refine import BaseGrader, RefinedRetriever
from llama_index_refine.evaluation.metrics import score_rankings
from llama_index_refine.evaluation.teachers import node_id

# Area under the ROC curve, and spread of the logit.
TEACHERS = {"exact": None, "noisy": (0.933, 1.7), "weak": (0.76, 1.2), "random": (0.5, 1.2)}
METRICS = ("MAP", "nDCG@10", "P@10", "recall@100")
DEPTH = 1000


class Pixels(MultiModalEmbedding):
    """Principal components of an image's pixels."""

    pca: Any

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        pixels = np.asarray(Image.open(img_file_path), dtype=np.float64).ravel() / 15
        return self.pca.transform(pixels[None])[0].tolist()

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)

    def _get_text_embedding(self, text: str) -> list[float]:
        raise NotImplementedError("this model embeds images only")

    _get_query_embedding = _aget_query_embedding = _get_text_embedding


class Teacher(BaseGrader):
    """Grades from the labels; the same grade for the same pair in every run."""

    def __init__(self, labels: dict[str, int], noise: tuple[float, float] | None) -> None:
        self.labels = labels
        self.noise = noise

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float]:
        return [self._grade(Path(query.image_path).stem, node.node_id) for node in nodes]

    def _grade(self, query: str, node: str) -> float:
        relevant = self.labels[query] == self.labels[node]
        if self.noise is None:
            return float(relevant)
        area, spread = self.noise
        seed = int.from_bytes(hashlib.sha256(f"{query} {node}".encode()).digest()[:8], "big")
        mean = NormalDist().inv_cdf(area) * spread / math.sqrt(2)
        logit = (mean if relevant else -mean) + spread * np.random.default_rng(seed).normal()
        return 1 / (1 + math.exp(-logit))


def png(pixels: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray((pixels * 15).astype(np.uint8)).save(written, "PNG")
    return written.getvalue()


def reranked(before: Sequence[str], grades: dict[str, float]) -> list[str]:
    """The first search's ranking, those that were graded sorted by their grades."""
    return [*sorted(grades, key=lambda name: -grades[name]), *before[len(grades) :]]


def measure(count: int, dimensions: int, top_k: int, seed: int) -> list[str]:
    digits = load_digits()
    names = [node_id(f"digit {at}") for at in range(len(digits.target))]
    labels = dict(zip(names, map(int, digits.target), strict=True))
    pictures = [png(image) for image in digits.images]
    pca = PCA(dimensions, random_state=0).fit(digits.data)
    nodes = [
        ImageNode(id_=name, image=base64.b64encode(data).decode(), embedding=vector)
        for name, data, vector in zip(names, pictures, pca.transform(digits.data).tolist(), strict=True)
    ]
    store = QdrantVectorStore("digits", client=QdrantClient(":memory:"))
    store.add(nodes)
    chance = np.random.default_rng(seed)
    queries = [
        int(at)
        for digit in range(10)
        for at in chance.choice(np.flatnonzero(digits.target == digit), count // 10, replace=False)
    ]
    qrels = {
        names[at]: {name: 1 for name in names if labels[name] == labels[names[at]] and name != names[at]}
        for at in queries
    }
    rows = [f"| teacher | ranking | {' | '.join(METRICS)} |", "|---|---|" + "---|" * len(METRICS)]
    with tempfile.TemporaryDirectory() as folder:
        for at in queries:
            (Path(folder) / f"{names[at]}.png").write_bytes(pictures[at])
        for teacher, noise in TEACHERS.items():
            np.random.seed(seed)
            runs: dict[str, dict[str, list[str]]] = {"first search": {}, "reranked": {}, "refined": {}}
            grader = Teacher(labels, noise)
            for at in queries:
                name = names[at]
                # A picture would find itself.
                others = models.Filter(must_not=[models.HasIdCondition(has_id=[name])])
                retriever = RefinedRetriever(
                    store, Pixels(pca=pca), grader, DEPTH, top_k, vector_store_kwargs={"qdrant_filters": others}
                )
                refinement = retriever.refine(QueryBundle("", image_path=f"{folder}/{name}.png"))
                assert refinement.refined, refinement.reason
                before = [entry.node_id for entry in refinement.nodes_before]
                runs["first search"][name] = before
                runs["reranked"][name] = reranked(before, {one: grader._grade(name, one) for one in before[:top_k]})
                runs["refined"][name] = [entry.node_id for entry in refinement.nodes]
            for kind, rankings in runs.items():
                if kind == "first search" and teacher != "exact":
                    continue
                scores = score_rankings(rankings, qrels)
                means = [f"{np.mean(list(scores[metric].values())):.3f}" for metric in METRICS]
                rows.append(f"| {'' if kind == 'first search' else teacher} | {kind} | {' | '.join(means)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100, help="pictures to search with, as many of each digit")
    parser.add_argument("--dimensions", type=int, default=32, help="principal components")
    parser.add_argument("--top-k", type=int, default=20, help="pictures that are graded for a query")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = measure(arguments.queries, arguments.dimensions, arguments.top_k, arguments.seed)
    text = (
        "# Digits by a picture of one\n\n"
        f"scikit-learn's digits: 1,797 images, ten classes; {arguments.dimensions} principal components of the pixels, "
        f"cosine; {arguments.queries} queries, each a picture of the collection, which does not find itself; "
        f"{arguments.top_k} pictures graded for a query; rankings to rank {DEPTH:,}. Made by "
        f"`python -m results.digits --queries {arguments.queries} --dimensions {arguments.dimensions} "
        f"--top-k {arguments.top_k} --seed {arguments.seed}`. The teachers err as their names say: areas under the ROC "
        "curve of 1, .93, .76 and .5.\n\n" + "\n".join(rows) + "\n"
    )
    if arguments.out:
        arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
