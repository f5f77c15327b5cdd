"""Documents -> packed tokens: what `pomona data pack` does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pomona.data.documents import Skip, find_files, read_documents
from pomona.data.packed_tokens import INDEX, SHARD_TOKENS, PackedIndex, PackedWriter
from pomona.errors import PomonaError
from pomona.models.model_directory import ModelDirectoryWriter, Progress
from pomona.models.tokenizer import Tokenizer

_BATCH = 64


@dataclass(frozen=True)
class PackReport:
    """What was packed. characters: of the documents; skips: what could not be read."""

    folder: Path
    index: PackedIndex
    characters: int
    skips: tuple[Skip, ...]


def pack(
    inputs: Sequence[Path],
    target: Path,
    tokenizer: Path,
    *,
    text_key: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    overwrite: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> PackReport:
    """Encode the documents of `inputs` (files, or folders of them) into `target`, which appears whole or not.

    Text that spells a control token is encoded as text. Each document is followed by the tokenizer's end
    token. PomonaError: nothing to read, no usable tokenizer, `target` there already and not `overwrite`.
    """
    files = find_files(inputs)
    texts = _Texts(files, text_key, progress)
    with ModelDirectoryWriter(target, overwrite=overwrite, mark=INDEX) as directory:
        index = pack_texts(texts, directory.path, tokenizer, shard_tokens=shard_tokens)
    return PackReport(target, index, texts.characters, tuple(texts.skips))


def pack_texts(
    texts: Iterable[str], folder: Path, tokenizer: Path, *, shard_tokens: int = SHARD_TOKENS
) -> PackedIndex:
    """Encode `texts`, a document each, into an existing empty folder."""
    encoder = Tokenizer.from_directory(tokenizer)
    if not encoder.eos_token_ids:
        raise PomonaError(
            f"{tokenizer}: names no eos_token, which ends documents; add it to tokenizer_config.json"
        )
    writer = PackedWriter(
        folder,
        vocab_size=encoder.vocab_size,
        separator=encoder.eos_token_ids[0],
        tokenizer=tokenizer_sha256(tokenizer),
        shard_tokens=shard_tokens,
    )
    for batch in _batches(texts):
        for ids in encoder.encode_batch(batch, parse_special=False):
            writer.add(ids)
    return writer.finish()


def tokenizer_sha256(directory: Path) -> str:
    """The sum that says which tokenizer tokens are of."""
    try:
        return hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
    except OSError as error:
        raise PomonaError(f"{directory}: has no readable tokenizer.json ({error.strerror})") from error


class _Texts:
    """The texts of files, one after the other, with a count of what went by."""

    def __init__(
        self, files: Sequence[Path], text_key: str, progress: Callable[[str, int, int], None]
    ) -> None:
        self.files, self.text_key, self.progress = files, text_key, progress
        self.characters = 0
        self.skips: list[Skip] = []

    def __iter__(self) -> Iterator[str]:
        for done, path in enumerate(self.files):
            self.progress("pack", done, len(self.files))
            for found in read_documents(path, text_key=self.text_key):
                if isinstance(found, Skip):
                    self.skips.append(found)
                else:
                    self.characters += len(found.text)
                    yield found.text
        self.progress("pack", len(self.files), len(self.files))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, _BATCH)):
        yield batch
