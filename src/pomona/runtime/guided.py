"""Guided generation: the answer obeys a JSON schema, a regular expression, a list of choices or a grammar.

    guide = Guide.json_schema({"type": "object", "properties": {"city": {"type": "string"}}})
    for piece in model.stream(messages, guide=guide):
        ...

llguidance turns the grammar and the tokens so far into a mask of the tokens that may come next; the mask
enters the native sampler. What it cannot express is an error: no schema is obeyed by half.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError, one_line

if TYPE_CHECKING:
    import llguidance

    from pomona.models.tokenizer import Tokenizer

MAX_GRAMMAR_BYTES = 1 << 20


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


class GuidedTokens:
    """The state of one guided answer: which tokens may come next, and whether it is complete."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros((vocabulary + 31) // 32, np.int32)

    @property
    def stopped(self) -> bool:
        """The answer is complete and nothing may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def complete(self) -> bool:
        """The answer so far satisfies the guide."""
        return bool(self._matcher.is_accepting())

    def mask(self) -> NDArray[np.int32]:
        """One bit per token that may come next; valid until the next call."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        return self._mask

    def masks(self, drafts: Sequence[int]) -> tuple[list[int], NDArray[np.int32]]:
        """The drafts as far as they may come, and the masks [1 + drafts, words] of the places from here to
        after the last of them.

        A draft that would complete the answer is left out: nothing can follow it, and it needs no draft.
        """
        allowed: list[int] = []
        rows = [self.mask().copy()]
        try:
            for draft in drafts:
                if self._matcher.try_consume_tokens([draft]) == 0:
                    break
                allowed.append(draft)
                if self.stopped:
                    break
                rows.append(self.mask().copy())
        finally:
            if allowed and not self._matcher.rollback(len(allowed)):
                self._check()
        return allowed[: len(rows) - 1], np.stack(rows)

    def accept(self, token: int) -> None:
        """Tells which token was chosen."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise PomonaError(
                f"guided generation stopped: {one_line(self._matcher.get_error())}; simplify the grammar"
            )


class Guides:
    """Compiles guides for one tokenizer; a compiled guide is kept and copied for every answer."""

    KEPT = 32

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        import llguidance

        self._vocabulary = vocabulary
        self._lock = threading.Lock()  # a session's thread and the scheduler's callers compile for one model
        self._compiled: dict[Guide, llguidance.LLMatcher] = {}
        self._tokenizer = llguidance.LLTokenizer(
            tokenizer.backend.to_str(), n_vocab=vocabulary, eos_token=list(tokenizer.eos_token_ids)
        )

    def start(self, guide: Guide) -> GuidedTokens:
        """The state before the first token. Raises PomonaError for what cannot be expressed."""
        with self._lock:
            if guide not in self._compiled:
                while len(self._compiled) >= self.KEPT:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[guide] = self._compile(guide)
            return GuidedTokens(self._compiled[guide].deep_copy(), self._vocabulary)

    def _compile(self, guide: Guide) -> llguidance.LLMatcher:
        from llguidance import LLMatcher

        # White space between JSON's tokens is what a small model loses itself in.
        options: dict[str, Any] = {"whitespace_flexible": False}
        try:
            if guide.kind == "json_schema":
                grammar = LLMatcher.grammar_from_json_schema(guide.text, defaults=options)  # type: ignore[arg-type]
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
