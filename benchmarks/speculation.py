"""Prompt-lookup speculation against plain decoding, with the same model in the same run.

    python -m benchmarks.speculation --quick
    python -m benchmarks.speculation --threads 1 --json speculation.json

Four sets of prompts. Every prompt is answered with and without drafts in turn, and both must give the same
tokens; what is compared is the time from the first token to the last.

- proofreading, the model's own answers: passages of the built-in texts with spelling errors, to be corrected.
- proofreading, the right answers: the same prompts, but every token of the answer is prescribed, by masks,
  to be that of the text without errors: what a model answers that does the work well. Drafts come from
  prompt and answer so far, as ever; with and without drafts the same masks are applied.
- summarising and chat, the model's own answers. In chat there is little to copy: here the drafts must keep
  out of the way.

The errors: every word of four letters or more has one with a probability of 1 in 10, in equal parts two
letters in the wrong order, one left out, one twice, or another vowel; never at the first letter.
"""

from __future__ import annotations

import argparse
import difflib
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import (
    BenchmarkError,
    Goal,
    Report,
    interleave,
    machine_facts,
    median_and_range,
    ratios,
    run_command,
    usable_cores,
)

if TYPE_CHECKING:
    from pomona.runtime.model import Model

ERRORS = 0.1
PASSAGE = 350  # characters at least
CHAT = ("explain", "write", "list", "advice", "arithmetic", "dialogue")
WITH, WITHOUT = "with", "without"


@dataclass
class Task:
    """A prompt, the tokens that the answer must have (if any), and what became of it."""

    prompt_ids: list[int]
    max_new_tokens: int
    answer: list[int] | None = None
    expected: str | None = None  # the text that a perfect answer has
    tokens: list[int] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    steps: int = 0


class Prescribed:
    """Stands where a guide does, and allows at every place the one token that the answer has there.

    Unlike a guide it does not tell which drafts are wrong: a wrong draft is verified and refused.
    """

    def __init__(self, answer: Sequence[int], vocabulary: int) -> None:
        self._answer = answer
        self._words = (vocabulary + 31) // 32
        self._place = 0

    @property
    def stopped(self) -> bool:
        return self._place == len(self._answer)

    def mask(self) -> NDArray[np.int32]:
        _, masks = self.masks([])
        return masks.reshape(-1)

    def masks(self, drafts: Sequence[int]) -> tuple[list[int], NDArray[np.int32]]:
        drafts = drafts[: len(self._answer) - self._place - 1]
        masks = np.zeros((1 + len(drafts), self._words), np.uint32)
        for row, token in enumerate(self._answer[self._place : self._place + len(masks)]):
            masks[row, token // 32] = np.uint32(1) << np.uint32(token % 32)
        signed: NDArray[np.int32] = masks.view(np.int32)
        return list(drafts), signed

    def accept(self, token: int) -> None:
        assert token == self._answer[self._place]
        self._place += 1

    def begin(self, max_new_tokens: int) -> list[int]:
        return []

    def advance(self, token: int) -> list[int]:
        self.accept(token)
        return [token]


def passages(text: str) -> list[str]:
    """Whole sentences of one paragraph or several, about PASSAGE characters each."""
    found, current = [], ""
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        current = f"{current} {sentence}".strip()
        if len(current) >= PASSAGE:
            found.append(current)
            current = ""
    return found


def with_errors(text: str, seed: int) -> str:
    """The text with errors of spelling; the module's docstring says which."""
    draw = random.Random(seed)

    def spoil(match: re.Match[str]) -> str:
        word = match.group()
        if draw.random() >= ERRORS:
            return word
        at, kind = draw.randrange(1, len(word) - 1), draw.randrange(4)
        vowels = [i for i in range(1, len(word)) if word[i] in "aeiou"]
        if kind == 3 and vowels:
            at = draw.choice(vowels)
            return word[:at] + draw.choice("aeiou".replace(word[at], "")) + word[at + 1 :]
        if kind == 2:
            return word[: at + 1] + word[at:]
        if kind == 1:
            return word[:at] + word[at + 1 :]
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return re.sub(r"[A-Za-z]{4,}", spoil, text)


def tasks(model: Model, quick: bool) -> dict[str, list[Task]]:
    """The sets by name."""
    from pomona.data.builtin_text import calibration_prompts, evaluation_text

    def rendered(request: str, system: str | None = None) -> list[int]:
        head = [{"role": "system", "content": system}] if system else []
        return model.render([*head, {"role": "user", "content": request}])

    own, right, summaries = [], [], []
    for number, passage in enumerate(passages(evaluation_text())):
        request = (
            "Correct the spelling of this text. Answer with the whole corrected text and nothing else.\n\n"
            f"Text: {with_errors(passage, number)}"
        )
        ids, answer = rendered(request), model.tokenizer.encode(passage)
        own.append(Task(ids, len(answer) + 16, expected=passage))
        right.append(Task(ids, len(answer), answer=answer, expected=passage))
        summaries.append(
            Task(rendered(f"Summarise this text in one or two sentences.\n\nText: {passage}"), 96)
        )
    chat = [
        Task(rendered(prompt.user, prompt.system), 128)
        for prompt in calibration_prompts()
        if prompt.category in CHAT
    ]
    return {
        "proofreading, own answers": own[: 20 if quick else None],
        "proofreading, right answers": right[: 20 if quick else None],
        "summarising, own answers": summaries[: 6 if quick else 12],
        "chat, own answers": chat[: 6 if quick else 16],
    }


def seconds(model: Model, set_of_tasks: Sequence[Task], drafts: bool) -> float:
    """Time of decoding all answers, their first tokens not counted."""
    from pomona.runtime.generate import generate
    from pomona.runtime.lookup import Lookup
    from pomona.runtime.sampling import Sampling

    total = 0.0
    for task in set_of_tasks:
        vocabulary = model.engine.config.vocab_size
        guide: Any = None if task.answer is None else Prescribed(task.answer, vocabulary)
        lookup = Lookup(task.prompt_ids, model.engine.step_costs) if drafts else None
        answer = generate(
            model.engine,
            task.prompt_ids,
            sampling=Sampling(),
            max_new_tokens=task.max_new_tokens,
            stop_ids=model.tokenizer.eos_token_ids,
            guide=guide,
            lookup=lookup or False,
        )
        tokens = [token for token in [next(answer, None)] if token is not None]
        started = time.perf_counter()
        tokens += answer
        total += time.perf_counter() - started
        if task.tokens and task.tokens != tokens:
            raise BenchmarkError("an answer with drafts differs from the one without: this is a bug")
        task.tokens = tokens
        if lookup is not None:
            task.drafted, task.accepted = lookup.drafted, lookup.accepted
    return total


def run(options: argparse.Namespace) -> Report:
    """Measures everything that `options` asks for."""
    from pomona.runtime.model import Model

    machine = machine_facts()
    rounds = options.rounds or (3 if options.quick else 5)
    model = Model.load(options.model, threads=options.threads, isa=options.isa, prefix_cache=True)
    sets = tasks(model, options.quick)
    times: dict[str, dict[str, list[float]]] = {}
    for name, members in sets.items():
        # Every prompt by itself, so that a slow moment falls on both sides of the same answer.
        seconds(model, members, False)  # warm: prompts are in the prefix cache from here on
        times[name] = {WITHOUT: [0.0] * rounds, WITH: [0.0] * rounds}
        for done, task in enumerate(members):
            _progress(name, done, len(members))
            sides = {
                WITHOUT: partial(seconds, model, [task], False),
                WITH: partial(seconds, model, [task], True),
            }
            figures = interleave(sides, rounds, settle=0.0)
            for side, values in figures.items():
                times[name][side] = [a + b for a, b in zip(times[name][side], values, strict=True)]
        _progress(name, len(members), len(members))
    return report(options, machine, model, sets, times, rounds)


def report(
    options: argparse.Namespace,
    machine: dict[str, Any],
    model: Model,
    sets: dict[str, list[Task]],
    times: dict[str, dict[str, list[float]]],
    rounds: int,
) -> Report:
    """The table, what to know about it, and the goals."""
    rows: list[dict[str, str | float]] = []
    gains: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, members in sets.items():
        gain = ratios(times[name][WITHOUT], times[name][WITH])
        gains[name] = statistics.median(gain)
        written = sum(len(task.tokens) - 1 for task in members)
        drafted, accepted = (
            sum(task.drafted for task in members),
            sum(task.accepted for task in members),
        )
        details[name] = {
            "answers": len(members),
            "tokens": written,
            "drafted": drafted,
            "accepted": accepted,
            "tokens_per_step": written / max(written - accepted, 1),
            "seconds": times[name],
            "gain": gains[name],
        }
        rows.append(
            {
                "prompts": name,
                "answers": f"{len(members)}",
                "tokens/s without": written / statistics.median(times[name][WITHOUT]),
                "tokens/s with": written / statistics.median(times[name][WITH]),
                "times": median_and_range(gain),
                "drafts accepted": f"{accepted / drafted:.0%}" if drafted else "-",
                "tokens per step": written / max(written - accepted, 1),
            }
        )
    own = sets["proofreading, own answers"]
    likeness = [
        difflib.SequenceMatcher(
            None, model.tokenizer.decode(task.tokens), task.expected or "", autojunk=False
        ).ratio()
        for task in own
    ]
    threads = f"{model.engine.threads} thread{'s' if model.engine.threads > 1 else ''}"
    costs = {rows_of_step: model.engine.step_costs.seconds(rows_of_step) for rows_of_step in (1, 2, 4, 8, 16)}
    return Report(
        benchmark="speculation",
        machine=machine,
        results={
            "model": options.model,
            "threads": model.engine.threads,
            "isa": model.engine.isa,
            "rounds": rounds,
            "rows": rows,
            "notes": notes(options, model, rounds, likeness, costs),
            "sets": details,
            "likeness": statistics.median(likeness),
            "step_seconds": costs,
        },
        goals=[
            Goal(
                f"proofreading, right answers, {threads}, times plain decoding",
                gains["proofreading, right answers"],
                1.5,
            ),
            Goal(
                f"proofreading, own answers, {threads}, times plain decoding",
                gains["proofreading, own answers"],
                1.5,
            ),
            Goal(f"chat, {threads}, times plain decoding", gains["chat, own answers"], 0.98),
        ],
    )


def notes(
    options: argparse.Namespace,
    model: Model,
    rounds: int,
    likeness: Sequence[float],
    costs: dict[int, float | None],
) -> list[str]:
    """What a reader must know to judge the table."""
    base = costs[1] or 1.0
    steps = ", ".join(f"{rows}: {value / base:.2f}" for rows, value in costs.items() if value is not None)
    return [
        f"{options.model} on {model.engine.threads} thread(s), {model.engine.isa} kernels, greedy; {rounds} "
        "rounds, with and without in turn for every prompt. Times: median (lowest-highest) of the ratios.",
        "Decoding alone: from the first token of an answer to its last. All answers were the same token for "
        "token with and without drafts.",
        "Right answers: every token prescribed, by masks on both sides, to be that of the text without "
        "errors; drafts come from prompt and answer so far and are refused where they differ.",
        f"Own answers to proofreading: likeness to the right text {statistics.median(likeness):.2f} in the "
        f"median ({min(likeness):.2f}-{max(likeness):.2f}; 1 is equal): this model copies most of the text.",
        f"Time of a step by its rows, in times of one row, as learned in this run: {steps}.",
    ]


def _progress(label: str, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    if sys.stderr.isatty():
        print(f"\r{label}: {done}/{total}", end=end, file=sys.stderr, flush=True)
    elif done == 0:
        print(f"{label} ...", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speculation", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer prompts, 3 rounds: about a minute")
    add("--model", default="smollm2-135m-4bit", help="a model of the cache (default: %(default)s)")
    add("--threads", type=int, default=min(2, usable_cores()), help="(default: %(default)s)")
    add("--isa", default="auto", help="our kernels: auto, avx512, avx2 or scalar")
    add("--rounds", type=int, help="how often each side takes its turn (default: 5, or 3 with --quick)")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
