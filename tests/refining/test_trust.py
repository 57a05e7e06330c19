"""Telling a teacher that knows from one that guesses."""

import json
import os
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.refining.base import TYPICAL_SIGNAL
from llama_index_refine.refining.evidence import evidence
from llama_index_refine.refining.trust import FixedTrust, Reliability, shrink

RNG_SEEDS = range(40)


def query(seed: int, count: int = 20, size: int = 24):
    """Documents around a query, some of them on its topic, graded exactly."""
    rng = np.random.default_rng(seed)
    topic, question = rng.normal(size=size), rng.normal(size=size)
    relevant = rng.random(count) < 0.4
    documents = question + rng.normal(size=(count, size)) + relevant[:, None] * topic * 0.7
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    return documents, relevant.astype(float), documents @ (question + 0.4 * topic)


def taught(grade) -> list[float]:
    record = Reliability()
    trust = []
    for seed in RNG_SEEDS:
        documents, exact, similarities = query(seed)
        trust.append(record.observe(documents, grade(exact, np.random.default_rng(1000 + seed)), similarities))
    return trust


def noisy(exact, rng):
    return 1 / (1 + np.exp(-1.5 * (np.where(exact > 0, 1.8, -1.8) + 1.7 * rng.normal(size=len(exact)))))


def test_exact_grades_are_trusted_from_the_start_and_in_the_end():
    trust = taught(lambda exact, rng: exact)
    assert min(trust[3:]) > 0.9


def test_noisy_grades_are_trusted():
    assert np.mean(taught(noisy)[10:]) > 0.6


@pytest.mark.parametrize(
    "grade",
    [
        lambda exact, rng: 1 / (1 + np.exp(-1.8 * rng.normal(size=len(exact)))),
        lambda exact, rng: rng.random(len(exact)).round(),
        lambda exact, rng: 1 - exact,
        lambda exact, rng: 1 - noisy(exact, rng),
    ],
    ids=["chance", "coin", "inverted", "inverted and noisy"],
)
def test_chance_and_upside_down_grades_are_not_trusted(grade):
    assert max(taught(grade)[-10:]) < 0.15


def test_grades_that_are_all_alike_are_evidence_of_nothing():
    record = Reliability()
    documents, _, similarities = query(0)
    before = record.belief.hypotheses
    for _ in range(50):
        record.observe(documents, np.full(20, 1.0), similarities)
    np.testing.assert_allclose(record.belief.hypotheses, before, atol=1e-9)
    assert record.belief.trust() == 0


def test_a_teacher_that_becomes_another_is_found_out():
    record = Reliability()
    for seed in range(40):
        documents, exact, similarities = query(seed)
        record.observe(documents, exact, similarities)
    for seed in range(60):
        documents, exact, similarities = query(seed)
        trust = record.observe(documents, np.random.default_rng(seed).random(20).round(), similarities)
    assert trust < 0.5


def test_evidence_averages_one_over_chance():
    """Over all orders of the same grades, f(y) / mean f(Py) averages 1: chance cannot win by patience."""
    documents, _, similarities = query(1, count=8)
    rng = np.random.default_rng(0)
    grades = rng.random(8)
    ratios = [np.exp(evidence(documents, rng.permutation(grades) / 0.3, similarities)) for _ in range(1500)]
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1, atol=0.25)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_neither_scale_nor_crowding_of_the_vectors_matters(seed, scale, shift):
    documents, exact, similarities = query(seed)
    plain = evidence(documents, exact, similarities)
    other = evidence(scale * documents + shift, exact, 3 * similarities - shift)
    np.testing.assert_allclose(other, plain, atol=1e-5)


def test_uncertain_grades_count_for_less_and_certain_ones_in_full():
    grades = [1.0, 0.0, 1.0, 0.0]
    assert shrink(grades, [None, 0, 0.0, None]) == grades
    drawn = shrink(grades, [0.4, None, None, None])
    assert 0.5 < drawn[0] < 1
    assert drawn[1:] == pytest.approx([0, 1, 0])
    assert shrink([0.6, 0.4], [0.5, 0.5]) == pytest.approx([0.5, 0.5])


def test_how_well_the_vectors_explain_the_grades_is_learnt():
    exact, weak = Reliability(), Reliability()
    assert exact.signal() == pytest.approx(TYPICAL_SIGNAL, rel=0.02)
    for seed in RNG_SEEDS:
        documents, grades, similarities = query(seed)
        noise = np.random.default_rng(seed).random(len(grades))
        exact.observe(documents, grades, similarities)
        weak.observe(documents, 0.25 * grades + 0.75 * noise, similarities)
    assert exact.signal() > 3 * weak.signal()


class TestFile:
    def test_a_record_goes_on_where_it_was(self, tmp_path):
        record = Reliability()
        for seed in range(5):
            documents, grades, similarities = query(seed)
            record.observe(documents, grades, similarities)
            record.count([20.0, 80.0], [0.5, 0.5])
        record.save(tmp_path / "record.json")
        again = Reliability.load(tmp_path / "record.json")
        assert again.signal() == record.signal()
        assert again.abundance.counts.tolist() == record.abundance.counts.tolist()
        assert again.observe(*query(9)) == record.observe(*query(9))
        assert [path.name for path in tmp_path.iterdir()] == ["record.json"]

    @pytest.mark.parametrize(
        "change",
        [
            lambda record: record.pop("belief"),
            lambda record: record.update(ratios=[1, 2]),
            lambda record: record["belief"].update(hypotheses=[0.5] * 9),
            lambda record: record["belief"].update(claim=-1.0),
            lambda record: record["belief"].update(surprise=1),
            lambda record: record.update(abundance=[1.0]),
            lambda record: record["abundance"].__setitem__(3, -1.0),
            lambda record: record.pop("abundance"),
        ],
    )
    def test_a_file_that_holds_something_else_is_refused_by_name(self, tmp_path, change):
        path = tmp_path / "record.json"
        Reliability().save(path)
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=r"record\.json is not a record"):
            Reliability.load(path)

    def test_no_json(self, tmp_path):
        (tmp_path / "text").write_text("trust me")
        with pytest.raises(ValueError, match="is not a record"):
            Reliability.load(tmp_path / "text")


def test_a_teacher_is_known_after_two_queries():
    record = Reliability()
    for seed in range(2):
        assert not record.known()
        record.observe(*query(seed))
    assert record.known()


def test_a_record_says_its_trust_and_whether_it_has_seen_grades_that_differ():
    record, rng = Reliability(), np.random.default_rng(0)
    documents, similarities = rng.normal(size=(10, 4)), rng.normal(size=10)
    record.observe(documents, np.ones(10), similarities)
    assert not record.varied
    assert record.trust() == 0
    said = record.observe(documents, (documents[:, 0] > 0).astype(float), similarities)
    assert record.varied
    assert record.trust() == said > 0


def test_a_share_that_the_user_knows_answers_like_a_record_and_learns_nothing():
    """Every public question that a record answers, so that nobody needs to know which of the two it is."""
    known = FixedTrust(0.7)
    grades = [0.2, 0.9, 0.6]
    known.count([3], [1.0])
    assert known.observe(np.eye(3), grades, grades) == 0.7
    assert known.foresee(np.eye(3), grades, grades) == (0.7, known.signal())
    assert known.trust() == known.sees() == 0.7
    assert known.known()
    assert known.decides()
    assert known.varied
    assert known.signal() == TYPICAL_SIGNAL
    assert not known.abundance.counts.any()
    only_records = {"adopt", "from_dict", "knows_more_than", "load", "save", "to_dict", "belief"}
    public = {name for name in dir(Reliability()) if not name.startswith("_")}
    assert public - only_records <= set(dir(known))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match="trust must be in"):
        FixedTrust(share)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_record_is_free_in_a_process_that_forked_while_it_was_held():
    record = Reliability()
    with record._lock:
        child = os.fork()
        if not child:
            signal.alarm(20)
            record.trust()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
