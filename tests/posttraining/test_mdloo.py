"""MDLOO from end to end on a tiny random model: it learns, it resumes, its figures mean what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mdloo_samples import OPTIONS, Letters, adapter_bytes, prompts, tiny_model

from pomona.adapters.packing import Split
from pomona.adapters.training.task_trainer import Answers, Batch
from pomona.compression.training.network import Network
from pomona.errors import PomonaError
from pomona.models.palettized import describe
from pomona.posttraining.advantage import leave_one_out
from pomona.posttraining.mdloo import is_unfinished, mdloo
from pomona.posttraining.mdloo_log import Iteration
from pomona.posttraining.mdloo_options import MdlooOptions
from pomona.posttraining.rollouts import LocalRollOuts, RollOutSampling
from pomona.posttraining.training.mdloo_trainer import MdlooTrainer
from pomona.posttraining.training.policy import Policy, SharedBatch, families_of, response_row


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Callable[..., Any]:
    def call(options: MdlooOptions = OPTIONS, *, work: str = "work", **more: Any) -> Any:
        given = {"work": tmp_path / work, "name": "one", "target": tmp_path / f"{work}-adapter", "threads": 1}
        return mdloo(base, prompts(), Letters(), **{**given, "options": options, **more})

    return call


# --- the policy


def policy_rows(count: int = 3) -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        response_row(rng.integers(0, 256, 4 + n).tolist(), rng.integers(0, 256, 3 + 2 * n).tolist())
        for n in range(count)
    ]


def one_family() -> list[Any]:
    """Responses to one prompt, which is read once; one is a single token."""
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, 256, 9).tolist()
    return [response_row(prompt, rng.integers(0, 256, n).tolist()) for n in (5, 1, 8)]


ROWS = {
    "different prompts": policy_rows,
    "one prompt": one_family,
    "both": lambda: policy_rows() + one_family(),
}


def perturbed(base: Path, seed: int = 1) -> Policy:
    policy = Policy(Network.load(base), rank=4, scale=2.0)
    policy.flat.values.add_(0.05 * torch.randn(len(policy.flat.values), generator=torch.manual_seed(seed)))
    policy.network.refresh()
    return policy


@pytest.mark.parametrize("rows", [make() for make in ROWS.values()], ids=list(ROWS))
def test_equal_weights_give_the_gradient_of_the_cross_entropy(base: Path, rows: list[Any]) -> None:
    """Which is tested against PEFT elsewhere, with every row by itself."""
    policy = perturbed(base)
    answers = sum(row.answers for row in rows)
    policy.flat.grads.zero_()
    policy.gradient(rows, lambda log_p, numbers: torch.full((len(numbers),), -1 / answers))
    ours = policy.flat.grads.clone()
    policy.flat.grads.zero_()
    Answers(policy.network, Split(rows, [])).one_pass(Batch.of(rows), answers)
    # Rows stand in another order there, so sums of bfloat16 products differ.
    gap = torch.linalg.vector_norm(ours - policy.flat.grads) / torch.linalg.vector_norm(ours)
    assert float(gap) < 0.02


def test_scores_do_not_depend_on_the_passes_and_agree_with_the_runtime(base: Path, tmp_path: Path) -> None:
    rows = policy_rows(4) + one_family()
    policy = perturbed(base)
    together = [score.log_p for score in policy.score(rows)]
    policy.pass_tokens = 1  # every row has a pass of its own
    assert [score.log_p for score in policy.score(rows)] == pytest.approx(together, abs=0.02)
    from pomona.runtime.adapter_writer import write_adapter
    from pomona.runtime.adapters import load_adapter
    from pomona.runtime.engine import Engine

    record = {"version": 1, "base_fingerprint": describe(base).fingerprint}
    write_adapter(tmp_path / "p", policy.pairs(), scale=policy.scale, record=record)
    engine = Engine.load(base, threads=1)
    adapter = load_adapter(engine, tmp_path / "p")
    for row, value in zip(rows, together, strict=True):
        scored = engine.score(row.ids.tolist(), adapter)
        assert float(scored[-row.answers :].sum()) == pytest.approx(value, rel=0.02)


def test_neighbours_with_one_prompt_share_it_as_far_as_a_pass_goes() -> None:
    rows = one_family()
    assert families_of([*policy_rows(2), *rows], 100) == ([[0], [1], [2, 3, 4]], [6, 9, 20])
    assert families_of(rows, 15) == ([[0, 1], [2]], [13, 16])
    batch = SharedBatch.of([rows])
    assert batch.lengths == (9, 4, 7) and batch.after == (-1, 0, 0)
    assert batch.places.tolist() == [8, 9, 10, 11, 12, 8, 8, *range(13, 20)]
    assert batch.wanted.tolist() == [int(token) for row in rows for token in row.ids[9:]]


def test_the_reference_is_the_start_and_comes_back_unchanged(base: Path) -> None:
    rows = policy_rows()
    policy = Policy(Network.load(base), rank=4, scale=2.0)
    first = [score.log_p for score in policy.score(rows)]
    policy.flat.values.add_(0.05)
    policy.network.refresh()
    moved = [score.log_p for score in policy.score(rows)]
    with policy.as_reference():
        assert [score.log_p for score in policy.score(rows)] == first
    assert moved != first and [score.log_p for score in policy.score(rows)] == moved


def test_gamma_keeps_many_inner_steps_together(base: Path) -> None:
    rows = policy_rows(4)
    reward = np.array([[1.0, -1.0, 2.0, 0.0]])

    def kl(gamma: float) -> float:
        options = OPTIONS.with_changes(gamma=gamma, inner_steps=16, beta=0.0, lr=2e-3, prompts=1)
        trainer = MdlooTrainer(Policy(Network.load(base), rank=4, scale=2.0), options)
        start = trainer.policy.score(rows, keep=True)
        trainer.iterate(rows, reward)
        return trainer.policy.gradient(rows, lambda p, n: torch.zeros(len(n)), old=start) / len(rows)

    free, bound = kl(0.0), kl(100.0)
    assert bound < 0.25 * free


def test_a_row_without_advantage_changes_nothing_when_there_is_no_trust_region(base: Path) -> None:
    rows = policy_rows(4)
    options = OPTIONS.with_changes(method="rloo", gamma=0.0, inner_steps=1, beta=0.0, prompts=1)
    trainer = MdlooTrainer(Policy(Network.load(base), rank=4, scale=2.0), options)
    before = trainer.policy.flat.values.clone()
    stats = trainer.iterate(rows, np.full((1, 4), 3.0))
    assert stats.taught == 0 and torch.equal(trainer.policy.flat.values, before)
    assert not leave_one_out(np.full((1, 4), 3.0)).any()


def after_one_iteration(base: Path, reward: np.ndarray, rows: list[Any], **changes: Any) -> tuple[Any, Any]:
    options = OPTIONS.with_changes(prompts=len(reward), **changes)
    trainer = MdlooTrainer(Policy(Network.load(base), rank=4, scale=2.0), options)
    stats = trainer.iterate(rows, reward)
    return stats, trainer.policy.flat.values


@pytest.mark.parametrize("beta", [0.0, 0.01])
def test_informative_responses_are_learnt_as_if_there_were_no_others(base: Path, beta: float) -> None:
    rows = policy_rows(8)
    reward = np.array([[0.0, 1.0, 0.1, 0.2], [1.0, 1.0, 1.0, 1.0]])
    stats, values = after_one_iteration(base, reward, rows, informative=2, beta=beta)
    assert stats.taught == 2
    _, alone = after_one_iteration(base, reward[:1, :2], rows[:2], beta=beta)
    assert torch.equal(values, alone)
    _, everything = after_one_iteration(base, reward, rows, informative=4, beta=beta)
    _, first = after_one_iteration(base, reward[:1], rows[:4], beta=beta)
    assert torch.equal(everything, first) and not torch.equal(everything, values)


@pytest.mark.parametrize("method", ["mdloo", "rs"])
def test_where_all_are_worth_the_same_nothing_is_read_or_learnt(base: Path, method: str) -> None:
    rows = policy_rows(4)
    stats, values = after_one_iteration(base, np.full((2, 2), 0.5), rows, informative=2, method=method)
    before = Policy(Network.load(base), rank=4, scale=2.0).flat.values
    assert stats.taught == 0 and torch.equal(values, before)


# --- runs


def test_the_reward_rises(run: Callable[..., Any], tmp_path: Path, base: Path) -> None:
    seen: list[Iteration] = []
    report = run(OPTIONS.with_changes(iterations=10, samples=8), on_iteration=seen.append)
    rewards = [one.reward for one in report.iterations]
    assert list(report.iterations) == seen and report.stopped == "done"
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.05
    assert seen[0].kl_reference == pytest.approx(0.0, abs=1e-6) and seen[-1].kl_reference > 0.05
    assert all(one.kl_start > 0 and one.ratio_low < 1 < one.ratio_high for one in seen[1:])
    record = json.loads((report.directory / "pomona.json").read_text())
    assert record["base_fingerprint"] == describe(base).fingerprint
    assert record["recipe"]["method"] == "mdloo" and len(record["metrics"]["reward"]) == 10
    with LocalRollOuts(base, threads=1) as rollouts:  # the runtime takes what was written
        assert rollouts.replace("one", report.directory) == 1
        rollouts.sample([[65, 66]], "one", 1, RollOutSampling(4))
    folder = next((tmp_path / "work").iterdir())
    assert "reward" in (folder / "samples" / "00010.md").read_text()
    assert len((folder / "log.jsonl").read_text().splitlines()) == 10
    assert list((folder / "tensorboard").iterdir())


@pytest.mark.parametrize("method", ["rloo", "rs"])
def test_the_relatives_learn_too(run: Callable[..., Any], method: str) -> None:
    changes: dict[str, Any] = {"method": method, "iterations": 8, "samples": 8}
    if method == "rloo":
        changes |= {"inner_steps": 1, "gamma": 0.0}
    rewards = [one.reward for one in run(OPTIONS.with_changes(**changes)).iterations]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3])


def test_a_few_informative_responses_suffice(run: Callable[..., Any]) -> None:
    changes = {"iterations": 8, "samples": 8, "informative": 4, "mini_batches": 2}
    report = run(OPTIONS.with_changes(**changes))
    rewards = [one.reward for one in report.iterations]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3])
    assert all(one.taught <= 8 for one in report.iterations)


def test_the_sampled_estimator_runs_as_well(run: Callable[..., Any]) -> None:
    report = run(OPTIONS.with_changes(estimator="sampled", mini_batches=2))
    assert all(one.kl_start >= 0 for one in report.iterations)


class Interrupting(Letters):
    """Stops the program in the middle of the second iteration, when its responses are there."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def score(self, pairs: Any) -> Any:
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt
        return super().score(pairs)


def test_an_interrupted_run_ends_with_the_same_bits(
    run: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    whole = run()
    given = {"work": tmp_path / "again", "name": "one", "target": tmp_path / "second", "threads": 1}
    with pytest.raises(KeyboardInterrupt):
        mdloo(base, prompts(), Interrupting(2), options=OPTIONS, **given)
    assert is_unfinished(tmp_path / "again", base, "one")
    responses = next((tmp_path / "again").iterdir()) / "rollouts.jsonl"
    lines = responses.read_bytes().splitlines(keepends=True)
    responses.write_bytes(b"".join(lines[:3]) + lines[3][:7])  # as a kill in the middle of a line leaves it
    with pytest.raises(PomonaError, match="--resume"):
        mdloo(base, prompts(), Letters(), options=OPTIONS, **given)
    with pytest.raises(PomonaError, match="other options"):
        mdloo(base, prompts(), Letters(), options=OPTIONS.with_changes(lr=1e-3), resume=True, **given)
    again = mdloo(base, prompts(), Letters(), options=OPTIONS, resume=True, **given)
    assert adapter_bytes(whole.directory) == adapter_bytes(again.directory)
    same = ("iteration", "reward", "kl_reference", "kl_start", "length", "entropy")
    assert [[getattr(one, name) for name in same] for one in whole.iterations] == [
        [getattr(one, name) for name in same] for one in again.iterations
    ]
    assert not is_unfinished(tmp_path / "again", base, "one")


CHILD = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from mdloo_samples import OPTIONS, Letters, prompts
from pomona.posttraining.mdloo import mdloo
mdloo(Path({base!r}), prompts(), Letters(), work=Path({work!r}), name="one", target=Path({target!r}),
      threads=1, options=OPTIONS.with_changes(iterations=6), resume={resume},
      on_iteration=lambda one: print("did", flush=True))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(base: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    """SIGKILL somewhere behind the second iteration: in a roll-out or an update, as chance has it."""
    whole = run(OPTIONS.with_changes(iterations=6))
    facts = {
        "here": str(Path(__file__).parent),
        "base": str(base),
        "work": str(tmp_path / "killed"),
        "target": str(tmp_path / "after"),
    }
    first = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(resume=False, **facts)], stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    first.stdout.readline()
    first.stdout.readline()
    time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", CHILD.format(resume=True, **facts)], check=True, timeout=120)
    assert adapter_bytes(tmp_path / "after") == adapter_bytes(whole.directory)


def test_a_time_budget_ends_the_run_and_the_adapter_is_written(run: Callable[..., Any]) -> None:
    report = run(OPTIONS.with_changes(iterations=1000, minutes=1e-4))
    assert report.stopped == "time" and 1 <= len(report.iterations) < 1000 and report.directory.is_dir()


class Broken(Letters):
    """One NaN, one crash; the first prompt's other responses are judged."""

    def score(self, pairs: Any) -> Any:
        from pomona.posttraining.rewards import Verdict

        found = super().score(pairs)
        found[0] = Verdict(float("nan"))
        found[1] = Verdict(float("nan"), "crashed", "ValueError: no")
        return found


def test_failed_rewards_are_counted_and_the_run_goes_on(base: Path, tmp_path: Path) -> None:
    report = mdloo(
        base, prompts(), Broken(), work=tmp_path / "w", name="one", target=tmp_path / "t", options=OPTIONS,
        threads=1,
    )  # fmt: skip
    for one in report.iterations:
        assert one.problems["nan"] == 1 and one.problems["crashed"] == 1
        assert np.isfinite(one.reward) and "1 crashed" in one.line()


def test_it_starts_as_the_adapter_that_is_given(run: Callable[..., Any], tmp_path: Path) -> None:
    first = run()
    second = run(OPTIONS.with_changes(iterations=1), work="second", start=first.directory)
    assert second.start == "work-adapter"
    assert second.iterations[0].kl_reference == pytest.approx(0.0, abs=1e-6)  # the start is the reference


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"method": "ppo"}, "method"),
        ({"samples": 1}, "samples"),
        ({"gamma": -1.0}, "gamma"),
        ({"mini_batches": 99}, "mini_batches"),
        ({"method": "rloo"}, "inner_steps"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(PomonaError, match=part):
        OPTIONS.with_changes(**changes)
