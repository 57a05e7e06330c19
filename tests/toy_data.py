"""Small data sets whose classes are told apart by their vectors, but not by the first search alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TOPICS = 6
PER_TOPIC = 40


def write_folder(folder: Path, *, groups: bool = False, vectors: bool = True, seed: int = 0) -> Path:
    """Write a data set in BEIR's form: six topics of forty documents, each with a query that leans to the next."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(TOPICS, 32))
    documents = np.repeat(centres, PER_TOPIC, axis=0) + rng.normal(size=(TOPICS * PER_TOPIC, 32))
    queries = centres + 0.9 * np.roll(centres, 1, axis=0)
    folder.mkdir(parents=True, exist_ok=True)
    group = (lambda topic: {"group": "even" if topic % 2 == 0 else "odd"}) if groups else (lambda topic: {})
    corpus = [
        {"_id": f"d{i}", "title": f"Topic {i // PER_TOPIC}", "text": f"Document {i}.", **group(i // PER_TOPIC)}
        for i in range(len(documents))
    ]
    asked = [{"_id": f"q{i}", "text": f"What about topic {i}?", **group(i)} for i in range(TOPICS)]
    for name, rows in (("corpus", corpus), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = [f"q{i // PER_TOPIC}\td{i}\t1\n" for i in range(len(documents))]
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(labels))
    if vectors:
        np.savez(folder / "toy.npz", corpus=documents.astype(np.float16), queries=queries.astype(np.float16))
    return folder
