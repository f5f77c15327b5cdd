"""Answers to many questions at once on our runtime, each kept as soon as it is there.

    asked = Asked(model, adapter, store)
    [["42"], ...] = asked.answers(questions, Sampling())

The scheduler batches them, with drafts from the prompt. The first question goes ahead alone: what the others
have in common with it (worked examples) is then in the prefix cache. An answer is kept under a hash of
everything that it depends on but the weights, whose file names them: a run that was stopped goes on, and one
with more items computes only the new ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from pomona.errors import PomonaError
from pomona.evaluation.generation_task import Question
from pomona.runtime.backend import Generation, Outcome
from pomona.runtime.dialects import Dialect
from pomona.runtime.local import LocalBackend
from pomona.runtime.model import Model
from pomona.runtime.output import TEXT
from pomona.runtime.reply import AnswerError
from pomona.runtime.sampling import Sampling
from pomona.runtime.scheduler import Request
from pomona.runtime.transcript import Entry, Instructions, Prompt, ToolCalls

Progress = Callable[[str, int, int], None]
TOGETHER = 64  # answers on their way at once
MAX_STORE_BYTES = 1 << 30


class AnswerStore:
    """Answers by key, one JSON line each in a file that only grows. A line that was cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        try:
            whole = not path.exists() or self._read()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise PomonaError(f"{path}: cannot be used ({error.strerror}); check the cache") from error
        if not whole:
            self._file.write("\n")

    def _read(self) -> bool:
        """Whether the last line is a whole one."""
        if self._path.stat().st_size > MAX_STORE_BYTES:
            raise PomonaError(f"{self._path}: is too large; run again with --fresh")
        raw = self._path.read_bytes()
        for line in raw.splitlines():
            try:
                key, text = json.loads(line)
                self._known[str(key)] = str(text)
            except (ValueError, TypeError, RecursionError):
                continue
        return not raw or raw.endswith(b"\n")

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def put(self, key: str, text: str) -> None:
        self._known[key] = text
        self._file.write(json.dumps([key, text]) + "\n")
        self._file.flush()

    def close(self) -> None:
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


class Asked:
    """One model and adapter. adapter: as a session's; "base" for none."""

    def __init__(
        self,
        model: Model,
        adapter: str | None,
        store: AnswerStore | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._model = model
        self._adapter = model.adapter_for(adapter)
        self._store = store
        self._progress = progress
        self.limit = min(model.engine.config.max_position_embeddings, model.engine.native.kv_tokens - 1)
        self.computed = 0  # answers that were not in the store

    def answers(
        self, questions: Sequence[Question], sampling: Sampling, label: str = "write answers"
    ) -> list[list[str]]:
        """For each question its answers, in order; "" where a chat does not fit the context, or no call can
        obey its tools' schemas. Calls are written in the `list` dialect of tool calls. Not for a running
        event loop."""
        return asyncio.run(self._all(questions, sampling, label))

    async def _all(self, questions: Sequence[Question], sampling: Sampling, label: str) -> list[list[str]]:
        jobs = [
            (question, replace(sampling, seed=sampling.seed + number))
            for question in questions
            for number in range(question.samples)
        ]
        gate = asyncio.Semaphore(TOGETHER)
        done = 0

        async def one(question: Question, own: Sampling) -> str:
            nonlocal done
            async with gate:
                text = await self._one(question, own)
            done += 1
            if self._progress is not None:
                self._progress(label, done, len(jobs))
            return text

        first = [await one(*job) for job in jobs[:1]]
        texts = iter([*first, *await asyncio.gather(*(one(*job) for job in jobs[1:]))])
        return [[next(texts) for _ in range(question.samples)] for question in questions]

    async def _one(self, question: Question, sampling: Sampling) -> str:
        key = _key(question, sampling)
        if self._store is not None and (known := self._store.get(key)) is not None:
            return known
        text = await (self._calls if question.tools else self._text)(question, sampling)
        self.computed += 1
        if self._store is not None:
            self._store.put(key, text)
        return text

    async def _text(self, question: Question, sampling: Sampling) -> str:
        tokenizer, room = self._model.tokenizer, self.limit - question.max_new_tokens
        if room < 1:
            raise PomonaError(
                f"max_new_tokens = {question.max_new_tokens}: does not fit the context of {self.limit:,}"
            )
        if isinstance(question.prompt, str):
            text = question.prompt + question.opening
            ids = tokenizer.encode(text, add_special_tokens=True, parse_special=False)[-room:]
        else:
            ids = self._model.render(question.prompt)
            ids += tokenizer.encode(question.opening, parse_special=False) if question.opening else []
            if len(ids) > room:
                return ""
        request = Request(
            prompt_ids=tuple(ids),
            sampling=sampling,
            max_new_tokens=question.max_new_tokens,
            stop_ids=frozenset(tokenizer.eos_token_ids),
            adapter=self._adapter,
            lookup=True,
        )
        return await written(self._model, request, question.stops)

    async def _calls(self, question: Question, sampling: Sampling) -> str:
        backend = cast(LocalBackend, self._model.backend())
        generation = Generation(
            _entries(question),
            TEXT,
            question.tools,
            "auto",
            sampling,
            question.max_new_tokens,
            self._adapter or "base",
            streaming=False,
        )
        try:
            prepared = backend.prepare(generation)
        except PomonaError:  # functions whose schemas no call can obey: there is no right answer
            return ""
        if not prepared.fits:
            return ""
        outcome: Outcome | None = None
        try:
            async with aclosing(cast(Any, backend.agenerate(prepared))) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Outcome):
                        outcome = piece
        except AnswerError as error:  # a call that was cut off: an answer without calls
            return error.text
        assert outcome is not None
        if not outcome.calls:
            return outcome.text
        [message] = Dialect("list").messages([ToolCalls(text=outcome.text, calls=outcome.calls)], ())[0]
        return str(message["content"])


async def written(model: Model, request: Request, stops: Sequence[str]) -> str:
    """The answer to a request, cut before its first stop sequence, which also ends the work."""
    decoder = model.tokenizer.stream(skip_special_tokens=True)
    text = ""
    with model.scheduler.submit(request) as ticket:  # cancels what would follow a stop sequence
        async for token in ticket:
            text += decoder.push(token)
            if any(stop in text for stop in stops):
                break
        else:
            text += decoder.flush()
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def _entries(question: Question) -> tuple[Entry, ...]:
    if isinstance(question.prompt, str):
        return (Prompt(text=question.prompt),)
    made: list[Entry] = []
    for message in question.prompt:
        kind = Instructions if message["role"] == "system" else Prompt
        made.append(kind(text=message["content"]))
    return tuple(made)


def _key(question: Question, sampling: Sampling) -> str:
    """A hash of what the answer depends on, beside model and adapter."""
    parts = [
        question.prompt if isinstance(question.prompt, str) else [dict(one) for one in question.prompt],
        question.opening,
        question.max_new_tokens,
        question.stops,
        [tool.definition for tool in question.tools],
        asdict(sampling) if sampling.temperature > 0 else None,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
