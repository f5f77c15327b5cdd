"""A model that answers: engine, tokenizer and chat template together.

model = Model.load("smollm2-135m-4bit")
print(model.session(instructions="Answer in one sentence.").respond("Name three apples.").text)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.errors import PomonaError
from pomona.models.fence import Fence
from pomona.models.store import resolve
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.answer import Answer
from pomona.runtime.backend import Backend, LanguageModel
from pomona.runtime.engine import Engine
from pomona.runtime.reply import Usage
from pomona.runtime.sampling import Sampling

if TYPE_CHECKING:
    from pomona.runtime.adapters import AdapterCache
    from pomona.runtime.dialects import Dialect
    from pomona.runtime.guided import Guide, Guides
    from pomona.runtime.scheduler import Scheduler

ADAPTERS_FOLDER = "adapters"
RECOVERY = "recovery"  # the adapter of a model directory that runs where no other is asked for
BASE = "base"  # as an adapter's name: none at all


class Model(LanguageModel):
    """`session` makes conversations; `respond`, `stream` and `complete` take messages and text as they are.

    A context manager; `close` gives back its memory. Several threads may use one model.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine: Engine | None = engine
        self.tokenizer = tokenizer
        self.last_timing: Usage | None = None  # of the last answer of stream, respond or complete that ended
        self._lock = threading.RLock()
        self._scheduler: Scheduler | None = None
        self._adapters: AdapterCache | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        threads: int | None = None,
        isa: str = "auto",
        kv_tokens: int | None = None,
        prefix_cache: bool = True,
    ) -> Model:
        """`name`: a model in the cache or a directory. Other arguments as Engine.load's.

        Adapters in the directory's `adapters/` are known by their folder's name; `recovery`, if it is there,
        runs by default.
        """
        directory = resolve(name)
        engine = Engine.load(
            directory, threads=threads, isa=isa, kv_tokens=kv_tokens, prefix_cache=prefix_cache
        )
        return cls(engine, Tokenizer.from_directory(directory))

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise PomonaError("the model is closed; load it again")
        return self._engine

    @cached_property
    def guides(self) -> Guides:
        """The compiler of guides, made when the first guided answer asks for it."""
        from pomona.runtime.guided import Guides

        spare = self.engine.threads < len(os.sched_getaffinity(0))
        return Guides(self.tokenizer, self.engine.config.vocab_size, overlap=spare)

    @cached_property
    def dialect(self) -> Dialect:
        """How this model writes tool calls."""
        from pomona.runtime.dialects import find_dialect

        return find_dialect(self.tokenizer)

    @property
    def adapters(self) -> AdapterCache:
        """This model's adapters; `adapters.register(name, directory)` adds one."""
        with self._lock:
            if self._adapters is None:
                self._adapters = _adapters_of(self.engine)
            return self._adapters

    def adapter_for(self, name: str | None) -> str | None:
        """The adapter that runs when `name` is asked for; None: the base alone."""
        if name == BASE:
            return None
        known = {status.name for status in self.adapters.status()}
        if name is None:
            return RECOVERY if RECOVERY in known else None
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise PomonaError(
                f"adapter {name}: the model has no such adapter (there: {there}); model.adapters.register it"
            )
        return name

    @property
    def scheduler(self) -> Scheduler:
        """Batches the answers of many sessions; made, with its thread, when the first one asks for it."""
        with self._lock:
            return self._scheduler or self.start_scheduler()

    def start_scheduler(self, **options: int) -> Scheduler:
        """The scheduler with options of its own (those of the class), before anything has asked for it."""
        from pomona.runtime.scheduler import Scheduler

        with self._lock:
            if self._scheduler is not None:
                raise PomonaError("the model's scheduler runs already; start it before the first answer")
            self._scheduler = Scheduler(self.engine, adapters=self.adapters, guides=self.guides, **options)
            return self._scheduler

    def backend(self) -> Backend[Any]:
        from pomona.runtime.local import LocalBackend

        self._template()
        return LocalBackend(self)

    def close(self) -> None:
        """Waits for the scheduler's answers, then gives back the memory. Closing twice does nothing."""
        with self._lock:
            scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.close()
        with self._lock:
            self._engine = self._adapters = None
            self.__dict__.pop("guides", None)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn.

        A control token that is spelled in a message or a tool is ordinary text: nobody ends a turn by writing
        `<|im_end|>` into it.
        """
        template = self._template()
        fence = Fence(self.tokenizer)
        text = template.render(
            fence.guarded(list(messages)),
            add_generation_prompt=True,
            tools=None if tools is None else fence.guarded(list(tools)),
        )
        return fence.encode(text)

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        adapter: str | None = None,
        guide: Guide | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer to a conversation of {"role", "content"} messages, as they come."""
        started = time.perf_counter()
        return self._answer(self.render(messages), sampling, max_new_tokens, started, adapter, guide)

    def complete(
        self,
        text: str,
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        adapter: str | None = None,
        guide: Guide | None = None,
    ) -> Iterator[str]:
        """Pieces of the continuation of a raw text, without any template."""
        started = time.perf_counter()
        ids = self.tokenizer.encode(text, add_special_tokens=True, parse_special=False)
        return self._answer(ids, sampling, max_new_tokens, started, adapter, guide)

    def respond(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        adapter: str | None = None,
        guide: Guide | None = None,
    ) -> str:
        """The whole answer at once."""
        pieces = self.stream(
            messages, sampling=sampling, max_new_tokens=max_new_tokens, adapter=adapter, guide=guide
        )
        return "".join(pieces)

    def _template(self) -> Any:
        template = self.tokenizer.chat_template
        if template is None:
            raise PomonaError(
                f"{self.engine.directory}: the model has no chat template; use raw text (`pomona run --raw`)"
            )
        return template

    def _answer(
        self,
        ids: list[int],
        sampling: Sampling | None,
        max_new_tokens: int,
        started: float,
        adapter: str | None,
        guide: Guide | None,
    ) -> Iterator[str]:
        name = self.adapter_for(adapter)
        answer = Answer(
            self.engine,
            self.tokenizer,
            ids,
            sampling=sampling or Sampling(),
            max_new_tokens=max_new_tokens,
            started=started,
            adapter=None if name is None else self.adapters.acquire(name),
            guide=None if guide is None else self.guides.start(guide),
        )
        return self._timed(answer)

    def _timed(self, answer: Answer) -> Iterator[str]:
        self.last_timing = None
        pieces = iter(answer)
        try:
            yield from pieces
        finally:
            self.last_timing = answer.usage


def _adapters_of(engine: Engine) -> AdapterCache:
    """A cache that knows the adapters of the model's directory; they are read when they are used."""
    from pomona.runtime.adapters import AdapterCache

    cache = AdapterCache(engine)
    folder: Path = engine.directory / ADAPTERS_FOLDER
    if folder.is_dir():
        for directory in sorted(path for path in folder.iterdir() if path.is_dir()):
            if directory.name.startswith("."):  # one that is being written or removed
                continue
            if directory.name == BASE:
                raise PomonaError(
                    f"{directory}: {BASE!r} means the model without an adapter; rename the folder"
                )
            cache.register(directory.name, directory)
    return cache
