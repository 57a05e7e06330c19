"""Whose record is whose."""

from __future__ import annotations

import gc
from dataclasses import dataclass

from llama_index_refine import RefinedRetriever
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.retrieval import grading
from llama_index_refine.retrieval.grading import reliability_of
from tests.planted import SIZE, Planted
from tests.test_retriever import NoEmbedding


@dataclass
class ByValue(BaseGrader):
    """A dataclass, and so without a hash, and equal to any other with the same word."""

    word: str = "purr"

    def grade(self, query, nodes):
        return [float(self.word in node.get_content()) for node in nodes]


class Contrary(ByValue):
    """Has neither a hash nor an opinion on what it equals."""

    def __eq__(self, other):
        raise AssertionError("compared")

    __hash__ = None


def test_teachers_that_are_equal_have_records_of_their_own():
    first, second = ByValue(), ByValue()
    assert first == second
    assert reliability_of(first) is reliability_of(first)
    assert reliability_of(first) is not reliability_of(second)
    assert reliability_of(Contrary()) is not reliability_of(Contrary())


def test_a_record_goes_with_its_teacher():
    gc.collect()
    before = len(grading._records)
    teachers = [ByValue() for _ in range(50)]
    for teacher in teachers:
        reliability_of(teacher)
    assert len(grading._records) == before + 50
    del teacher, teachers
    gc.collect()
    assert len(grading._records) == before


def test_a_retriever_takes_a_teacher_without_a_hash():
    planted = Planted()
    refined = RefinedRetriever(planted.store(), embed_model=NoEmbedding(embed_dim=SIZE), grader=Contrary())
    assert len(refined.retrieve(planted.query(0))) == 10
