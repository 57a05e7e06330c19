"""The solver against an independent one, and against the condition its minimum must meet."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from llama_index_refine.refining.newton import divergence, held_out, minimise


def problem(seed: int, batch: int = 1, count: int = 8, size: int = 5):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(batch, count, size, generator=generator, dtype=torch.float64)
    logits = torch.randn(batch, count, generator=generator, dtype=torch.float64)
    target = (3 * torch.rand(batch, count, generator=generator, dtype=torch.float64)).softmax(-1)
    return rows @ rows.mT, logits, target


def test_agrees_with_a_general_purpose_optimiser():
    gram, logits, target = problem(1)
    pull = 0.3

    def objective(weights):
        push = gram[0] @ torch.from_numpy(weights)
        log_student = (logits[0] + push).log_softmax(-1)
        return float(-(target[0] * log_student).sum() + pull / 2 * torch.from_numpy(weights) @ push)

    best = minimize(objective, np.zeros(8), method="BFGS", options={"gtol": 1e-9})
    found = minimise(gram, logits, target, pull, 50)
    np.testing.assert_allclose(found.logits[0] - logits[0], gram[0] @ torch.from_numpy(best.x), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), exponent=st.floats(-3, 2), scale=st.floats(-1, 2))
@example(seed=273, exponent=-2.25, scale=0.0)
def test_minimum_is_stationary_whatever_the_scale(seed, exponent, scale):
    gram, logits, target = problem(seed)
    gram, pull = gram * 10**scale, 10**exponent
    found = minimise(gram, logits, target, pull, 100)
    assert all(found.converged)
    student = found.logits.softmax(-1)
    slope = (gram @ (pull * found.weights + student - target)[:, :, None])[:, :, 0]
    assert slope.abs().max() < 1e-3 * max(1, float(gram.abs().max()))


def test_a_batch_is_its_members():
    gram, logits, target = problem(3, batch=5)
    together = minimise(gram, logits, target, 0.1, 50)
    for at in range(5):
        alone = minimise(gram[at : at + 1], logits[at : at + 1], target[at : at + 1], 0.1, 50)
        np.testing.assert_allclose(together.logits[at], alone.logits[0], atol=1e-5)


def test_says_when_it_has_not_converged():
    gram, logits, target = problem(4)
    found = minimise(100 * gram, logits, target, 1e-3, 1)
    assert found.iterations == [1]
    assert found.converged == [False]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), exponent=st.floats(-2, 1))
def test_converged_means_that_almost_nothing_is_left_to_gain(seed, exponent):
    gram, logits, target = problem(seed)
    pull = 10**exponent

    def objective(found):
        push = found.logits - logits
        return pull / 2 * (found.weights * push).sum() - (target * found.logits.log_softmax(-1)).sum()

    found = minimise(gram, logits, target, pull, 100)
    further = minimise(gram, logits, (1 - 1e-13) * target, pull, 100)
    assert all(found.converged)
    assert objective(found) - objective(further) < 1e-9
    (steps,) = found.iterations
    assert steps == 0 or not all(minimise(gram, logits, target, pull, steps - 1).converged)


def test_takes_fewer_steps_than_the_curvature_where_it_stands_would():
    """Newton's own steps are 3.8 on average over these problems, which look like those of a query."""
    steps = []
    for seed in range(40):
        gram, logits, _ = problem(seed, count=50, size=80)
        evidence = torch.zeros_like(logits)
        evidence[:, :20] = torch.from_numpy(np.random.default_rng(seed).random((1, 20)) / 0.3)
        target = (logits + evidence).softmax(-1)
        steps.append(minimise(gram / 80, logits, target, 1 / 25, 50).iterations[0])
    assert np.mean(steps) < 3.6


@pytest.mark.parametrize("count", [6, 12])
def test_held_out_logit_is_near_what_leaving_the_document_out_gives(count):
    """Leaving out means that the target follows the student there, so that the document teaches nothing."""
    gram, logits, target = problem(5, count=count)
    gram = gram / gram[0].trace() * count
    pull = 0.5
    fitted = minimise(gram, logits, target, pull, 50)
    after = fitted.logits
    predicted = held_out(gram, fitted, pull, count)
    for at in range(count):
        own = target.clone()
        for _ in range(200):
            student = minimise(gram, logits, own, pull, 50).logits.softmax(-1)
            moved = abs(own[0, at] - student[0, at])
            own[0, at] = student[0, at]
            if moved < 1e-12:
                break
        exact = minimise(gram, logits, own, pull, 50).logits[0, at]
        assert abs(predicted[0, at] - exact) < 0.5 * abs(after[0, at] - exact) + 0.05


def test_divergence_is_zero_between_equals_and_positive_else():
    _, logits, target = problem(7)
    assert divergence(target, target.log()) == pytest.approx(0, abs=1e-12)
    other = logits.log_softmax(-1)
    assert divergence(target, other)[0] == pytest.approx(float((target * (target.log() - other)).sum()))
    assert divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]).log()).isfinite().all()
