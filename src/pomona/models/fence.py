"""Text of people and tools in a chat template, where a control token that is spelled out stays plain text."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from pomona.models.tokenizer import Tokenizer


class Fence:
    """Keeps what people and tools wrote from being read as control tokens.

    In the messages, the text of a control token is replaced by a word that nobody can guess; the template
    renders it like any other; then the word is replaced by the token's text, encoded as ordinary text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._found: list[str] = []
        self._word = f"Z{secrets.token_hex(8)}"
        self._pattern = tokenizer.special_pattern

    def guarded(self, value: Any) -> Any:
        if isinstance(value, str):
            return value if self._pattern is None else self._pattern.sub(self._replaced, value)
        if isinstance(value, Mapping):
            return {key: self.guarded(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.guarded(item) for item in value]
        return value

    def _replaced(self, match: re.Match[str]) -> str:
        self._found.append(match[0])
        return f"{self._word}N{len(self._found) - 1}Z"

    def encode(self, text: str) -> list[int]:
        if not self._found:
            return self._tokenizer.encode(text)
        ids: list[int] = []
        for index, part in enumerate(re.split(f"{self._word}N([0-9]+)Z", text)):
            if index % 2:
                ids += self._tokenizer.encode(self._found[int(part)], parse_special=False)
            elif part:
                ids += self._tokenizer.encode(part)
        return ids
