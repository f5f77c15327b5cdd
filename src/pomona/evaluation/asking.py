"""Questions to a model of this machine or to an endpoint, many at once, with every reply kept on disk.

    with Sources(keep=cache_dir() / "judge") as sources:
        asker = sources.open("http://127.0.0.1:8000/v1#judge", tokens=1024)
        reply = await asker.ask([{"role": "user", "content": "..."}])

A source is `http(s)://HOST/v1#MODEL`, an OpenAI-compatible endpoint and the model's name there, or a model
of the cache or a directory, `NAME` or `NAME:ADAPTER` as the server calls them. Replies are greedy, so that
one which is kept is as good as a new one: a run that was stopped asks only for what is missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pomona.errors import PomonaError
from pomona.runtime.adapter_file import WEIGHTS_FILE
from pomona.runtime.backend import Generation, LanguageModel, Outcome
from pomona.runtime.model import Model
from pomona.runtime.output import wanted
from pomona.runtime.remote import RemoteModel
from pomona.runtime.sampling import Sampling
from pomona.runtime.transcript import Entry, Instructions, Prompt, Response

MAX_KEPT_BYTES = 4 << 20
FAILURES = 5  # in a row, before anything was answered or since: then the run ends
KEY_VARIABLE = "POMONA_ENDPOINT_KEY"
T = TypeVar("T")


class _TooLongError(PomonaError):
    pass


@dataclass(frozen=True)
class Reply:
    """problem: why there is no text: what the endpoint or the model said. kept: it was asked for before."""

    text: str
    finish_reason: str = "stop"
    problem: str = ""
    kept: bool = False


class Asker:
    """Asks one model. name: as it is shown. identity: what makes a kept reply another model's."""

    def __init__(
        self,
        model: LanguageModel,
        name: str,
        identity: str,
        *,
        adapter: str | None = None,
        tokens: int = 1024,
        together: int = 16,
        keep: Path | None = None,
    ) -> None:
        self.name, self.identity = name, identity
        self.asked = self.kept = 0
        self._backend, self._adapter, self._tokens, self._keep = model.backend(), adapter, tokens, keep
        self._gate = asyncio.Semaphore(together)
        self._failed = 0

    async def ask(self, messages: Sequence[Mapping[str, str]], *, choices: Sequence[str] = ()) -> Reply:
        """choices: the reply is one of these. An answer that failed is a Reply with its problem; PomonaError
        when answers keep failing."""
        key = self._key(messages, choices)
        if (found := self._read(key)) is not None:
            self.kept += 1
            return found
        async with self._gate:
            try:
                outcome = await self._outcome(messages, choices)
            except _TooLongError as error:
                return Reply("", problem=str(error))  # of this question alone: the next one may fit
            except PomonaError as error:
                self._failed += 1
                if self._failed >= FAILURES:
                    raise PomonaError(
                        f"{self.name}: {self._failed} requests in a row failed ({error}); what was answered "
                        "is kept, so mend it and run again"
                    ) from error
                return Reply("", problem=str(error))
        self._failed = 0
        self.asked += 1
        reply = Reply(outcome.text, outcome.finish_reason)
        self._write(key, reply)
        return reply

    async def _outcome(self, messages: Sequence[Mapping[str, str]], choices: Sequence[str]) -> Outcome:
        prepared = self._backend.prepare(
            Generation(
                tuple(_entry(message) for message in messages),
                wanted(choices=choices) if choices else wanted(),
                (),
                "none",
                Sampling(),
                self._tokens,
                self._adapter,
                streaming=False,
            )
        )
        if not prepared.fits:
            raise _TooLongError(
                f"{prepared.prompt_tokens} tokens of prompt and {self._tokens} of reply do not fit the "
                f"context of {prepared.limit}"
            )
        async for piece in self._backend.agenerate(prepared):
            if isinstance(piece, Outcome):
                return piece
        raise AssertionError("a generation ends with its outcome")

    # --- replies on disk

    def _key(self, messages: Sequence[Mapping[str, str]], choices: Sequence[str]) -> str:
        asked = [self.identity, self._tokens, list(choices), [dict(message) for message in messages]]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _read(self, key: str) -> Reply | None:
        """A file that is none of ours, or was cut off, is as good as none."""
        if self._keep is None:
            return None
        try:
            with (self._keep / key[:2] / f"{key}.json").open("rb") as file:
                row = json.loads(file.read(MAX_KEPT_BYTES))
            text, reason = row["text"], row["finish_reason"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if not isinstance(text, str) or not isinstance(reason, str):
            return None
        return Reply(text, reason, kept=True)

    def _write(self, key: str, reply: Reply) -> None:
        if self._keep is None:
            return
        path = self._keep / key[:2] / f"{key}.json"
        beside = path.with_name(f".{key}.{os.getpid()}")
        row = {"text": reply.text, "finish_reason": reply.finish_reason, "model": self.name}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(row), encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise PomonaError(f"{path}: cannot be written ({error.strerror}); free some space") from error


class Sources:
    """Opens sources and closes them together; a model that two of them name is loaded once."""

    def __init__(
        self,
        *,
        keep: Path | None = None,
        threads: int | None = None,
        together: int = 16,
        timeout: float = 600,
    ) -> None:
        """keep: folder of the replies; None keeps none. together: requests on their way at once."""
        self._keep, self._threads, self._together, self._timeout = keep, threads, together, timeout
        self._open = ExitStack()
        self._models: dict[str, Model] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def open(self, source: str, *, tokens: int) -> Asker:
        """tokens: of a reply, at most. The key of an endpoint stands in POMONA_ENDPOINT_KEY."""
        if source.startswith(("http://", "https://")):
            address, _, name = source.partition("#")
            if not name:
                raise PomonaError(f"{source}: which model there? Write {address}#MODEL")
            remote = RemoteModel(
                address, name, api_key=os.environ.get(KEY_VARIABLE) or None, timeout=self._timeout
            )
            self._open.enter_context(remote)
            return Asker(remote, name, source, tokens=tokens, together=self._together, keep=self._keep)
        base, adapter = source, None
        if not Path(source).is_dir() and ":" in source:
            base, _, adapter = source.rpartition(":")
        if base not in self._models:
            self._models[base] = self._open.enter_context(Model.load(base, threads=self._threads))
        model = self._models[base]
        adapter = model.adapter_for(adapter)
        identity = f"{model.engine.fingerprint}:{_weights(model, adapter)}"
        name = model.engine.directory.name if adapter is None else f"{model.engine.directory.name}:{adapter}"
        return Asker(
            model, name, identity, adapter=adapter or "base", tokens=tokens, together=self._together,
            keep=self._keep,
        )  # fmt: skip


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of it, in its order. The first error ends the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _entry(message: Mapping[str, str]) -> Entry:
    text = message["content"]
    if message["role"] == "system":
        return Instructions(text=text)
    return Prompt(text=text) if message["role"] == "user" else Response(text=text)


def _weights(model: Model, adapter: str | None) -> str:
    if adapter is None:
        return "base"
    directory = next(one.directory for one in model.adapters.status() if one.name == adapter)
    with (directory / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
