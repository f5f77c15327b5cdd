"""The committee of iTeC: who is in it, what its members are asked, whose response is the best (report, 4.5).

Members are adapters of one base, sampled in one mixed batch. The best response is chosen per prompt, not the
best member once for all. What could not be scored is neither best nor worst.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pomona.errors import PomonaError
from pomona.posttraining.prompts import Prompt
from pomona.posttraining.rollouts import Job, RollOuts
from pomona.runtime.adapter_file import CONFIG_FILE
from pomona.runtime.model import ADAPTERS_FOLDER, RECOVERY

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BASE_MEMBER = "start"  # the base with its recovery adapter, if it has one


@dataclass(frozen=True)
class Member:
    """directory: of its adapter; None: the base alone. reward: the mean on held-out prompts, once
    measured."""

    name: str
    technique: str
    round: int
    directory: str | None
    reward: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def first_committee(base: Path, given: Sequence[tuple[str, Path]]) -> list[Member]:
    """The base's member and the adapters that are given by name. PomonaError: a bad name, no adapter."""
    recovery = base / ADAPTERS_FOLDER / RECOVERY
    directory = str(recovery) if (recovery / CONFIG_FILE).is_file() else None
    found = [Member(BASE_MEMBER, "start", 0, directory)]
    for name, path in given:
        if not _NAME.fullmatch(name) or name in {member.name for member in found}:
            raise PomonaError(f"member {name!r}: is no new plain name; choose another")
        if not (path / CONFIG_FILE).is_file():
            raise PomonaError(f"{path}: no such adapter directory; give NAME=DIR with a PEFT directory")
        found.append(Member(name, name, 0, str(path.resolve())))
    return found


def seat(rollouts: RollOuts, members: Sequence[Member]) -> None:
    """Makes the members' adapters known to the runtime by their names."""
    for member in members:
        if member.directory is not None:
            rollouts.replace(member.name, member.directory)


def mixed_jobs(
    members: Sequence[Member], prompt_ids: Sequence[Sequence[int]], n: int, *, first_key: int = 0
) -> list[Job]:
    """n responses of every member to every prompt; a prompt's jobs stand side by side."""
    return [
        Job(tuple(ids), None if member.directory is None else member.name, n, first_key + key)
        for key, ids in enumerate(prompt_ids)
        for member in members
    ]


@dataclass(frozen=True)
class Answer:
    """What a member said to prompt number `prompt`. reward: NaN where it could not be scored."""

    prompt: int
    member: str
    text: str
    reward: float = math.nan


def mean_reward(values: Iterable[float | None]) -> float | None:
    """Of those that have been scored; None where none has."""
    scored = [value for value in values if value is not None and math.isfinite(value)]
    return sum(scored) / len(scored) if scored else None


def best_per_prompt(answers: Sequence[Answer], *, least: float = -math.inf) -> dict[int, Answer]:
    """Prompt -> its best answer, the first of equals. Prompts whose best has no reward, no text or one below
    `least` are left out."""
    best: dict[int, Answer] = {}
    for answer in answers:
        if not math.isfinite(answer.reward) or not answer.text.strip() or answer.reward < least:
            continue
        if answer.prompt not in best or answer.reward > best[answer.prompt].reward:
            best[answer.prompt] = answer
    return best


def preference_pairs(answers: Sequence[Answer]) -> list[tuple[int, Answer, Answer]]:
    """(prompt, best, worst) of every prompt where they differ in reward and text."""
    found = []
    best = best_per_prompt(answers)
    for prompt in sorted(best):
        others = [a for a in answers if a.prompt == prompt and math.isfinite(a.reward)]
        worst = min(others, key=lambda answer: answer.reward)
        if worst.reward < best[prompt].reward and worst.text.strip() != best[prompt].text.strip():
            found.append((prompt, best[prompt], worst))
    return found


def pairs_to_judge(answers: Sequence[Answer], prompts: Sequence[Prompt], most: int) -> list[dict[str, Any]]:
    """For people: two answers of different members to one prompt, without the members' names."""
    rows: list[dict[str, Any]] = []
    by_prompt: dict[int, list[Answer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    for prompt, given in sorted(by_prompt.items()):
        spoken = [answer for answer in given if answer.text.strip()]
        pair = next(
            ((a, b) for a in spoken for b in spoken if a.member != b.member and a.text != b.text), None
        )
        if pair is None or len(rows) == most:
            continue
        if prompt % 2:  # neither side is always the same member's
            pair = (pair[1], pair[0])
        rows.append({"prompt": list(prompts[prompt].messages), "a": pair[0].text, "b": pair[1].text})
    return rows


def next_committee(candidates: Sequence[Member], size: int) -> list[Member]:
    """The best on held-out prompts, of the new members and the old; among equals the newest. Members without
    a reward come last."""
    order = sorted(
        candidates,
        key=lambda member: (-math.inf if member.reward is None else member.reward, member.round),
        reverse=True,
    )
    return order[:size]
