"""What a run of MDLOO tells: a line of figures per iteration, TensorBoard events, samples to read.

RUN/log.jsonl          one line per iteration
RUN/samples/00012.md   of iteration 12: the best, the worst and the middle response of some prompts
RUN/tensorboard/       where tensorboard is installed
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.posttraining.prompts import Prompt

LOG = "log.jsonl"
SAMPLES = "samples"
SAMPLE_PROMPTS = 4
MAX_SHOWN = 2000  # characters of a response


@dataclass(frozen=True)
class Iteration:
    """Means over the responses of one iteration. reward: of those that have one, and its spread within a
    prompt; best_reward: of the best of each prompt. perfect: share with a reward of at least 1. kl_reference,
    kl_start: nats per response; see IterationStats, also of what follows. length: tokens. problems: why there
    was no reward, or none of the text's. Seconds of the three parts."""

    iteration: int
    reward: float
    best_reward: float
    reward_spread: float
    perfect: float
    kl_reference: float
    kl_start: float
    advantage_spread: float
    entropy: float
    ratio_high: float
    ratio_low: float
    gradient_norm: float
    taught: int
    length: float
    finished: float
    rollout_seconds: float
    reward_seconds: float
    update_seconds: float
    rollout_tokens_per_second: float
    problems: dict[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.rollout_seconds + self.reward_seconds + self.update_seconds

    def line(self) -> str:
        parts = [
            f"iteration {self.iteration}",
            f"reward {self.reward:.3f}",
            f"KL of the step {self.kl_start:.3f}",
            f"length {self.length:.0f}",
            f"ratio {self.ratio_low:.2g} to {self.ratio_high:.3g}",
            f"{self.seconds:.0f} s ({self.rollout_tokens_per_second:.0f} tokens/s sampled)",
        ]
        if math.isfinite(self.entropy):
            parts.insert(4, f"entropy {self.entropy:.2f}")
        if math.isfinite(self.kl_reference):
            parts.insert(2, f"KL to the reference {self.kl_reference:.2f}")
        parts += [f"{count} {kind}" for kind, count in sorted(self.problems.items())]
        return ", ".join(parts)


def reward_figures(reward_PK: NDArray[np.float64]) -> dict[str, float]:
    """Over the responses that have a reward; zeros where none has."""
    scored = reward_PK[np.isfinite(reward_PK)]
    rows = [row[np.isfinite(row)] for row in reward_PK if np.isfinite(row).any()]
    if not rows:
        return {"reward": math.nan, "best_reward": math.nan, "reward_spread": 0.0, "perfect": 0.0}
    return {
        "reward": float(scored.mean()),
        "best_reward": float(np.mean([row.max() for row in rows])),
        "reward_spread": float(np.mean([row.std() for row in rows])),
        "perfect": float((scored >= 1).mean()),
    }


class RunLog:
    """The files. A context manager."""

    def __init__(self, folder: Path, done: int, last: Mapping[str, Any] | None = None) -> None:
        """done: iterations that count; what an interrupted run wrote beyond them is taken out. last: the
        newest one, which was perhaps not written any more."""
        from pomona.adapters.training.event_log import FOLDER, EventLog

        self.folder = folder
        if done == 0:
            shutil.rmtree(folder / FOLDER, ignore_errors=True)  # of an earlier run
            shutil.rmtree(folder / SAMPLES, ignore_errors=True)
        (folder / SAMPLES).mkdir(exist_ok=True)
        self.iterations = [one for one in read_log(folder / LOG) if one.iteration <= done]
        if last is not None and len(self.iterations) < done:
            self.iterations.append(Iteration(**last))
        self._rewrite()
        self._events = EventLog(folder, step=done)

    def add(self, one: Iteration) -> None:
        self.iterations.append(one)
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(_line(one))
        values = {
            f"mdloo/{name}": float(value)
            for name, value in asdict(one).items()
            if isinstance(value, int | float) and name != "iteration" and math.isfinite(value)
        }
        values |= {f"problems/{kind}": float(count) for kind, count in one.problems.items()}
        self._events.write(values, one.iteration)

    def samples(
        self,
        iteration: int,
        prompts: Sequence[Prompt],
        texts: Sequence[Sequence[str]],
        reward_PK: NDArray[np.float64],
    ) -> None:
        parts = [f"# Iteration {iteration}\n"]
        for prompt, answers, rewards in list(zip(prompts, texts, reward_PK, strict=True))[:SAMPLE_PROMPTS]:
            parts.append(f"## {prompt.messages[-1]['content'][:MAX_SHOWN]}\n")
            order = np.argsort(np.nan_to_num(rewards, nan=-math.inf), kind="stable")[::-1]
            for place in dict.fromkeys([0, len(order) // 2, len(order) - 1]):
                number = int(order[place])
                body = answers[number][:MAX_SHOWN].replace("\n", "\n    ")
                parts.append(f"reward {rewards[number]:.3f}\n\n    {body}\n")
        (self.folder / SAMPLES / f"{iteration:05d}.md").write_text("\n".join(parts), encoding="utf-8")

    def _rewrite(self) -> None:
        new = self.folder / f"{LOG}.new"
        new.write_text("".join(map(_line, self.iterations)), encoding="utf-8")
        new.replace(self.folder / LOG)

    def __enter__(self) -> RunLog:
        self._events.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._events.__exit__(*error)


def read_log(path: Path) -> list[Iteration]:
    """Whole lines only."""
    found: list[Iteration] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            raw: dict[str, Any] = json.loads(line)
            raw |= {key: math.nan for key, value in raw.items() if value is None}
            found.append(Iteration(**raw))
    return found


def _line(one: Iteration) -> str:
    """JSON has no NaN: null stands for it."""
    plain = {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in asdict(one).items()
    }
    return json.dumps(plain) + "\n"
