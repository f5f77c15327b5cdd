"""MDLOO: reinforcement learning of an adapter by mirror descent with leave-one-out advantages (report, 4.6).

    pomona align mdloo smollm2-135m-4bit prompts.jsonl --name polite --reward verify

One iteration: K responses to each of some prompts are sampled from the newest adapter on our runtime
(rollouts.py), rewarded (rewards.py), turned into advantages (advantage.py) and learnt from
(training/mdloo_trainer.py); then the adapter is swapped into the runtime. RLOO and rejection sampling are the
same run with another `method`. This file joins the parts.

A run is a folder. `state.safetensors` is written after every iteration, responses as they come; so a run that
was killed, wherever, goes on with `resume`, and where rewards and the number of threads are the same it ends
with the same bits as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.adapters.adapt import checked_name
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.locking import locked_folder
from pomona.models.model_directory import Progress
from pomona.models.palettized import describe
from pomona.posttraining.mdloo_log import Iteration, RunLog, reward_figures
from pomona.posttraining.mdloo_options import MdlooOptions
from pomona.posttraining.prompts import Prompt
from pomona.posttraining.rewards import Reward, judge
from pomona.posttraining.rollout_store import sample_kept
from pomona.posttraining.rollouts import Job, LocalRollOuts, RollOuts, RollOutSampling
from pomona.runtime.adapter_file import CONFIG_FILE, read_adapter
from pomona.runtime.adapter_pairs import pairs_of, with_rank
from pomona.runtime.adapter_writer import Pair, write_adapter
from pomona.runtime.model import ADAPTERS_FOLDER, RECOVERY

if TYPE_CHECKING:
    from pomona.posttraining.training.mdloo_trainer import MdlooTrainer

POLICY = "policy"  # the adapter's name in the runtime, and the folder of its newest version in a run
RUN = "run.json"
ROLLOUTS = "rollouts.jsonl"  # of the iteration that runs


@dataclass(frozen=True)
class MdlooReport:
    """directory: of the adapter. stopped: done or time."""

    name: str
    base_fingerprint: str
    start: str
    directory: Path
    iterations: tuple[Iteration, ...]
    seconds: float
    stopped: str

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "name": self.name,
            "base_fingerprint": self.base_fingerprint,
            "start": self.start,
            "directory": str(self.directory),
            "seconds": round(self.seconds, 1),
            "stopped": self.stopped,
            "iterations": [asdict(one) for one in self.iterations],
        }


def mdloo(
    base: Path | str,
    prompts: Sequence[Prompt],
    reward: Reward,
    *,
    work: Path | str,
    name: str,
    options: MdlooOptions | None = None,
    start: Path | str | None = None,
    target: Path | str | None = None,
    resume: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    rollouts: RollOuts | None = None,
    progress: Progress | None = None,
    on_iteration: Callable[[Iteration], None] | None = None,
) -> MdlooReport:
    """Trains an adapter of `base` on rewards and writes it to `target`, by default BASE/adapters/NAME.

    start: the adapter that the policy begins as, and is kept close to; by default the base's recovery
    adapter, or the base itself. rollouts: what samples (it must run the same base; it stays open); by default
    our runtime. resume, restart: what to do with an unfinished run in `work`; without either it is an error.
    Raises PomonaError: no torch, prompts that are too long, a gradient that is no number.
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise PomonaError(
            "align mdloo: needs torch, which is not installed; run: pip install 'pomona[train]'"
        )
    base = Path(base)
    options = options or MdlooOptions()
    name = checked_name(name)
    target = base / ADAPTERS_FOLDER / name if target is None else Path(target)
    overwrite |= resume  # it may have been killed behind its last word
    if target.exists() and not overwrite:
        raise PomonaError(f"{target}: is there already; ask to overwrite it, or choose another --name")
    if not prompts:
        raise PomonaError("there are no prompts; give at least one")
    mark = describe(base).fingerprint
    folder = Path(work) / f"mdloo-{mark[:12]}-{name}"
    with locked_folder(folder):
        identity = _identity(mark, prompts, reward, options, start)
        _prepare(folder, identity, resume=resume, restart=restart)
        run = _Run(base, folder, prompts, reward, options, start, threads, rollouts, progress)
        try:
            report = run.go(name, mark, target, overwrite, on_iteration)
        finally:
            run.close()
        for path in (folder / RUN, folder / ROLLOUTS):
            path.unlink(missing_ok=True)
        _state(folder).unlink(missing_ok=True)
    return report


def is_unfinished(work: Path, base: Path, name: str) -> bool:
    """Whether `work` holds a run that mdloo() would resume."""
    return (work / f"mdloo-{describe(base).fingerprint[:12]}-{name}" / RUN).exists()


class _Run:
    """A run from its start, or from its last whole iteration, to its end."""

    def __init__(
        self,
        base: Path,
        folder: Path,
        prompts: Sequence[Prompt],
        reward: Reward,
        options: MdlooOptions,
        start: Path | str | None,
        threads: int | None,
        rollouts: RollOuts | None,
        progress: Progress | None,
    ) -> None:
        import torch

        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        self.base, self.folder, self.prompts, self.reward = base, folder, prompts, reward
        self.options, self.progress = options, progress
        self.own = rollouts is None
        self.rollouts = LocalRollOuts(base, threads=threads) if rollouts is None else rollouts
        self.ids = [tuple(self.rollouts.render(prompt.messages)) for prompt in prompts]
        self.seconds = 0.0
        try:
            self.trainer, self.start = _trainer(base, options, start)
        except BaseException:
            self.close()
            raise
        self.last: dict[str, Any] | None = None
        if _state(folder).exists():
            meta = self.trainer.resume(folder)
            self.seconds, self.last = meta["seconds"], meta["last"]

    def close(self) -> None:
        if self.own:
            self.rollouts.close()

    def go(
        self,
        name: str,
        mark: str,
        target: Path,
        overwrite: bool,
        on_iteration: Callable[[Iteration], None] | None,
    ) -> MdlooReport:
        o, trainer = self.options, self.trainer
        stopped = "done"
        with RunLog(self.folder, trainer.iteration, self.last) as log:
            self._swap(mark)
            while trainer.iteration < o.iterations:
                if o.minutes is not None and self.seconds >= 60 * o.minutes:
                    stopped = "time"
                    break
                one = self._iteration(log)
                trainer.save(self.folder, {"seconds": self.seconds, "last": asdict(one)})
                (self.folder / ROLLOUTS).unlink(missing_ok=True)
                log.add(one)
                self._swap(mark)
                if on_iteration is not None:
                    on_iteration(one)
            record = self._record(name, mark, log.iterations, stopped)
            write_adapter(
                target, trainer.policy.pairs(), scale=trainer.policy.scale, record=record, overwrite=overwrite
            )
            return MdlooReport(name, mark, self.start, target, tuple(log.iterations), self.seconds, stopped)

    def _iteration(self, log: RunLog) -> Iteration:
        from pomona.posttraining.training.policy import response_row

        o, number = self.options, self.trainer.iteration
        chosen = self._chosen(number)
        jobs = [
            Job(self.ids[prompt], POLICY, o.samples, number * o.prompts + place)
            for place, prompt in enumerate(chosen)
        ]
        times = [time.perf_counter()]
        sampled = sample_kept(
            self.rollouts,
            jobs,
            RollOutSampling(o.max_new_tokens, o.temperature, o.seed),
            self.folder / ROLLOUTS,
            on_count=self._count,
        )
        times.append(time.perf_counter())
        responses = [response for group in sampled for response in group]
        texts = [self.rollouts.text(response) for response in responses]
        asked = [self.prompts[prompt] for prompt in chosen for _ in range(o.samples)]
        judged = judge(self.reward, list(zip(asked, texts, strict=True)), empty_reward=o.empty_reward)
        values = np.array(judged.values, np.float64)
        cut = np.array([not response.finished for response in responses])
        if o.unfinished_reward is not None:
            values[cut] = o.unfinished_reward
        if cut.any():
            judged.problems["unfinished"] = int(cut.sum())
        reward_PK = values.reshape(len(chosen), o.samples)
        times.append(time.perf_counter())
        if self.progress is not None:
            self.progress("update", 0, 1)
        rows = [
            response_row(jobs[place // o.samples].prompt_ids, response.token_ids)
            for place, response in enumerate(responses)
        ]
        stats = self.trainer.iterate(rows, reward_PK)
        times.append(time.perf_counter())
        groups = [texts[at : at + o.samples] for at in range(0, len(texts), o.samples)]
        log.samples(number + 1, [self.prompts[prompt] for prompt in chosen], groups, reward_PK)
        self.seconds += times[-1] - times[0]
        tokens = sum(len(response.token_ids) for response in responses)
        return Iteration(
            iteration=number + 1,
            **reward_figures(reward_PK),
            kl_reference=stats.kl_reference,
            kl_start=stats.kl_start,
            advantage_spread=stats.advantage_spread,
            entropy=stats.entropy,
            ratio_high=stats.ratio_high,
            ratio_low=stats.ratio_low,
            gradient_norm=stats.gradient_norm,
            taught=stats.taught,
            length=tokens / len(responses),
            finished=float(1 - cut.mean()),
            rollout_seconds=times[1] - times[0],
            reward_seconds=times[2] - times[1],
            update_seconds=times[3] - times[2],
            rollout_tokens_per_second=tokens / max(times[1] - times[0], 1e-9),
            problems=dict(judged.problems),
        )

    def _chosen(self, iteration: int) -> list[int]:
        """Prompts of an iteration: the permutations of all of them one after the other."""
        count, found = len(self.prompts), []
        for number in range(iteration * self.options.prompts, (iteration + 1) * self.options.prompts):
            whole, at = divmod(number, count)
            found.append(int(np.random.default_rng([self.options.seed, whole]).permutation(count)[at]))
        return found

    def _count(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress("sample", done, total)

    def _swap(self, mark: str) -> None:
        """The newest policy into the runtime."""
        policy = self.trainer.policy
        record = {"version": 1, "task": POLICY, "base_fingerprint": mark}
        directory = self.folder / POLICY
        write_adapter(directory, policy.pairs(), scale=policy.scale, record=record, overwrite=True)
        self.rollouts.replace(POLICY, directory)

    def _record(self, name: str, mark: str, iterations: Sequence[Iteration], stopped: str) -> dict[str, Any]:
        """The adapter's pomona.json."""
        return {
            "version": 1,
            "task": name,
            "base_fingerprint": mark,
            "data": [{"prompts": len(self.prompts), "sha256": prompts_digest(self.prompts)}],
            "recipe": {
                "reward": self.reward.name,
                "start": self.start,
                **self.options.model_dump(),
                "alpha": self.trainer.policy.scale * self.options.rank,
            },
            "metrics": {
                "seconds": round(self.seconds, 1),
                "stopped": stopped,
                "reward": [_finite(one.reward) for one in iterations],
                "kl_reference": [_finite(one.kl_reference) for one in iterations],
            },
        }


def _trainer(base: Path, options: MdlooOptions, start: Path | str | None) -> tuple[MdlooTrainer, str]:
    """The trainer at its start, and what it starts as."""
    from pomona.compression.training.network import Network
    from pomona.posttraining.training.mdloo_trainer import MdlooTrainer
    from pomona.posttraining.training.policy import Policy

    pairs, scale, note = starting_pairs(base, start, options.rank, options.seed)
    policy = Policy(
        Network.load(base),
        rank=options.rank,
        scale=scale,
        seed=options.seed,
        start=pairs,
        temperature=options.temperature,
    )
    return MdlooTrainer(policy, options), note


def starting_pairs(
    base: Path, start: Path | str | None, rank: int, seed: int
) -> tuple[dict[str, Pair] | None, float, str]:
    """(A and B of the projections that the start adapts, alpha / rank, its name). Without a start: the
    recovery adapter if the base has one. More rank than asked for is cut to the best directions."""
    directory = base / ADAPTERS_FOLDER / RECOVERY if start is None else Path(start)
    if start is None and not (directory / CONFIG_FILE).is_file():
        return None, 2.0, "the base"
    file = read_adapter(directory, ModelConfig.from_directory(base), describe(base).fingerprint)
    rng = np.random.default_rng(seed)
    pairs = {module: with_rank(pair, rank, rng) for module, pair in pairs_of(file).items()}
    return pairs, next(iter(file.scales.values())), directory.name


def _identity(
    mark: str, prompts: Sequence[Prompt], reward: Reward, options: MdlooOptions, start: Path | str | None
) -> dict[str, Any]:
    """What must be equal for a run to be resumed. Its length may change."""
    asked = options.model_dump()
    del asked["minutes"], asked["iterations"]
    return {
        "base": mark,
        "prompts": prompts_digest(prompts),
        "reward": reward.name,
        "start": None if start is None else Path(start).name,
        "options": asked,
    }


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps(prompt.to_json(), sort_keys=True).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _prepare(folder: Path, identity: dict[str, Any], *, resume: bool, restart: bool) -> None:
    path = folder / RUN
    unfinished = path.exists()
    if unfinished and not (resume or restart):
        raise PomonaError(f"{folder}: holds an unfinished run; give --resume to go on, or --restart")
    if resume and not unfinished:
        raise PomonaError(f"{folder}: holds no run to resume; start one without --resume")
    if resume:
        if json.loads(path.read_text(encoding="utf-8")) != identity:
            raise PomonaError(f"{folder}: its run has other options or prompts; give the same, or --restart")
        return
    for stale in (ROLLOUTS, RUN):
        (folder / stale).unlink(missing_ok=True)
    _state(folder).unlink(missing_ok=True)
    shutil.rmtree(folder / POLICY, ignore_errors=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(identity), encoding="utf-8")
    new.replace(path)


def _state(folder: Path) -> Path:
    return folder / "state.safetensors"


def _finite(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
