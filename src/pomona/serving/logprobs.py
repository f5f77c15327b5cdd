"""Log probabilities of an answer's tokens in OpenAI's two shapes.

They are the model's own, before penalties, biases, masks and temperature; a token that a schema forced may
therefore be a very unlikely one.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pomona.models.tokenizer import Tokenizer
from pomona.serving.answering import Choice


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[ContentLogprob]
    refusal: None


class TextLogprobs(BaseModel):
    """Of completions. `text_offset`: where each token begins in the text, in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def chat_logprobs(tokenizer: Tokenizer, choice: Choice) -> dict[str, Any] | None:
    """Of the tokens that were not told yet; None when there are none to tell."""
    untold = choice.untold()
    if not untold:
        return None
    content = [
        {
            **_token(tokenizer, token, logprobs.chosen),
            "top_logprobs": [_token(tokenizer, other, value) for other, value in logprobs.top],
        }
        for token, logprobs in untold
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Tokenizer, choice: Choice) -> dict[str, Any] | None:
    """The same for completions."""
    untold = choice.untold()
    if not untold:
        return None
    tokens = [_text(tokenizer, token) for token, _ in untold]
    offsets = []
    for text in tokens:
        offsets.append(choice.told_characters)
        choice.told_characters += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [logprobs.chosen for _, logprobs in untold],
        "top_logprobs": [
            {_text(tokenizer, token): value for token, value in reversed(logprobs.top)}
            for _, logprobs in untold
        ],
        "text_offset": offsets,
    }


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


def _text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")
