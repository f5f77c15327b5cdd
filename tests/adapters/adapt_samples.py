"""A tiny chat model whose tokens are bytes and two control tokens, and rows that it can learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CONFIG = replace(
    PRESETS["afm-nano"],
    vocab_size=288,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=512,
    eos_token_ids=(),
    pad_token_id=None,
)


def tokenizer_dir(directory: Path, template: str = TEMPLATE) -> Path:
    """Files of a tokenizer of 256 bytes, <|im_start|> (256) and <|im_end|> (257), which ends a turn."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (directory / "chat_template.jinja").write_text(template)
    return directory


def tiny_model(directory: Path, template: str = TEMPLATE) -> Path:
    tokens = tokenizer_dir(directory.with_name(directory.name + "-tokenizer"), template)
    return random_model(CONFIG, directory, seed=5, perturb_norms=True, tokenizer_from=tokens)


def chat(*contents: str, system: str | None = None) -> dict[str, Any]:
    """A row: user, assistant, user, ..."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages}


def write_rows(path: Path, rows: Sequence[dict[str, Any] | str | bytes]) -> Path:
    """A .jsonl; a row may also be a line as it is."""
    texts = [json.dumps(row) if isinstance(row, dict) else row for row in rows]
    lines = [text.encode() if isinstance(text, str) else text for text in texts]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def colours(count: int = 12) -> list[dict[str, Any]]:
    """Rows with a rule: the answer depends on the word that is asked about."""
    words = {"sky": "blue", "leaf": "green", "snow": "white"}
    return [
        chat(f"{number} {word}?", answer, system="Name the colour.")
        for number in range(count)
        for word, answer in words.items()
    ]
