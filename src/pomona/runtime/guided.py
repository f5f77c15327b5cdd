"""Guided generation: the answer obeys a JSON schema, a regular expression, a list of choices or a grammar.

    guide = Guide.json_schema({"type": "object", "properties": {"city": {"type": "string"}}})
    for piece in model.stream(messages, guide=guide):
        ...

llguidance turns the grammar and the tokens so far into a mask of the tokens that may come next; the mask
enters the native sampler. Where a core is free it is computed while the step runs that needs it at its end.
What cannot be expressed is an error: no schema is obeyed by half (guide_schema.py).

Two things that only a grammar makes possible: tokens that it forces are not sampled at all, they join the
next step; and an answer that runs out of tokens is brought to its end in time (guide_closing.py).
"""

from __future__ import annotations

import json
import queue
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pomona import _native
from pomona.errors import PomonaError, one_line
from pomona.runtime import guide_schema
from pomona.runtime.engine import Mask

if TYPE_CHECKING:
    import llguidance

    from pomona.models.tokenizer import Tokenizer
    from pomona.runtime.guide_closing import Closing

MAX_GRAMMAR_BYTES = 1 << 20
LONGEST_SHORTEST = 2048  # tokens of the shortest answer of a guide, at the most
MARGIN_TOKENS = 64  # an answer's end is planned from twice the shortest ending and this many tokens before
LOOK_AHEAD_TOKENS = 32  # how often the shortest ending is looked up before that


@dataclass(frozen=True)
class Guide:
    """What an answer must look like. Make one by the class methods."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MAX_GRAMMAR_BYTES:
            raise PomonaError(
                f"{self.kind}: of {len(self.text):,} characters is too large; the limit is 1 MiB"
            )

    @classmethod
    def json_schema(cls, schema: Any) -> Guide:
        """A JSON schema (dict), or a class with `model_json_schema()`, such as a Pydantic model."""
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if not isinstance(schema, dict):
            raise PomonaError("json_schema: must be an object or a Pydantic class; {} allows any JSON")
        try:
            return cls("json_schema", json.dumps(schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise PomonaError(f"json_schema: is no JSON ({one_line(str(error))})") from error

    @classmethod
    def regex(cls, pattern: str) -> Guide:
        """A regular expression that the whole answer matches (Rust's regex syntax)."""
        return cls("regex", pattern)

    @classmethod
    def choices(cls, options: Sequence[str]) -> Guide:
        """One of these texts."""
        if not options or not all(isinstance(option, str) and option for option in options):
            raise PomonaError("choices: must be a list of texts, none of them empty")
        return cls(
            "regex", "|".join(re.sub(r"([\\.+*?()|\[\]{}^$#&\-~/])", r"\\\1", option) for option in options)
        )

    @classmethod
    def lark(cls, grammar: str) -> Guide:
        """A Lark grammar in llguidance's dialect."""
        return cls("lark", grammar)


@dataclass(frozen=True)
class _Start:
    """A compiled guide: the state before the first token, tokens that make a complete answer, and texts that
    its patterns match."""

    matcher: llguidance.LLMatcher
    plan: list[int] | None
    examples: list[list[int]]


class GuidedTokens:
    """The state of one guided answer: which tokens may come next, and whether it is complete.

    forced = guided.begin(max_new_tokens)          # belongs to the answer, goes behind the prompt
    while not guided.stopped:
        token = engine.step([StepInput(sequence, tokens, sampling, guided.mask())])[0]
        tokens = guided.advance(token)             # the answer goes on with these; the next step takes them
    """

    def __init__(
        self,
        start: _Start,
        vocabulary: int,
        closing: Closing,
        submit: Callable[[Callable[[], None]], None] | None,
    ) -> None:
        self._matcher = start.matcher.deep_copy()
        self._late = _native.LateMask((vocabulary + 31) // 32)
        self._words = self._late.array()
        self._closing = closing
        self._examples = start.examples
        self._plan: list[int] | None = (
            None if start.plan is None else list(start.plan)
        )  # tokens that complete the answer from here
        self._submit = submit
        self._force = True
        self._left: int | None = None  # tokens that may still come; None: no limit
        self._watch = 0  # from how many left every token is checked against the plan
        self._unseen = 0  # tokens since the plan was looked up
        self._search_at = 1 << 60  # with how many tokens left a plan is searched for, after none was found
        # With room for so many tokens an answer comes to its end; None: no way to an end is known.
        self.shortest = None if start.plan is None else len(start.plan)
        self.cut = False  # the answer was brought to its end because tokens ran out

    @property
    def stopped(self) -> bool:
        """The answer is complete and nothing may follow, or it has all the tokens that it may have."""
        self._late.wait()
        return bool(self._matcher.is_stopped()) or self._left == 0

    @property
    def complete(self) -> bool:
        """The answer so far satisfies the guide."""
        self._late.wait()
        return bool(self._matcher.is_accepting())

    def begin(self, max_new_tokens: int, *, force: bool = True) -> list[int]:
        """Says how long the answer may be. Returns the tokens that it must begin with, perhaps none.

        Without `force` every token is sampled, also where there is no choice: somebody wants to know how
        likely it was.
        """
        self._late.wait()
        self._force = force
        self._left = max_new_tokens
        self._watch = 2 * len(self._plan or ()) + MARGIN_TOKENS
        return self._forced()

    def mask(self) -> Mask:
        """For StepInput: one bit per token that may come next. Where there is a core for it, it is computed
        on another thread while the step runs; another call, `accept` or `advance` waits for it."""
        if self._submit is None:
            return self.mask_now().view(np.int32)
        self._late.wait()
        self._check()
        self._late.begin()
        self._submit(self._compute)
        return self._late

    def mask_now(self) -> NDArray[np.uint32]:
        """The mask as an array [(vocabulary + 31) // 32], valid until the next call."""
        self._late.wait()
        self._fill()
        self._check()
        return self._words

    def masks(self, drafts: Sequence[int]) -> tuple[list[int], NDArray[np.int32]]:
        """The drafts as far as they may come, and the masks [1 + drafts, words] of the places from here to
        after the last of them.

        A draft that would complete the answer is left out: nothing can follow it, and it needs no draft.
        """
        if self._left is not None and self._left <= self._watch:
            drafts = ()  # near the end every token is checked on its own
        allowed: list[int] = []
        rows = [self.mask_now().copy()]
        try:
            for draft in drafts:
                if self._matcher.try_consume_tokens([draft]) == 0:
                    break
                allowed.append(draft)
                if self._matcher.is_stopped():
                    break
                rows.append(self.mask_now().copy())
        finally:
            if allowed and not self._matcher.rollback(len(allowed)):
                self._check()
        return allowed[: len(rows) - 1], np.stack(rows).view(np.int32)

    def accept(self, token: int) -> None:
        """Tells which token was chosen, when others already follow it (accepted drafts)."""
        self._late.wait()
        self._matcher.consume_token(token)
        self._check()
        if self._left is not None:
            self._left -= 1
            self._unseen += 1

    def advance(self, token: int) -> list[int]:
        """Tells which token was sampled. Returns the tokens that the answer goes on with: this one (or the
        one that leads to an end in time, where there is no room for this one), and those that must follow."""
        self._late.wait()
        self._check()
        token = self._take(token)
        return [token, *self._forced()]

    def _forced(self) -> list[int]:
        """Takes the tokens that must come next, as far as there is room."""
        forced: list[int] = []
        while self._force and not self._matcher.is_stopped() and self._left != 0:
            ahead = self._matcher.compute_ff_tokens()
            for token in ahead:
                if self._left == 0:
                    break
                forced.append(self._take(token))
                if forced[-1] != token:
                    break
            if not ahead:
                break
        self._check()
        return forced

    def _take(self, token: int) -> int:
        """Consumes a token, or the planned one where it would leave no room for an ending."""
        if self._left is None:
            self._matcher.consume_token(token)
            self._check()
            return token
        self._left -= 1
        self._unseen += 1
        if self._left >= self._watch:
            self._matcher.consume_token(token)
            self._check()
            if self._unseen >= LOOK_AHEAD_TOKENS:
                self._unseen = 0
                plan = self._closing.plan(self._matcher, self._left, self._examples)
                self._watch = max(self._watch, 2 * len(plan or ()) + MARGIN_TOKENS)
                self._plan = plan
            return token
        return self._take_checked(token)

    def _take_checked(self, token: int) -> int:
        assert self._left is not None
        if self._unseen > 1:  # the plan is of an earlier place
            self._plan = self._ending(self._matcher, self._plan, self._left + 1)
        self._unseen = 0
        after = self._matcher.deep_copy()
        after.consume_token(token)
        if after.is_error():
            self._matcher = after
            self._check()
        follows = self._plan[1:] if self._plan and self._plan[0] == token else self._plan
        plan = self._ending(after, follows, self._left)
        if plan is None and self._plan:
            token, plan = self._plan[0], self._plan[1:]
            after = self._matcher.deep_copy()
            after.consume_token(token)
            self.cut = True
        self._matcher, self._plan = after, plan
        self._check()
        return token

    def _ending(self, matcher: llguidance.LLMatcher, guess: list[int] | None, room: int) -> list[int] | None:
        """A plan of at most `room` tokens: the guess, where it is one."""
        if matcher.is_accepting():
            return []
        if guess and len(guess) <= room and matcher.validate_tokens(guess) == len(guess):
            copy = matcher.deep_copy()
            if copy.consume_tokens(guess) and copy.is_accepting():
                return guess
        if room > self._search_at:
            return None
        plan = self._closing.plan(matcher, room, self._examples)
        self._search_at = room * 3 // 4 if plan is None else 1 << 60
        return plan

    def _compute(self) -> None:
        try:
            self._fill()
        finally:
            self._late.done()

    def _fill(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise PomonaError(
                f"guided generation stopped: {one_line(self._matcher.get_error())}; simplify the grammar"
            )


class Guides:
    """Compiles guides for one tokenizer; a compiled guide is kept and copied for every answer."""

    KEPT = 32

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, *, overlap: bool = False) -> None:
        """overlap: compute masks while steps run. It needs a core that no thread of the engine uses: on one
        that is shared, the whole step waits for the operating system to hand it back."""
        import llguidance

        from pomona.runtime.guide_closing import Closing

        self._vocabulary = vocabulary
        self._compiled: dict[Guide, _Start] = {}
        self._tokenizer = llguidance.LLTokenizer(
            tokenizer.backend.to_str(), n_vocab=vocabulary, eos_token=list(tokenizer.eos_token_ids)
        )
        self._closing = Closing(self._tokenizer)
        self._submit = _Worker().submit if overlap else None
        self._lock = threading.Lock()

    def start(self, guide: Guide) -> GuidedTokens:
        """The state before the first token. Raises PomonaError for what cannot be expressed."""
        with self._lock:
            if guide not in self._compiled:
                compiled = self._compile(guide)
                while len(self._compiled) >= self.KEPT:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[guide] = compiled
            start = self._compiled[guide]
        return GuidedTokens(start, self._vocabulary, self._closing, self._submit)

    def _compile(self, guide: Guide) -> _Start:
        if guide.kind == "json_schema":
            matcher, texts = self._json_schema(guide)
        else:
            matcher, texts = self._matcher(guide), []
        examples = [self._closing.example(text) for text in texts]
        plan = self._closing.plan(matcher, LONGEST_SHORTEST, examples)
        if plan is None and guide.kind == "json_schema":
            raise PomonaError(
                f"{guide.kind}: cannot be used (no answer of {LONGEST_SHORTEST:,} tokens or less was found)"
            )
        return _Start(matcher, plan, examples)

    def _json_schema(self, guide: Guide) -> tuple[llguidance.LLMatcher, list[str]]:
        schema = json.loads(guide.text)
        prepared, examples = guide_schema.prepare(schema, closed=False)
        closed = guide_schema.can_close(schema)
        if not closed or guide_schema.has_one_of(schema):
            # That no two options of oneOf hold at once must be true of the schema as it was given.
            matcher = self._matcher(Guide("json_schema", json.dumps(prepared)))
        if closed:
            prepared, examples = guide_schema.prepare(schema, closed=True)
            matcher = self._matcher(Guide("json_schema", json.dumps(prepared)))
        return matcher, examples

    def _matcher(self, guide: Guide) -> llguidance.LLMatcher:
        from llguidance import LLMatcher

        # White space between JSON's tokens is what a small model loses itself in.
        options: dict[str, Any] = {"whitespace_flexible": False}
        try:
            if guide.kind == "json_schema":
                grammar = LLMatcher.grammar_from_json_schema(guide.text, overrides=options)  # type: ignore[arg-type]
            elif guide.kind == "regex":
                grammar = LLMatcher.grammar_from_regex(guide.text)
            else:
                grammar = LLMatcher.grammar_from_lark(guide.text)
            failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer)
        except ValueError as error:
            raise PomonaError(f"{guide.kind}: cannot be used ({one_line(str(error))})") from error
        if failed or messages:  # a warning says that a part would be ignored
            raise PomonaError(f"{guide.kind}: cannot be used ({one_line(' '.join(messages))})")
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise PomonaError(f"{guide.kind}: cannot be used ({one_line(matcher.get_error())})")
        return matcher


class _Worker:
    """One thread that computes masks while the engine's threads run the step (llguidance needs no lock of
    Python's meanwhile). It starts with the first mask and ends with the last answer that knows it."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            with self._started:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=_work, args=(self._jobs,), name="pomona-masks", daemon=True
                    )
                    self._thread.start()
        self._jobs.put(job)

    def __del__(self) -> None:
        self._jobs.put(None)


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job
