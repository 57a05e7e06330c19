"""Grades of a query, spread over the scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_refine.refining.trust import certainty, stretch

GRADES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def test_squeezed_grades_span_the_whole_scale():
    grades = np.array([0.6, 0.65, 0.7, 0.85])
    np.testing.assert_allclose(stretch(grades, grades), [0, 0.2, 0.4, 1], atol=1e-12)


@pytest.mark.parametrize("grades", [[0.0, 1.0], [0.0] * 19 + [1.0], [1.0] * 5, [0.4] * 5, [0.3]])
def test_bare_verdicts_and_grades_that_are_all_alike_stay(grades):
    np.testing.assert_allclose(stretch(grades, grades), grades)


def test_grades_that_hardly_differ_are_not_made_to_differ_by_everything():
    np.testing.assert_allclose(stretch([0.46, 0.47], [0.46, 0.47]), [0.415, 0.515])
    np.testing.assert_allclose(stretch([0.98, 0.99], [0.98, 0.99]), [0.9, 1.0])


def test_a_new_grade_is_put_where_it_stands_among_the_others():
    among = [0.4, 0.5, 0.6]
    assert stretch([0.45], among)[0] == pytest.approx(0.25)
    assert stretch([0.9], among)[0] == 1
    assert stretch([0.3], [])[0] == 0.3


@given(GRADES, GRADES)
def test_order_and_bounds_are_kept(grades, among):
    stretched = stretch(sorted(grades), among)
    assert ((stretched >= 0) & (stretched <= 1)).all()
    assert (np.diff(stretched) >= 0).all()


@given(GRADES, st.floats(0.3, 1), st.floats(0, 0.7))
def test_neither_the_offset_nor_the_width_of_a_query_counts(grades, width, offset):
    plain = np.array([0.0, *grades, 1.0])
    squeezed = min(offset, 1 - width) + width * plain
    np.testing.assert_allclose(stretch(squeezed, squeezed), plain, atol=1e-9)


@pytest.mark.parametrize(
    ("grades", "decided"),
    [([0, 1, 0], 1), ([1, 1], 1), ([0.5, 0.5], 0), ([0.4, 0.6], 0.2), ([0.85, 0.95], 0.8), ([0.9], 0.8), ([], 1)],
)
def test_bare_verdicts_are_certain_and_halves_are_not(grades, decided):
    assert certainty(grades) == pytest.approx(decided)
