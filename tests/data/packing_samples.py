"""A small tokenizer and folders of packed tokens with known contents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pomona.data.packed_tokens import PackedWriter

WORDS = 98
UNKNOWN, END = WORDS, WORDS + 1


def write_tokenizer(folder: Path, *, end: str | None = "<end>") -> Path:
    """A word tokenizer: "w5" is token 5, "<end>" is the control token END, everything else is UNKNOWN."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    backend = Tokenizer(
        WordLevel({f"w{n}": n for n in range(WORDS)} | {"<unknown>": UNKNOWN}, unk_token="<unknown>")
    )
    backend.pre_tokenizer = WhitespaceSplit()
    backend.add_special_tokens(["<end>"])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {} if end is None else {"eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_packed(
    folder: Path,
    documents: Sequence[Sequence[int]],
    *,
    vocab_size: int = 1000,
    tokenizer: str = "a" * 64,
    shard_tokens: int = 1 << 20,
) -> Path:
    """Documents of token ids, each followed by token 0."""
    folder.mkdir(parents=True)
    writer = PackedWriter(
        folder, vocab_size=vocab_size, separator=0, tokenizer=tokenizer, shard_tokens=shard_tokens
    )
    for document in documents:
        writer.add(document)
    writer.finish()
    return folder
