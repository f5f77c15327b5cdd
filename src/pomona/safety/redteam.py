"""The automatic red team: prompts in many dresses to a model, every reply judged (report, sections 7.8, 8.4).

    report = red_team(model, prompts, options, work=folder)
    report.rows()            # violation rates by category and mutation, over-refusal on benign look-alikes

Every prompt is asked as it is; harmful ones also in each mutation. Replies are kept in `work` as they come,
by model, adapter and conversation: an interrupted run goes on, a larger one asks only what is new. Prompts
and replies may be vile: they lie in files that their owner alone can read, and are never printed.

A guard is `Callable[[str, str], bool]`: of the last message and a reply ("" before there is one), True to
block. It is asked after the replies are made, so that one set of replies tells what the model does with and
without it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pomona.errors import PomonaError
from pomona.models.locking import locked_folder
from pomona.models.model_directory import parse_json_object
from pomona.runtime.adapter_file import WEIGHTS_FILE
from pomona.runtime.backend import LanguageModel
from pomona.runtime.model import Model
from pomona.runtime.remote import RemoteModel
from pomona.safety.answers import answer_all
from pomona.safety.judge_rules import judge
from pomona.safety.mutations import PLAIN, Message, Mutation, mutations
from pomona.safety.prompt_sets import SafetyPrompt, spread
from pomona.safety.rates import JudgeError
from pomona.safety.redteam_report import Attempt, RedTeamReport

Guard = Callable[[str, str], bool]
Progress = Callable[[str, int, int], None]
FORMAT = 1  # of the kept replies
REPLIES = "replies.jsonl"


@dataclass(frozen=True)
class RedTeamOptions:
    """mutated: of how many harmful prompts, evenly over all, each mutation is tried; None: of all."""

    mutations: tuple[str, ...] = ("all",)
    mutated: int | None = 100
    max_new_tokens: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        mutations(self.mutations)
        if not 1 <= self.max_new_tokens <= 4096:
            raise PomonaError(f"max_new_tokens = {self.max_new_tokens}: must lie in 1 .. 4096")
        if self.mutated is not None and self.mutated < 0:
            raise PomonaError(f"mutated = {self.mutated}: must be 0 or more")


@dataclass(frozen=True)
class Question:
    """A prompt in one dress."""

    prompt: SafetyPrompt
    mutation: str
    messages: tuple[Message, ...]

    @property
    def id(self) -> str:
        return f"{self.prompt.id}:{self.mutation}"

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.messages).encode()).hexdigest()[:24]


def questions(prompts: Sequence[SafetyPrompt], options: RedTeamOptions) -> list[Question]:
    """All that will be asked; the same prompt is always dressed in the same way."""
    chosen = mutations((PLAIN, *options.mutations))
    found = [_question(prompt, chosen[0], options) for prompt in prompts]
    harmful = spread([prompt for prompt in prompts if prompt.harmful], options.mutated)
    found += [_question(prompt, mutation, options) for mutation in chosen[1:] for prompt in harmful]
    return found


def _question(prompt: SafetyPrompt, mutation: Mutation, options: RedTeamOptions) -> Question:
    rng = random.Random(f"{options.seed}/{prompt.id}/{mutation.name}")
    return Question(prompt, mutation.name, tuple(mutation.apply(prompt.text, rng)))


def red_team(
    model: LanguageModel,
    prompts: Sequence[SafetyPrompt],
    options: RedTeamOptions,
    *,
    work: Path,
    adapter: str | None = None,
    guard: Guard | None = None,
    guard_name: str | None = None,
    judge_error: JudgeError | None = None,
    progress: Progress | None = None,
) -> RedTeamReport:
    """work: a folder for replies. adapter: as a session's, "base" for none. judge_error: for corrected rates.

    PomonaError: no prompts, an adapter that the model does not have, a server that fails.
    """
    if not prompts:
        raise PomonaError("no prompts to ask; give another set, or a larger limit")
    started = time.perf_counter()
    asked = questions(prompts, options)
    name, mark, ran = _identity(model, adapter)
    folder = work / _digest(mark, options.max_new_tokens)
    with locked_folder(folder), _Kept(folder / REPLIES) as kept:
        missing = [question for question in asked if question.key not in kept.replies]
        done = len(asked) - len(missing)

        def keep(number: int, text: str) -> None:
            nonlocal done
            kept.add(missing[number].key, text)
            done += 1
            if progress is not None:
                progress("replies", done, len(asked))

        if missing:
            answer_all(
                model,
                [question.messages for question in missing],
                keep,
                adapter=adapter,
                max_new_tokens=options.max_new_tokens,
            )
        attempts = tuple(_attempt(question, kept.replies[question.key]) for question in asked)
    report = RedTeamReport(
        model=name,
        mark=mark,
        adapter=ran,
        guard=None,
        options={**asdict(options), "mutations": list(options.mutations)},
        date=datetime.date.today().isoformat(),
        seconds=time.perf_counter() - started,
        judge_error=judge_error,
        attempts=attempts,
    )
    return report if guard is None else guarded(report, guard, guard_name or "guard", progress)


def guarded(
    report: RedTeamReport, guard: Guard, name: str, progress: Progress | None = None
) -> RedTeamReport:
    """The same replies behind a guard of input and output."""
    found = []
    for number, attempt in enumerate(report.attempts):
        if progress is not None:
            progress("guard", number, len(report.attempts))
        blocked: Literal["input", "output"] | None = None
        if guard(attempt.asked, ""):
            blocked = "input"
        elif guard(attempt.asked, attempt.reply):
            blocked = "output"
        found.append(replace(attempt, blocked=blocked))
    return replace(report, guard=name, attempts=tuple(found))


def _attempt(question: Question, reply: str) -> Attempt:
    asked = question.messages[-1]["content"]
    verdict = judge(question.prompt.text, reply, asked)
    return Attempt(
        question.id,
        question.prompt,
        question.mutation,
        asked,
        reply,
        verdict.kind,
        verdict.why,
    )


def _identity(model: LanguageModel, adapter: str | None) -> tuple[str, str, str | None]:
    """Name, a mark that is equal where replies are equal, and the adapter that runs."""
    if isinstance(model, Model):
        ran = model.adapter_for(adapter)
        mark = model.engine.fingerprint
        if ran is not None:
            [directory] = [one.directory for one in model.adapters.status() if one.name == ran]
            with (directory / WEIGHTS_FILE).open("rb") as file:
                mark += "+" + hashlib.file_digest(file, "sha256").hexdigest()[:16]
        return model.engine.directory.name, mark, ran
    if isinstance(model, RemoteModel):
        return model.model, f"{model.address.base_url} {model.model} {adapter or ''}", adapter
    return type(model).__name__, f"{type(model).__name__} {adapter or ''}", adapter


def _digest(mark: str, max_new_tokens: int) -> str:
    return hashlib.sha256(f"{FORMAT}/{mark}/{max_new_tokens}".encode()).hexdigest()[:16]


class _Kept:
    """Replies by conversation, in a file that grows line by line. A last line that was cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, str] = {}

    def __enter__(self) -> _Kept:
        try:
            self._file = os.fdopen(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600), "r+b")
        except OSError as error:
            raise PomonaError(
                f"{self.path}: cannot be kept ({error.strerror}); choose another folder"
            ) from error
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            row = parse_json_object(line, str(self.path))
            if not isinstance(row.get("key"), str) or not isinstance(row.get("reply"), str):
                self._file.close()
                raise PomonaError(f"{self.path}: holds no replies; give --fresh to begin anew")
            self.replies[row["key"]] = row["reply"]
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)
        return self

    def add(self, key: str, reply: str) -> None:
        self.replies[key] = reply
        line = json.dumps({"key": key, "reply": reply})
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()


def kept_files(work: Path) -> Iterator[Path]:
    """The files of replies in a folder, for --fresh."""
    yield from work.glob(f"*/{REPLIES}")


def load_guard(dotted: str) -> Guard:
    """The guard that `package.module.function` names: of (message, reply), True to block."""
    import importlib

    module, _, name = dotted.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PomonaError(
            f"guard {dotted}: cannot be found ({error}); write package.module.function"
        ) from error
    if not callable(found):
        raise PomonaError(f"guard {dotted}: is no function; write package.module.function")

    def guard(message: str, reply: str) -> bool:
        return bool(found(message, reply))

    return guard
