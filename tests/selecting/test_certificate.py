"""Certificates are wrong no more often than they may be, and never without draws."""

import numpy as np
import pytest
from scipy.stats import binom

from llama_index_refine.selecting.certificate import certify_precision, certify_recall, share_out


def perform(draws, grade):
    """Run draws; also return which documents were graded."""
    asked = []
    try:
        places = next(draws)
        while True:
            asked += places
            places = draws.send([grade(place) for place in places])
    except StopIteration as end:
        return end.value, asked


def precision_of(relevant, asked, verdict, known):
    """The precision of what is selected: what was found irrelevant is left out."""
    kept = [at for at in range(verdict.count) if relevant[at] or at not in asked]
    return (known + relevant[kept].sum()) / (known + len(kept))


@pytest.mark.parametrize("share", [0.8, 0.88])
def test_certified_sets_fall_short_of_the_target_as_rarely_as_promised(share):
    wrong, runs = 0, 400
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        # Just under the target, so that every certificate is wrong or thanks to what was left out.
        relevant = rng.permutation(np.arange(300) < 300 * share)
        draws = certify_precision(rng.permutation(300), (100, 200, 300), 5, 0.9, 0.9, 80)
        verdict, asked = perform(draws, lambda place, relevant=relevant: bool(relevant[place]))
        wrong += verdict.certified and precision_of(relevant, asked, verdict, 5) < 0.9
    assert wrong <= binom.ppf(0.999, runs, 0.1)


def test_a_pure_set_is_certified_and_reaches_as_far_as_purity_does():
    relevant = np.arange(600) < 250
    order = np.random.default_rng(0).permutation(600)
    verdict, asked = perform(certify_precision(order, (80, 160, 240, 600), 10, 0.9, 0.9, 80), lambda at: relevant[at])
    assert verdict.certified
    assert verdict.count == 240
    assert verdict.value.low == 0.9
    assert len(asked) == len(set(asked)) == verdict.drawn <= 80


def test_a_guesser_certifies_nothing():
    certified = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        answers = rng.random(300) < 0.5
        draws = certify_precision(rng.permutation(300), (60, 300), 10, 0.9, 0.9, 80)
        certified += perform(draws, lambda at, answers=answers: bool(answers[at]))[0].certified
    assert certified == 0


def test_what_the_teacher_did_not_answer_counts_against_a_certificate():
    order = np.random.default_rng(0).permutation(100)
    verdict, _ = perform(certify_precision(order, (100,), 0, 0.9, 0.9, 40), lambda at: None)
    assert not verdict.certified
    assert verdict.value.low == 0
    verdict, _ = perform(certify_recall(order, 30, 100, 20, 0.9, 0.9, 0, 40), lambda at: None)
    assert not verdict.certified


def test_a_set_that_was_graded_whole_is_known():
    relevant = np.arange(20) < 19
    order = np.random.default_rng(1).permutation(20)
    verdict, asked = perform(certify_precision(order, (20,), 0, 0.9, 0.9, 40), lambda at: relevant[at])
    assert verdict.certified
    assert precision_of(relevant, asked, verdict, 0) == verdict.value.low == verdict.value.high == 1


@pytest.mark.parametrize("cut", [40, 60])
def test_certified_recall_is_there_as_often_as_promised(cut):
    wrong, runs = 0, 300
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        relevant = np.zeros(150, dtype=bool)
        relevant[rng.choice(cut, 20, replace=False)] = True
        relevant[rng.choice(np.arange(cut, 150), 6, replace=False)] = True
        inside, outside, _ = share_out(cut, 150, 10, (20, 3), 0.9, 80)
        draws = certify_recall(rng.permutation(150), cut, 150, 10, 0.85, 0.9, inside, outside)
        verdict, asked = perform(draws, lambda at, relevant=relevant: bool(relevant[at]))
        selected = relevant[:cut].sum() + sum(relevant[at] for at in asked if at >= cut)
        wrong += verdict.certified and (10 + selected) / (10 + relevant.sum()) < 0.85
    assert wrong <= binom.ppf(0.999, runs, 0.1)


def test_recall_over_a_large_collection_cannot_be_shown():
    _, outside, bound = share_out(100, 1_000_000, 50, (80.0, 5.0), 0.9, 300)
    assert outside <= 300
    assert bound < 0.05


def test_recall_over_a_small_collection_can_be_shown():
    inside, outside, bound = share_out(20, 60, 30, (15.0, 0.5), 0.9, 60)
    assert inside + outside == 60
    assert bound == 1.0
