"""iTeC, the iterative teaching committee: rounds of sampling, choosing and training (report, section 4.5).

    pomona align itec smollm2-135m-4bit prompts.jsonl --rounds 2 --work committee

One round:

    1 sample      every member answers every prompt, all in one mixed batch        responses.jsonl
    2 to judge    pairs for people; their preferences may come back as a file      to_judge.jsonl
    3 refresh     the reward model learns from those preferences, if there are any reward-model/
    4 score       the newest reward model, or a verifier                           scores.json
    5 pick        the best response per prompt; pairs from the rest                picks.jsonl, pairs.jsonl
    6 train       a new member by every technique                                  member-NAME.json, NAME/
    7 evaluate    old and new members on held-out prompts, in one mixed batch      committee.json
    8 report      one page                                                         report.html

Each step leaves its files whole or not at all, and is skipped when they are there: an interrupted round goes
on where it was. Within a step, responses and training have their own checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pomona.adapters.options import AdaptOptions
from pomona.errors import PomonaError
from pomona.models.locking import locked_folder
from pomona.models.model_directory import Progress
from pomona.models.palettized import describe
from pomona.posttraining.committee import (
    Answer,
    Member,
    best_per_prompt,
    first_committee,
    mean_reward,
    mixed_jobs,
    next_committee,
    pairs_to_judge,
    preference_pairs,
    seat,
)
from pomona.posttraining.itec_members import Technique, train_member
from pomona.posttraining.mdloo_options import MdlooOptions
from pomona.posttraining.options import Count, Options, PreferenceOptions, RewardOptions
from pomona.posttraining.prompts import Prompt
from pomona.posttraining.rewards import Reward, judge, parse_reward
from pomona.posttraining.rollout_store import sample_kept
from pomona.posttraining.rollouts import LocalRollOuts, RollOuts, RollOutSampling

STATE = "itec.json"
KEYS_PER_ROUND = 1 << 32  # of the responses' seeds


class PickOptions(Options):
    """Of the fine-tuning on the picks; None: adapt's own choice by the number of rows."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    lr: float | None = None
    epochs: Count | None = None
    batch: Count | None = None
    minutes: float | None = None

    def adapt(self, seed: int) -> AdaptOptions:
        return AdaptOptions(**self.model_dump(), seed=seed)


class ItecOptions(Options):
    """The report gives no number here; these are our own.

    techniques: of the new members of a round. committee: members at the most. samples: of every member, per
    prompt. prompts: of a round, all by default. held_out: prompts that only judge. least_reward: below it
    even the best response of a prompt is not learnt. wait: stop each round after step 2 until people's
    preferences are given. judge: pairs for them."""

    techniques: tuple[Technique, ...] = ("rs", "dpo", "ipo", "mdloo")
    committee: Annotated[int, Field(ge=1, le=64)] = 5
    samples: Annotated[int, Field(ge=1, le=1024)] = 2
    prompts: Count | None = None
    held_out: Annotated[int, Field(ge=1, le=100_000)] = 32
    max_new_tokens: Annotated[int, Field(ge=1, le=32_768)] = 128
    temperature: Annotated[float, Field(ge=0.05, le=10)] = 1.0
    empty_reward: float = 0.0
    least_reward: float | None = None
    wait: bool = False
    judge: Annotated[int, Field(ge=0, le=100_000)] = 100
    picks: PickOptions = PickOptions()
    preference: PreferenceOptions = PreferenceOptions()
    mdloo: MdlooOptions = MdlooOptions(iterations=4)
    reward_model: RewardOptions = RewardOptions()
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0


Step = Literal["sample", "to judge", "refresh", "score", "pick", "train", "evaluate", "report"]
OnStep = Callable[[int, str, str], None]  # round, step, what came of it


class WaitingForPreferences(PomonaError):  # noqa: N818 - it is no failure
    """The round stopped for people; `path` holds what they may judge."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: waits for preferences; give them with --preferences FILE and go on")
        self.path = path


def itec(
    base: Path | str,
    prompts: Sequence[Prompt],
    reward: str,
    *,
    work: Path | str,
    rounds: int = 1,
    options: ItecOptions | None = None,
    members: Sequence[tuple[str, Path]] = (),
    preferences: Path | None = None,
    restart: bool = False,
    threads: int | None = None,
    rollouts: RollOuts | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Runs `rounds` rounds more in the folder `work`, beginning with one that was interrupted; gives the
    state: rounds that are done, the committee, the newest reward.

    reward: as parse_reward takes it. members: (name, adapter) of the first committee, beside the base.
    preferences: what people said about the round that runs. restart: forget what is in `work`.
    Raises WaitingForPreferences with options.wait, PomonaError for a folder of another base or other prompts.
    """
    base, work = Path(base), Path(work)
    options = options or ItecOptions()
    if options.held_out >= len(prompts):
        raise PomonaError(
            f"{len(prompts)} prompts, of which {options.held_out} are held out; give more prompts"
        )
    with locked_folder(work):
        state = _read_state(work, base, prompts, reward, members, restart)
        own = rollouts is None
        runtime = LocalRollOuts(base, threads=threads) if rollouts is None else rollouts
        try:
            goal = state["rounds"] + rounds
            while state["rounds"] < goal:
                one = Round(base, prompts, work, state, options, runtime, threads, progress, on_step)
                state = one.run(preferences)
                _write_json(work / STATE, state)
                preferences = None  # they belong to one round
        finally:
            if own:
                runtime.close()
    return state


class Round:
    """One round in its folder."""

    def __init__(
        self,
        base: Path,
        prompts: Sequence[Prompt],
        work: Path,
        state: dict[str, Any],
        options: ItecOptions,
        rollouts: RollOuts,
        threads: int | None,
        progress: Progress | None,
        on_step: OnStep | None,
    ) -> None:
        self.base, self.options, self.rollouts = base, options, rollouts
        self.threads, self.progress, self.on_step = threads, progress, on_step
        self.state = state
        self.number = state["rounds"] + 1
        self.folder = work / f"round-{self.number:02d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.committee = [Member(**member) for member in state["committee"]]
        self.held_out = prompts[: options.held_out]
        learn = prompts[options.held_out :]
        count = min(options.prompts or len(learn), len(learn))
        first = (self.number - 1) * count  # rounds go through the prompts one after the other
        self.learn = [learn[(first + place) % len(learn)] for place in range(count)]
        self.reward_spec: str = state["reward"]

    def run(self, preferences: Path | None) -> dict[str, Any]:
        """The state after the round."""
        answers = self._sampled()
        self._to_judge(answers, preferences)
        self._refresh()
        with contextlib.closing(parse_reward(self.reward_spec)) as reward:
            answers = self._scored(answers, reward)
            self._pick(answers)
            new = self._trained(reward)
            committee = self._evaluated(new, reward)
        self._report(answers, new, committee)
        return {
            **self.state,
            "rounds": self.number,
            "committee": [member.to_json() for member in committee],
            "reward": self.reward_spec,
        }

    # --- the steps ----------------------------------------------------------------------------------------

    def _sampled(self) -> list[Answer]:
        path = self.folder / "responses.jsonl"
        if not path.exists():
            jobs, texts = self._answers(self.committee, self.learn, self.options.samples, "responses.raw")
            names = [member.name for _ in self.learn for member in self.committee]
            rows = [
                {"prompt": number // len(self.committee), "member": names[number], "text": text}
                for number in range(jobs)
                for text in texts[number]
            ]
            _write_jsonl(path, rows)
            self._tell("sample", f"{len(rows)} responses of {len(self.committee)} members")
        return [Answer(row["prompt"], row["member"], row["text"]) for row in _read_jsonl(path)]

    def _answers(
        self, members: Sequence[Member], prompts: Sequence[Prompt], n: int, file: str
    ) -> tuple[int, list[list[str]]]:
        seat(self.rollouts, members)
        ids = [self.rollouts.render(prompt.messages) for prompt in prompts]
        jobs = mixed_jobs(members, ids, n, first_key=self.number * KEYS_PER_ROUND)
        sampling = RollOutSampling(self.options.max_new_tokens, self.options.temperature, self.options.seed)
        path = self.folder / file
        found = sample_kept(self.rollouts, jobs, sampling, path, on_count=self._count)
        return len(jobs), [[self.rollouts.text(one) for one in group] for group in found]

    def _to_judge(self, answers: Sequence[Answer], preferences: Path | None) -> None:
        path, given = self.folder / "to_judge.jsonl", self.folder / "preferences.jsonl"
        if not path.exists():
            _write_jsonl(path, pairs_to_judge(answers, self.learn, self.options.judge))
        if preferences is not None and not given.exists():
            from pomona.posttraining.preferences import read_preferences, write_preferences

            rows, report = read_preferences(preferences)
            if not rows:
                raise PomonaError(f"{preferences}: holds no sound preference ({report.first_bad()}); mend it")
            write_preferences(given, rows)
            unsound = report.read - report.good
            self._tell("to judge", f"{len(rows)} preferences came back, {unsound} were unsound")
        if self.options.wait and not given.exists():
            raise WaitingForPreferences(path)

    def _refresh(self) -> None:
        """A reward model learns from all preferences so far; a verifier has nothing to learn."""
        if not self.reward_spec.startswith("model:"):
            return
        target = self.folder / "reward-model"
        files = sorted(self.folder.parent.glob("round-*/preferences.jsonl"))
        if (self.folder / "preferences.jsonl").exists() and not target.exists():
            from pomona.posttraining.itec_members import refresh_reward

            refresh_reward(
                self.base,
                files,
                target,
                self.folder / "work" / "reward",
                self.options.reward_model,
                self.threads,
            )
            self._tell("refresh", f"a reward model from {len(files)} files of preferences")
        if target.exists():
            self.reward_spec = f"model:{target}"

    def _scored(self, answers: Sequence[Answer], reward: Reward) -> list[Answer]:
        path = self.folder / "scores.json"
        if not path.exists():
            pairs = [(self.learn[answer.prompt], answer.text) for answer in answers]
            judged = judge(reward, pairs, empty_reward=self.options.empty_reward)
            values = [value if math.isfinite(value) else None for value in judged.values]
            scores = {"reward": reward.name, "rewards": values, "problems": dict(judged.problems)}
            _write_json(path, {**scores, "examples": judged.examples})
            told = ", ".join(f"{count} {kind}" for kind, count in sorted(judged.problems.items()))
            self._tell("score", f"by {reward.name}" + (f"; {told}" if told else ""))
        values = json.loads(path.read_text(encoding="utf-8"))["rewards"]
        return [
            replace(answer, reward=math.nan if value is None else value)
            for answer, value in zip(answers, values, strict=True)
        ]

    def _pick(self, answers: Sequence[Answer]) -> None:
        picks, pairs = self.folder / "picks.jsonl", self.folder / "pairs.jsonl"
        if pairs.exists():
            return
        least = -math.inf if self.options.least_reward is None else self.options.least_reward
        best = best_per_prompt(answers, least=least)
        rows = [{"messages": self.learn[p].conversation(best[p].text)} for p in sorted(best)]
        _write_jsonl(picks, rows)
        found = [
            {"prompt": list(self.learn[p].messages), "chosen": good.text, "rejected": bad.text}
            for p, good, bad in preference_pairs(answers)
        ]
        given = self.folder / "preferences.jsonl"
        _write_jsonl(pairs, found + (_read_jsonl(given) if given.exists() else []))
        self._tell("pick", f"{len(rows)} best responses, {len(found)} pairs")

    def _trained(self, reward: Reward) -> list[Member]:
        new = []
        for technique in self.options.techniques:
            path = self.folder / f"member-{technique}.json"
            if not path.exists():
                name = f"{technique}-{self.number}"
                directory, note = train_member(
                    technique,
                    self.base,
                    self.folder,
                    name,
                    prompts=self.learn,
                    reward=reward,
                    rollouts=self.rollouts,
                    start=self.committee[0].directory,
                    options=self.options,
                    threads=self.threads,
                    progress=self.progress,
                )
                _write_json(path, {"name": name, "directory": directory and str(directory), "note": note})
                self._tell("train", f"{name}: {note}")
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["directory"] is not None:
                new.append(Member(found["name"], technique, self.number, found["directory"]))
        return new

    def _evaluated(self, new: Sequence[Member], reward: Reward) -> list[Member]:
        path = self.folder / "committee.json"
        if not path.exists():
            everybody = [*self.committee, *new]
            jobs, texts = self._answers(everybody, self.held_out, self.options.samples, "held_out.raw")
            pairs = [
                (self.held_out[number // len(everybody)], text)
                for number in range(jobs)
                for text in texts[number]
            ]
            values = judge(reward, pairs, empty_reward=self.options.empty_reward).values
            measured, by_prompt = [], {}
            for place, member in enumerate(everybody):
                own = [
                    mean_reward(values[number * self.options.samples : (number + 1) * self.options.samples])
                    for number in range(place, jobs, len(everybody))
                ]
                by_prompt[member.name] = own
                measured.append(replace(member, reward=mean_reward(own)))
            chosen = next_committee(measured, self.options.committee)
            _write_json(
                path,
                {
                    "measured": [m.to_json() for m in measured],
                    "by_prompt": by_prompt,
                    "committee": [m.to_json() for m in chosen],
                },
            )
            told = ", ".join(f"{m.name} {m.reward:.3f}" for m in measured if m.reward is not None)
            self._tell("evaluate", f"held-out reward: {told}")
        raw = json.loads(path.read_text(encoding="utf-8"))
        return [Member(**member) for member in raw["committee"]]

    def _report(self, answers: Sequence[Answer], new: Sequence[Member], committee: Sequence[Member]) -> None:
        from pomona.posttraining.itec_report import round_page

        evaluated = json.loads((self.folder / "committee.json").read_text(encoding="utf-8"))
        notes = [
            json.loads((self.folder / f"member-{technique}.json").read_text(encoding="utf-8"))
            for technique in self.options.techniques
        ]
        scores = json.loads((self.folder / "scores.json").read_text(encoding="utf-8"))
        page = round_page(
            self.number,
            self.learn,
            answers,
            [Member(**member) for member in evaluated["measured"]],
            evaluated["by_prompt"],
            [member.name for member in committee],
            notes,
            scores["reward"],
            scores["problems"],
        )
        _write_text(self.folder / "report.html", page)
        self._tell("report", str(self.folder / "report.html"))

    def _tell(self, step: Step, what: str) -> None:
        if self.on_step is not None:
            self.on_step(self.number, step, what)

    def _count(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress("sample", done, total)


def _read_state(
    work: Path,
    base: Path,
    prompts: Sequence[Prompt],
    reward: str,
    members: Sequence[tuple[str, Path]],
    restart: bool,
) -> dict[str, Any]:
    from pomona.posttraining.mdloo import prompts_digest

    path = work / STATE
    mine = {"base": describe(base).fingerprint, "prompts": prompts_digest(prompts)}
    if restart:
        for folder in work.glob("round-*"):
            shutil.rmtree(folder)
        path.unlink(missing_ok=True)
    if path.exists():
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {key: state.get(key) for key in mine} != mine:
            raise PomonaError(f"{work}: belongs to another base or other prompts; choose another --work")
        return state
    committee = [member.to_json() for member in first_committee(base, members)]
    state = {"version": 1, **mine, "rounds": 0, "committee": committee, "reward": reward}
    _write_json(path, state)
    return state


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    # "\u2028" and the like are escaped, so that a line stays a line.
    _write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
