"""MDLOO's step against derivations by hand on small softmax policies, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pomona.posttraining.advantage import best_of, leave_one_out, most_telling, shaped_rewards
from pomona.posttraining.training.mdloo_loss import (
    Responses,
    entropies,
    log_probs,
    logits_gradient,
    mirror_descent_coefficients,
    sampled_kl,
)

V, LENGTH, GAMMA = 7, 3, 0.3


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def ours(
    theta: np.ndarray,
    old: np.ndarray,
    tokens: np.ndarray,
    advantage: np.ndarray,
    estimator: str,
    gamma: float = GAMMA,
    temperature: float = 1.0,
) -> tuple[float, np.ndarray]:
    """Loss and gradient by the library, for a policy whose logits are a table [position, V]."""
    count, length = tokens.shape
    places = np.tile(np.arange(length), count)
    responses = Responses(
        torch.from_numpy(tokens.reshape(-1)), torch.arange(count).repeat_interleave(length), count
    )
    logits, before = torch.from_numpy(theta[places]), torch.from_numpy(old[places])
    log_p, log_z = log_probs(logits, responses, temperature)
    log_old, _ = log_probs(before, responses, temperature)
    log_ratio = responses.sums(log_p) - responses.sums(log_old)
    a = torch.from_numpy(advantage)
    entropy = entropies(logits, log_z, temperature)
    kl = logits_gradient(
        logits,
        responses,
        log_z,
        mirror_descent_coefficients(log_ratio, a, gamma=gamma, estimator=estimator, total=count),
        kl_weight=gamma / count if estimator == "exact" else 0.0,
        old_logits=(lambda block: before[block].clone()) if estimator == "exact" else None,
        temperature=temperature,
    )
    penalty = responses.sums(kl) if estimator == "exact" else sampled_kl(log_ratio)
    loss = float((-log_ratio.exp() * a + gamma * penalty).mean())
    grad = np.zeros_like(theta)
    np.add.at(grad, places, logits.numpy())
    assert (entropy >= 0).all() and (entropy <= math.log(V) + 1e-9).all()
    return loss, grad


def by_hand(
    theta: np.ndarray, old: np.ndarray, tokens: np.ndarray, advantage: np.ndarray, estimator: str
) -> np.ndarray:
    """Term by term from the formulas, response by response."""
    pi, before = softmax(theta), softmax(old)
    grad = np.zeros_like(theta)
    for row, a in zip(tokens, advantage, strict=True):
        rho = np.prod([pi[t, y] / before[t, y] for t, y in enumerate(row)])
        weight = -rho * a + (GAMMA * rho * math.log(rho) if estimator == "sampled" else 0.0)
        for t, y in enumerate(row):
            for v in range(V):
                grad[t, v] += weight * ((v == y) - pi[t, v])
            if estimator == "exact":
                gaps = [math.log(pi[t, v] / before[t, v]) for v in range(V)]
                kl = sum(pi[t, v] * gaps[v] for v in range(V))
                for v in range(V):
                    grad[t, v] += GAMMA * pi[t, v] * (gaps[v] - kl)
    return grad / len(tokens)


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    old = rng.standard_normal((LENGTH, V))
    theta = old + 0.4 * rng.standard_normal((LENGTH, V))
    return theta, old, rng.integers(0, V, (50, LENGTH)), rng.standard_normal(50)


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_the_gradient_is_the_one_derived_by_hand(case: tuple[np.ndarray, ...], estimator: str) -> None:
    theta, old, tokens, advantage = case
    _, grad = ours(theta, old, tokens, advantage, estimator)
    assert np.abs(grad - by_hand(theta, old, tokens, advantage, estimator)).max() < 1e-8


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_the_gradient_is_that_of_the_loss(
    case: tuple[np.ndarray, ...], estimator: str, temperature: float
) -> None:
    theta, old, tokens, advantage = case
    _, grad = ours(theta, old, tokens, advantage, estimator, temperature=temperature)
    step = 1e-5
    for place in itertools.product(range(LENGTH), range(0, V, 3)):
        up, down = theta.copy(), theta.copy()
        up[place] += step
        down[place] -= step
        high, _ = ours(up, old, tokens, advantage, estimator, temperature=temperature)
        low, _ = ours(down, old, tokens, advantage, estimator, temperature=temperature)
        assert grad[place] == pytest.approx((high - low) / (2 * step), abs=1e-7)


def test_over_all_responses_it_is_the_gradient_of_the_objective() -> None:
    """Equation 5: with every response once, weighted by pi_k, the importance sampling is exact. The gradient
    of E_pi[A] - gamma KL(pi || pi_k) for one token has the closed form
    pi (A - E_pi A) - gamma pi (g - KL)."""
    rng = np.random.default_rng(0)
    old, theta, a = rng.standard_normal((1, V)), rng.standard_normal((1, V)), rng.standard_normal(V)
    pi, before = softmax(theta)[0], softmax(old)[0]
    tokens = np.arange(V)[:, None]
    _, grad = ours(theta, old, tokens, a * before * V, "exact")  # their mean is the expectation
    gap = np.log(pi / before)
    wanted = pi * (a - pi @ a) - GAMMA * pi * (gap - pi @ gap)
    assert np.abs(-grad[0] - wanted).max() < 1e-8


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_at_the_first_inner_step_gamma_does_nothing(case: tuple[np.ndarray, ...], estimator: str) -> None:
    _, old, tokens, advantage = case
    _, with_gamma = ours(old, old, tokens, advantage, estimator, gamma=5.0)
    _, without = ours(old, old, tokens, advantage, estimator, gamma=0.0)
    assert np.abs(with_gamma - without).max() < 1e-12


def test_the_sampled_kl_is_never_negative_and_unbiased(case: tuple[np.ndarray, ...]) -> None:
    theta, old, _, _ = case
    pi, before = softmax(theta), softmax(old)
    log_ratio = np.log(pi[0] / before[0])
    found = sampled_kl(torch.from_numpy(log_ratio)).numpy()
    assert (found >= 0).all()
    assert before[0] @ found == pytest.approx(pi[0] @ log_ratio, abs=1e-12)


def test_with_gamma_many_inner_steps_stay_close_and_without_it_they_drift() -> None:
    """The step's optimum is pi_k exp(A / gamma) / Z (mirror descent with the KL); without gamma there is none
    and the KL to pi_k grows to that of a policy with one answer."""
    rng = np.random.default_rng(1)
    old, a = rng.standard_normal((1, V)), rng.permutation(np.linspace(-2, 2, V))
    before = softmax(old)[0]
    tokens = np.arange(V)[:, None]

    def run(gamma: float, steps: int) -> tuple[np.ndarray, list[float]]:
        theta, kls = old.copy(), []
        for _ in range(steps):
            _, grad = ours(theta, old, tokens, a * before * V, "exact", gamma)
            theta -= 2.0 * grad
            pi = softmax(theta)[0]
            kls.append(float(pi @ np.log(pi / before)))
        return softmax(theta)[0], kls

    bound = 2.0
    found, kls = run(bound, 400)
    wanted = before * np.exp(a / bound)
    wanted /= wanted.sum()
    limit = float(wanted @ np.log(wanted / before))
    assert np.abs(found - wanted).max() < 1e-3 and max(kls) < limit + 1e-6
    _, free = run(0.0, 400)
    assert free[-1] > 2 * limit
    assert free[-1] > 0.9 * -math.log(before[a.argmax()])  # nearly all on the best answer


# --- rewards and advantages


def test_leave_one_out_is_the_reward_less_the_mean_of_the_others() -> None:
    reward = np.random.default_rng(2).standard_normal((4, 6))
    found = leave_one_out(reward)
    for p, k in itertools.product(range(4), range(6)):
        assert found[p, k] == pytest.approx(reward[p, k] - np.delete(reward[p], k).mean(), abs=1e-12)
    assert np.allclose(found, 6 / 5 * (reward - reward.mean(1, keepdims=True)))
    assert np.allclose(leave_one_out(reward + 100), found)


def test_what_has_no_reward_has_no_part_in_it() -> None:
    reward = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, 5.0], [2.0, 2.0, 2.0]])
    assert leave_one_out(reward).tolist() == [[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_reward_is_lowered_by_how_far_the_policy_went() -> None:
    reward, log_ratio = np.array([[1.0, 2.0]]), np.array([[0.5, -0.25]])
    assert shaped_rewards(reward, log_ratio, 0.1).tolist() == [[0.95, 2.025]]


def test_the_best_is_the_first_of_the_highest_and_nobody_among_equals() -> None:
    reward = np.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [np.nan, 0.5, 0.1], [np.nan, np.nan, np.nan]])
    assert best_of(reward) == [1, None, 1, None]


def test_the_most_telling_are_the_best_and_the_worst() -> None:
    nan = math.nan
    reward = np.array(
        [[0.0, 1, 0, 0, 0], [1, 0, 1, 1, 0], [0.5] * 5, [nan, nan, 1, nan, nan], [0, nan, 1, 2, 9]]
    )
    found = [np.flatnonzero(row).tolist() for row in most_telling(reward, 3)]
    assert found[0] == [0, 1, 2] and len(found[1]) == 3 and {1, 4} < set(found[1])
    assert found[2:] == [[], [], [0, 2, 4]]


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_has_a_larger_variance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reward = rng.choice([0.0, 0.25, 0.5, 1.0], (1, 7)) if seed % 2 else rng.standard_normal((1, 7))
    count = int(rng.integers(2, 8))
    mark = most_telling(reward, count)
    largest = max(np.var(reward[0, list(choice)]) for choice in itertools.combinations(range(7), count))
    assert mark.sum() == count and np.var(reward[mark]) == pytest.approx(largest)
