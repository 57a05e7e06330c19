"""The laws of a refinement."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine import QueryRefiner
from llama_index_refine.refining.published import PublishedRefiner
from llama_index_refine.similarity import METRICS
from tests.refining.spoiling import put

YARDSTICK = Path(__file__).resolve().parent.parent.parent / "shared" / "bench"


def lesson(seed: int = 0, size: int = 32, graded: int = 20, background: int = 30):
    """A query, documents of which some lie near a hidden topic and are graded so, and a background."""
    rng = np.random.default_rng(seed)
    topic = rng.normal(size=size)
    query = unit(topic + 2 * rng.normal(size=size))
    relevant = rng.random(graded) < 0.4
    documents = unit(query + rng.normal(size=(graded, size)) / 3 + relevant[:, None] * topic / 4)
    grades = np.clip(relevant + 0.1 * rng.normal(size=graded), 0, 1)
    return query, documents, grades, unit(rng.normal(size=(background, size)) + query / 3)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def order(refinement, documents):
    return np.argsort(-documents @ refinement.vector, kind="stable").tolist()


@pytest.mark.parametrize("background", [True, False])
def test_moves_towards_what_was_graded_relevant(background):
    query, documents, grades, around = lesson()
    refinement = QueryRefiner().refine(query, documents, grades, around if background else None, population=1000)
    assert refinement.converged
    assert refinement.kl_after < refinement.kl_before
    agreement = [np.corrcoef(grades, documents @ v)[0, 1] for v in (refinement.query, refinement.vector)]
    assert agreement[1] > agreement[0] + 0.1
    assert refinement.target.shape == refinement.student_after.shape == (50 if background else 20,)
    for distribution in (refinement.target, refinement.student_before, refinement.student_after):
        assert distribution.sum() == pytest.approx(1, abs=1e-5)


def test_minimises_the_stated_objective():
    """The formula of the docstring, written out and handed to a general-purpose optimiser."""
    from scipy.optimize import minimize

    query, documents, grades, around = lesson(size=6)
    refiner = QueryRefiner()
    found = refiner.refine(query, documents, grades, around, population=1000, trust=0.8)
    rows = np.concatenate([documents, around]).astype(float)
    prior = 0.25 * 0.26**-0.6 * np.exp(-1.5 * (grades.mean() - 0.35))
    tau = (around @ query).std() / prior
    weights = np.concatenate([np.ones(20), np.full(30, np.sqrt(1000) / 30)])
    log_softmax = lambda z: z - np.log(np.exp(z).sum())  # noqa: E731
    evidence = 0.8 * np.concatenate([grades, np.zeros(30)]) / refiner.temperature
    target = np.exp(log_softmax(np.log(weights) + evidence + rows @ query / tau))
    radius = np.square(rows - rows.mean(0)).sum(1).mean()

    def objective(x):
        divergence = (target * (np.log(target) - log_softmax(np.log(weights) + rows @ x / tau))).sum()
        return divergence + radius * np.square(x - query).sum() / (2 * (refiner.reach * tau) ** 2)

    best = minimize(objective, query.astype(float), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(found.vector, best.x, atol=2e-4)
    np.testing.assert_allclose(found.target, target, atol=1e-5)
    assert objective(found.vector.astype(float)) <= best.fun + 1e-7


def test_the_first_ranking_counts_less_the_better_the_vectors_explain_the_grades():
    query, documents, grades, around = lesson()
    tau = [
        QueryRefiner("dot").refine(query, documents, grades, around, signal=signal).tau for signal in (0.1, 0.3, 1, 3)
    ]
    assert tau == sorted(tau)
    assert tau[-1] > 2 * tau[0]


def test_the_first_ranking_counts_less_the_more_is_relevant():
    query, documents, grades, around = lesson()
    tau = [QueryRefiner("dot").refine(query, documents, share * grades, around).tau for share in (0.1, 0.5, 1.0)]
    assert tau == sorted(tau)
    assert tau[-1] > 1.2 * tau[0]


def test_a_prior_of_ones_own_holds_whatever_the_grades():
    query, documents, grades, around = lesson()
    tau = [
        QueryRefiner("dot", prior=0.5).refine(query, documents, grades, around, signal=ratio).tau for ratio in (0.1, 3)
    ]
    assert tau[0] == tau[1] == pytest.approx((around @ query).std() / 0.5, rel=1e-4)


def test_a_batch_takes_each_query_with_its_own_signal():
    query, documents, grades, around = lesson()
    both = QueryRefiner().refine_batch([query] * 2, [documents] * 2, [grades] * 2, around, signal=[0.1, 3.0])
    alone = [QueryRefiner().refine(query, documents, grades, around, signal=signal) for signal in (0.1, 3.0)]
    for one, other in zip(both, alone, strict=True):
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-6)


@pytest.mark.parametrize("signal", [0.0, -1.0, float("nan")])
def test_a_signal_that_is_none(signal):
    query, documents, grades, around = lesson()
    with pytest.raises(ValueError, match="signal"):
        QueryRefiner().refine(query, documents, grades, around, signal=signal)


def test_grades_that_a_rounding_put_outside_count_as_the_ends():
    query, documents, grades, around = lesson()
    grades = grades.round()
    found = QueryRefiner().refine(query, documents, np.where(grades > 0, 1.0000001, -1e-9), around)
    exact = QueryRefiner().refine(query, documents, grades, around)
    np.testing.assert_allclose(found.vector, exact.vector, atol=1e-7)


@given(grade=st.floats(0, 1), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_a_teacher_that_grades_everything_alike_moves_nothing(grade, seed):
    query, documents, _, _ = lesson(seed)
    refinement = QueryRefiner().refine(query, documents, np.full(20, grade))
    np.testing.assert_allclose(refinement.vector, query, atol=1e-5)


def test_no_trust_moves_nothing_and_reorders_nothing():
    query, documents, grades, around = lesson()
    refinement = QueryRefiner().refine(query, documents, grades, around, trust=0)
    np.testing.assert_allclose(refinement.vector, query, atol=1e-5)
    np.testing.assert_allclose(refinement.fused, documents @ query, atol=1e-4)


@given(seed=st.integers(0, 50), scale=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_the_scale_of_the_vectors_leaves_the_ranking_alone(seed, scale):
    query, documents, grades, around = lesson(seed)
    for metric, args in (
        ("dot", (query, documents * scale, around * scale)),
        ("cosine", (query * scale, documents, around)),
    ):
        plain = QueryRefiner(metric).refine(query, documents, grades, around)
        scaled = QueryRefiner(metric).refine(args[0], args[1], grades, args[2])
        np.testing.assert_allclose(unit(scaled.vector), unit(plain.vector), atol=2e-4)


@given(seed=st.integers(0, 50), spread=st.floats(0.1, 1))
@settings(max_examples=20, deadline=None)
def test_crowded_vectors_rank_like_spread_ones(seed, spread):
    """Vectors that share a large common part, as e5's do, and vary little around it."""
    query, documents, grades, around = lesson(seed)
    common = np.zeros((1, 32), np.float32)
    common[0, 0] = 5
    plain = QueryRefiner("dot").refine(query, documents, grades, around)
    crowded = QueryRefiner("dot").refine(query, common + spread * documents, grades, common + spread * around)
    np.testing.assert_allclose(unit(crowded.vector), unit(plain.vector), atol=2e-3)


def test_euclid_neither_minds_where_the_origin_is_nor_the_unit():
    query, documents, grades, around = lesson()
    plain = QueryRefiner("euclid").refine(query, documents, grades, around)
    shift = np.float32(3)
    moved = QueryRefiner("euclid").refine(7 * (query + shift), 7 * (documents + shift), grades, 7 * (around + shift))
    np.testing.assert_allclose(moved.vector, 7 * (plain.vector + shift), atol=2e-2)
    distance = lambda v: np.linalg.norm(documents - v, axis=1)  # noqa: E731
    agreement = [np.corrcoef(grades, -distance(v))[0, 1] for v in (query, plain.vector)]
    assert agreement[1] > agreement[0] + 0.1


@pytest.mark.parametrize("metric", METRICS)
def test_a_batch_is_its_members(metric):
    lessons = [lesson(seed) for seed in range(4)]
    queries, documents, grades = (np.stack([one[part] for one in lessons]) for part in range(3))
    shared = lessons[0][3]
    refiner = QueryRefiner(metric)
    together = refiner.refine_batch(queries, documents, grades, shared, population=500, trust=[1, 0.5, 0, 1])
    for at, trust in enumerate([1, 0.5, 0, 1]):
        alone = refiner.refine(queries[at], documents[at], grades[at], shared, population=500, trust=trust)
        np.testing.assert_allclose(together[at].vector, alone.vector, atol=1e-5)
        np.testing.assert_allclose(together[at].fused, alone.fused, atol=1e-5)
    own = np.stack([one[3] for one in lessons])
    apart = refiner.refine_batch(queries, documents, grades, own)
    alone = refiner.refine(queries[2], documents[2], grades[2], own[2])
    np.testing.assert_allclose(apart[2].vector, alone.vector, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_comes_back_in_the_kind_it_came_in(metric, dtype):
    query, documents, grades, around = (part.astype(dtype) for part in lesson())
    arrays = QueryRefiner(metric).refine(query, documents, grades, around)
    tensors = QueryRefiner(metric).refine(*(torch.from_numpy(part) for part in (query, documents, grades, around)))
    assert isinstance(arrays.vector, np.ndarray)
    assert arrays.vector.dtype == np.float32
    assert isinstance(tensors.vector, torch.Tensor)
    np.testing.assert_allclose(tensors.vector.numpy(), arrays.vector, atol=1e-6)


@pytest.mark.parametrize("refiner", [QueryRefiner(), QueryRefiner.paper(steps=3)], ids=["ours", "published"])
def test_autograd_takes_what_is_given_back(refiner):
    parts = (np.eye(4)[0], np.eye(4)[1:], np.array([1.0, 0.0, 0.0]))
    found = refiner.refine(*(torch.from_numpy(part).float() for part in parts))
    factor = torch.ones(4, requires_grad=True)
    (found.vector * factor * found.documents * found.held_out[:, None]).sum().backward()
    assert factor.grad is not None


def test_own_grade_decides_among_documents_that_the_rest_cannot_tell_apart():
    query, documents, grades, around = lesson()
    documents[1] = documents[0]
    grades[:2] = 1, 0
    refinement = QueryRefiner().refine(query, documents, grades, around)
    assert documents[0] @ refinement.vector == pytest.approx(documents[1] @ refinement.vector)
    assert refinement.fused[0] > refinement.fused[1]


@pytest.mark.parametrize(("relevant", "times"), [(1, 4.0), (3, 1 + 2 * np.log(0.35 / 0.15)), (7, 1.0), (14, 1.0)])
def test_a_yes_counts_the_more_the_fewer_there_are(relevant, times):
    query, documents, _, around = lesson()
    grades = np.arange(20) < relevant
    refiner = QueryRefiner(own_grade=0.5)
    refinement = refiner.refine(query, documents, grades.astype(np.float32), around)
    moved = (refinement.fused - refinement.held_out) / refinement.tau
    fitted = documents @ refinement.vector / np.linalg.norm(refinement.vector) / refinement.tau
    enough = fitted - refinement.held_out / refinement.tau
    np.testing.assert_allclose(moved[grades], np.maximum(0.5 * times, enough[grades]), atol=1e-3)
    np.testing.assert_allclose(moved[~grades], np.minimum(-0.5, enough[~grades]), atol=1e-3)


def test_a_grade_counts_for_its_own_place_by_its_certainty_and_moves_the_query_all_the_same():
    query, documents, _, around = lesson()
    grades = (np.arange(20) < 10).astype(np.float32)
    refiner = QueryRefiner(own_grade=4.0)
    full = refiner.refine(query, documents, grades, around)
    half = refiner.refine(query, documents, grades, around, certainty=0.5)
    np.testing.assert_array_equal(half.vector, full.vector)
    moved = (half.fused - half.held_out) / half.tau
    np.testing.assert_allclose(np.abs(moved), 2.0, atol=1e-3)
    each = np.where(np.arange(20) < 5, 1.0, 0.5)
    some = refiner.refine(query, documents, grades, around, certainty=each)
    np.testing.assert_allclose(some.fused, np.where(each == 1, full.fused, half.fused), atol=1e-6)
    both = refiner.refine_batch(np.stack([query] * 2), np.stack([documents] * 2), np.stack([grades] * 2), around)
    np.testing.assert_allclose(both[1].fused, full.fused, atol=1e-6)
    with pytest.raises(ValueError, match=r"certainty must be in \[0, 1\]"):
        refiner.refine(query, documents, grades, around, certainty=1.5)


def test_published_procedure_step_by_step():
    """Written out once more from the paper: Adam by hand, no autograd."""
    query, documents, grades, _ = lesson()
    target = np.exp(grades) / np.exp(grades).sum()
    x, first, second = query.astype(float), np.zeros(32), np.zeros(32)
    for step in range(1, 101):
        length = np.linalg.norm(x)
        cosines = documents @ x / length
        student = np.exp(cosines) / np.exp(cosines).sum()
        slope = ((student - target)[:, None] * (documents / length - np.outer(cosines, x) / length**2)).sum(0)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        x -= 1e-4 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    refinement = QueryRefiner.paper().refine(query, documents, grades)
    np.testing.assert_allclose(refinement.vector, x, atol=1e-5)
    assert refinement.iterations == 100


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-12, 1e15])
def test_the_unit_of_the_vectors_changes_nothing(metric, scale):
    query, documents, grades, around = lesson()
    plain = QueryRefiner(metric).refine(query, documents, grades, around)
    scaled = QueryRefiner(metric).refine(query * scale, documents * scale, grades, around * scale)
    np.testing.assert_allclose(scaled.vector / scale, plain.vector, atol=1e-4)
    np.testing.assert_allclose(scaled.student_after, plain.student_after, atol=1e-4)


@pytest.mark.skipif(not YARDSTICK.exists(), reason="the yardstick is not beside the checkout")
@pytest.mark.parametrize("rate", [1e-4, 1e-3])
def test_published_procedure_agrees_with_the_yardstick(rate, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(YARDSTICK), *sys.path])
    import paper

    query, documents, grades, _ = lesson(3, size=384)
    refinement = QueryRefiner.paper(rate=rate).refine(query * 2, documents, grades)
    np.testing.assert_allclose(refinement.vector, paper.refine(query * 2, documents, grades, lr=rate), atol=1e-5)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_published_rate_out_of_range(rate):
    with pytest.raises(ValueError, match="rate"):
        PublishedRefiner(rate=rate)
    with pytest.raises(ValueError, match="steps"):
        QueryRefiner.paper(steps=0)


def spoilt(**changes):
    names = ("query", "documents", "grades", "background")
    parts = dict(zip(names, (part.copy() for part in lesson()), strict=True))
    return {**parts, **{name: change(parts[name]) for name, change in changes.items()}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": lambda q: q[:-1]}, "documents must have the shape"),
        ({"query": lambda q: q[None, None]}, "query must have the shape"),
        ({"query": lambda q: q[None]}, r"documents\[0\] must have the shape"),
        ({"query": put(np.nan, 0)}, "query holds NaN"),
        ({"query": lambda q: q * 0}, "query holds a zero vector"),
        ({"query": lambda q: ["a", "b"]}, "query is not an array"),
        ({"documents": put(np.inf, 0, 0)}, "documents holds NaN or infinity"),
        ({"documents": put(0, 3)}, "documents holds a zero vector"),
        ({"documents": put(1e17, 3)}, r"documents holds a vector of length 5.7e\+17"),
        ({"documents": lambda d: torch.from_numpy(d) * 1e17}, "documents holds a vector of length"),
        ({"grades": lambda g: g[:-1]}, "grades must have the shape"),
        ({"grades": put(1.5, 0)}, "grades must be in"),
        ({"grades": put(-0.1, 0)}, "grades must be in"),
        ({"grades": put(np.nan, 0)}, "grades holds NaN"),
        ({"background": lambda b: b[:0]}, "background is empty"),
        ({"background": lambda b: b[:, :-1]}, "background must have the shape"),
        ({"background": put(0, 0)}, "background holds a zero vector"),
        ({"background": put(np.nan, 0, 0)}, "background holds NaN"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        QueryRefiner().refine(**spoilt(**changes))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"metric": "manhattan"}, "metric"),
        ({"temperature": 0}, "temperature"),
        ({"prior": -1}, "prior"),
        ({"reach": float("nan")}, "reach"),
        ({"own_grade": -1}, "own_grade"),
        ({"max_iterations": 0}, "max_iterations"),
    ],
)
def test_settings_out_of_range_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        QueryRefiner(**arguments)


def test_one_document_alone_has_nothing_to_differ_from_but_a_background():
    query, documents, _, around = lesson()
    with pytest.raises(ValueError, match="documents must be at least 2, or 1 with a background"):
        QueryRefiner().refine(query, documents[:1], [1.0])
    for refiner in (QueryRefiner(), QueryRefiner.paper(steps=1)):
        found = refiner.refine(query, documents[:1], [1.0], around)
        assert np.isfinite(found.vector).all()
    liked = QueryRefiner("dot").refine(query, documents[:1], [1.0], around)
    assert documents[0] @ liked.vector > documents[0] @ query


def test_each_document_may_have_a_trust_of_its_own():
    """A grade of 1 that is believed by half and one that is 0 differ by half as much; the others count in full."""
    query, documents, grades, around = lesson()
    trust = np.full(len(grades), 0.7)
    refiner = QueryRefiner("dot")
    same = refiner.refine(query, documents, grades, around, trust=trust)
    assert np.array_equal(same.vector, refiner.refine(query, documents, grades, around, trust=0.7).vector)
    assert same.trust == pytest.approx(0.7)
    doubted = int(np.argmax(grades))
    grades[doubted] = 1.0
    pulls = []
    for share in (0.0, 0.5, 1.0):
        trust[doubted] = share
        pulls.append(float(documents[doubted] @ refiner.refine(query, documents, grades, around, trust=trust).vector))
    assert pulls == sorted(pulls)
    assert pulls[0] < pulls[1] < pulls[2]
    batch = refiner.refine_batch(query[None], documents[None], grades[None], around, trust=trust[None])
    assert batch[0].vector == pytest.approx(refiner.refine(query, documents, grades, around, trust=trust).vector)
    with pytest.raises(ValueError, match="trust must have the shape"):
        refiner.refine(query, documents, grades, around, trust=trust[:3])


@pytest.mark.parametrize(("arguments", "name"), [({"trust": 1.5}, "trust"), ({"population": 0}, "population")])
def test_arguments_out_of_range_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        QueryRefiner().refine(*lesson(), **arguments)
    if name == "trust":
        with pytest.raises(ValueError, match="trust must have the shape"):
            QueryRefiner().refine_batch(*(part[None] for part in lesson()), trust=[1, 1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), graded=st.integers(2, 6), size=st.integers(1, 5), same=st.booleans())
def test_strange_but_valid_input_gives_a_finite_vector(seed, graded, size, same):
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(1 if same else graded, size)).repeat(graded if same else 1, 0)
    for metric in METRICS:
        refinement = QueryRefiner(metric).refine(rng.normal(size=size), documents, rng.random(graded).round())
        assert np.isfinite(refinement.vector).all()
        assert np.isfinite(refinement.fused).all()


def in_nats(move, refinement):
    """A move of the query as the root mean square change of the documents' logits that it makes, the docs' unit."""
    rows = np.concatenate([refinement.documents, refinement.background]).astype(float)
    radius = np.sqrt(np.square(rows - rows.mean(0)).sum(1).mean())
    return np.linalg.norm(move) * radius / refinement.tau


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), trust=st.floats(0.01, 1), liar=st.integers(0, 19), honest=st.booleans())
def test_no_grades_move_the_query_further_than_the_bound_nor_does_any_one_of_them(seed, trust, liar, honest):
    """The bounds of docs/mathematics.md. For a unit query under the dot product, tau is the formula's."""
    query, documents, grades, around = lesson(seed)
    grades = grades if honest else np.random.default_rng(seed).random(20).round()
    refiner = QueryRefiner("dot")
    refined = []
    for said in (0.0, 1.0):
        grades[liar] = said
        refined.append(refiner.refine(query, documents, grades, around, population=10_000, trust=trust))
        whole = refiner.reach * trust / (2 * refiner.temperature)
        assert in_nats(refined[-1].vector - query, refined[-1]) <= whole * 1.001
    rows = np.concatenate([documents, around]).astype(float)
    radius = np.sqrt(np.square(rows - rows.mean(0)).sum(1).mean())
    others = refined[0].target.astype(float)
    others[liar] = 0
    lever = np.linalg.norm(documents[liar] - others @ rows / others.sum()) / radius
    one = refiner.reach**2 * np.tanh(trust / (4 * refiner.temperature)) * lever
    assert in_nats(refined[1].vector - refined[0].vector, refined[0]) <= min(one, 2 * whole) * 1.001


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(2, 20))
def test_an_exact_grade_never_puts_a_document_where_it_speaks_against(seed, count):
    query, documents, _, around = lesson(seed)
    grades = np.random.default_rng(seed).random(count).round()
    found = QueryRefiner("dot").refine(query, documents[:count], grades, around, population=1000)
    similarities = documents[:count] @ found.vector
    assert (found.fused[grades == 1] >= similarities[grades == 1] - 1e-4).all()
    assert (found.fused[grades == 0] <= similarities[grades == 0] + 1e-4).all()


def test_a_scatter_that_is_known_stands_for_the_backgrounds():
    rng = np.random.default_rng(4)
    query, documents, background = rng.normal(size=5), rng.normal(size=(6, 5)), rng.normal(size=(9, 5))
    grades = rng.random(6)
    own = float((background @ query).std())
    usual = QueryRefiner("dot").refine(query, documents, grades, background)
    same = QueryRefiner("dot").refine(query, documents, grades, background, scatter=own)
    wider = QueryRefiner("dot").refine(query, documents, grades, background, scatter=3 * own)
    assert np.allclose(usual.vector, same.vector, atol=1e-4)
    assert wider.tau == pytest.approx(3 * usual.tau, rel=1e-4)
    both = QueryRefiner("dot").refine_batch(
        [query, query], [documents] * 2, [grades] * 2, background, scatter=[own, 3 * own]
    )
    assert np.allclose(both[1].vector, wider.vector, atol=1e-4)
    with pytest.raises(ValueError, match="scatter must be above 0"):
        QueryRefiner("dot").refine(query, documents, grades, background, scatter=0.0)
