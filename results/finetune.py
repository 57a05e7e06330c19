"""What fine-tuning an embedding model with remembered grades does to queries that were not among them.

    python -m results.finetune data/argkp_item --out results/finetune.md

Half of the queries, drawn at random, are asked with a memory. What was graded for them is exported as triplets, and
all-MiniLM-L6-v2 is trained once with 640 of them: MultipleNegativesRankingLoss with the hard negative of each row,
batches of 32 in which no text comes twice, sentence-transformers' usual rate. Then the collection is embedded again.
nDCG@10 is that of the plain search for the other half of the queries. Teachers grade from the labels.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_index.core import MockEmbedding
from llama_index.core.storage.kvstore import SimpleKVStore
from sentence_transformers import SentenceTransformer

from llama_index_refine import RefinedRetriever, RefinementMemory
from llama_index_refine.evaluation.corpus import Corpus, filters_of, read_vectors, same_samples
from llama_index_refine.evaluation.datasets import Dataset, load_folder
from llama_index_refine.evaluation.embeddings import SentenceTransformerEmbedding
from llama_index_refine.evaluation.metrics import score_rankings
from llama_index_refine.evaluation.teachers import make_teacher

ROWS, BATCH, RATE, WARM = 640, 32, 2e-5, 0.1


def graded(corpus: Corpus, teacher: str, path: Path) -> int:
    """Ask a corpus's queries with a memory, and export what was graded; say how many rows that is."""
    memory, store, grader = RefinementMemory(SimpleKVStore()), corpus.store(), make_teacher(teacher, corpus.dataset)
    embed_model = MockEmbedding(embed_dim=corpus.document_vectors.shape[1])
    for row, query in enumerate(corpus.queries):
        filters = filters_of(query)
        retriever = RefinedRetriever(store, embed_model, grader, filters=filters, memory=memory, early_stop=False)
        retriever.retrieve(corpus.bundle(row))
    return memory.export(path, store)


def batches(rows: list[dict[str, str]], rng: np.random.Generator) -> Iterator[list[dict[str, str]]]:
    """Draw batches in which no text comes twice: it would be a negative of its own query."""
    left = [rows[at] for at in rng.permutation(len(rows))[:ROWS]]
    while left:
        batch: list[dict[str, str]] = []
        seen: set[str] = set()
        for row in left:
            texts = {row["anchor"], row["positive"], row["negative"]}
            if len(batch) < BATCH and seen.isdisjoint(texts):
                batch.append(row)
                seen |= texts
        chosen = {*map(id, batch)}
        left = [row for row in left if id(row) not in chosen]
        yield batch


def train(model: SentenceTransformer, path: Path) -> None:
    """Train a model with the rows of a file."""
    try:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    except ImportError:
        from sentence_transformers.losses import MultipleNegativesRankingLoss
    rows, rng = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], np.random.default_rng(0)
    torch.manual_seed(0)
    loss = MultipleNegativesRankingLoss(model)
    steps = [*batches(rows, rng)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    warm = max(1, int(WARM * len(steps)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (len(steps) - step) / max(1, len(steps) - warm))
    )
    model.train()
    for at, batch in enumerate(steps):
        if at % 10 == 0:
            print(f"step {at} of {len(steps)}", file=sys.stderr, flush=True)
        texts = [[row[side] for row in batch] for side in ("anchor", "positive", "negative")]
        loss([model.preprocess(each) for each in texts], torch.empty(0)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def quality(dataset: Dataset, model: SentenceTransformer, rows: list[int]) -> float:
    """Search for some queries with a model's vectors, and return their mean nDCG@10."""
    queries = [dataset.queries[row] for row in rows]
    encode: Any = {"normalize_embeddings": True, "batch_size": 128}
    documents = model.encode_document([document.text for document in dataset.documents], **encode)
    asked = model.encode_query([query.text for query in queries], **encode)
    rankings = {}
    for query, vector in zip(queries, asked, strict=True):
        pool = dataset.pool(query)
        best = pool[np.argsort(-(documents[pool] @ vector), kind="stable")[:10]]
        rankings[query.id] = [dataset.documents[at].id for at in best]
    qrels = {query.id: dataset.qrels[query.id] for query in queries}
    return float(np.mean([*score_rankings(rankings, qrels)["nDCG@10"].values()]))


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--teacher", action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [
        "# Fine-tuned with remembered grades",
        "",
        f"`python -m results.finetune {' '.join(f'data/{folder.name}' for folder in args.data)} --seed {args.seed} "
        "--out results/finetune.md`",
        "",
        "Trained on two cores, x86_64, Linux. The queries measured are not among those graded.",
        "",
        "| collection | teacher | queries graded | triplets exported | queries measured | nDCG@10 before | after |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for folder in args.data:
        dataset = load_folder(folder)
        order = np.random.default_rng(args.seed).permutation(len(dataset.queries)).tolist()
        half = len(order) // 2
        measured = sorted(order[half:])
        before = quality(dataset, SentenceTransformerEmbedding(device="cpu")._model, measured)
        for teacher in args.teacher or ["gold", "good"]:
            model = SentenceTransformerEmbedding(device="cpu")._model
            with tempfile.TemporaryDirectory() as home, same_samples():
                path = Path(home) / "triplets.jsonl"
                count = graded(read_vectors(dataset, "minilm", sorted(order[:half])), teacher, path)
                train(model, path)
            after = quality(dataset, model, measured)
            name = f"{folder.name} | {teacher} | {half} | {count:,} | {len(measured)}"
            lines.append(f"| {name} | {before:.3f} | {after:.3f} |")
            print(lines[-1], flush=True)
    lines.append("")
    if args.out:
        args.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
