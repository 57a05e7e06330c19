"""Stretching squeezed grades."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_refine.refining.trust import GradeRange


def heard(grades, times: int = 20) -> GradeRange:
    used = GradeRange()
    for _ in range(times):
        used.add(grades)
    return used


def test_a_new_teacher_is_taken_at_its_word():
    used = heard([0.6, 0.7, 0.95], times=1)
    np.testing.assert_allclose(used.stretch([0.6, 0.7, 0.95]), [0.6, 0.7, 0.95])


def test_squeezed_grades_are_stretched_to_the_whole_scale():
    grades = np.linspace(0.6, 0.9, 20)
    stretched = heard(grades).stretch(grades)
    assert stretched[0] == pytest.approx(0, abs=0.05)
    assert stretched[-1] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("grades", [[0.0, 1.0], [0.0] * 19 + [1.0], [0.02] * 39 + [0.98]])
def test_a_scale_that_is_used_in_full_stays(grades):
    np.testing.assert_allclose(heard(grades, 50).stretch(grades), grades, atol=0.03)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_order_and_bounds_are_kept(grades):
    stretched = heard(grades).stretch(sorted(grades))
    assert ((stretched >= 0) & (stretched <= 1)).all()
    assert (np.diff(stretched) >= 0).all()


def test_grades_that_are_all_alike_stay():
    np.testing.assert_allclose(heard([0.5] * 20).stretch([0.5, 0.52]), [0.5, 0.52])
