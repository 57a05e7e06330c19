"""The sample is what its README says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import llama_index_refine.demo
from llama_index_refine.demo.sample import load_sample

FOLDER = Path(llama_index_refine.demo.__file__).parent / "banking77"


def test_every_intent_has_forty_messages():
    sample = load_sample()
    assert len(sample.queries) == 77
    assert len(sample.documents) == len({document.id for document in sample.documents}) == 3080
    labelled = Counter(document for labels in sample.qrels.values() for document in labels)
    assert set(labelled) == {document.id for document in sample.documents}
    assert {len(sample.relevant(query)) for query in sample.queries} == {40}
    assert set(labelled.values()) == {1}


def test_a_part_of_it_is_what_its_word_says():
    part = load_sample("Card Payment")
    assert {query.text for query in part.queries} >= {"card payment not recognised", "pending card payment"}
    assert len(part.documents) == 40 * len(part.queries) == 240
    with pytest.raises(ValueError, match="about='weather'"):
        load_sample("weather")


def test_it_is_small_and_says_whose_it_is():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 400_000
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for said in ("PolyAI", "CC BY 4.0", "creativecommons.org/licenses/by/4.0", "Casanueva", "seed 77"):
        assert said in text
