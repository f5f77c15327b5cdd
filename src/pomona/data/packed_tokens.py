"""Packed tokens on disk: documents end to end in flat files that are mapped into memory, never loaded.

    index.json            what is there, checked on opening
    tokens-00000.bin      token ids, little-endian uint16 (vocabularies up to 65,536) or uint32
    ends-00000.bin        uint64: for each document of the shard the position behind its last token

A document's last token is the separator (the tokenizer's end token). Documents never span two files, but all
files together read as one long sequence of tokens.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pomona.errors import PomonaError
from pomona.models.model_directory import read_json_object, write_json

INDEX = "index.json"
SHARD_TOKENS = 1 << 27  # 256 MiB of uint16
_ENDS = np.dtype("<u8")
_COPY = 1 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ShardIndex(_Strict):
    """One pair of files. `sha256` is of the tokens' file followed by that of the ends."""

    tokens: int = Field(ge=1)
    documents: int = Field(ge=1)
    sha256: Sha256


class PackedIndex(_Strict):
    """What index.json holds. `tokenizer` is the SHA-256 of the tokenizer.json that the ids are of."""

    format: Literal["pomona-packed-tokens"] = "pomona-packed-tokens"
    version: Literal[1] = 1
    dtype: Literal["uint16", "uint32"]
    vocab_size: int = Field(ge=1, le=1 << 31)
    separator: int = Field(ge=0)
    tokenizer: Sha256
    tokens: int = Field(ge=1)
    documents: int = Field(ge=1)
    shards: list[ShardIndex] = Field(min_length=1, max_length=1 << 20)


class PackedTokens:
    """The tokens in a folder as one sequence, mapped. Cheap to open; safe to send to another process.

    PomonaError: no such folder, an index of another form, a file that is missing or of the wrong length, or,
    when they are read, ids outside the vocabulary.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.index = _read_index(self.path)
        self._starts = np.concatenate(([0], np.cumsum([shard.tokens for shard in self.index.shards])))
        self._dtype = np.dtype(self.index.dtype).newbyteorder("<")
        self._maps: dict[str, NDArray[Any]] = {}
        for number, shard in enumerate(self.index.shards):
            _check_length(self.path / _tokens_file(number), shard.tokens * self._dtype.itemsize)
            _check_length(self.path / _ends_file(number), shard.documents * _ENDS.itemsize)

    def __len__(self) -> int:
        return self.index.tokens

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a mapped file would travel as its bytes

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens `start` to `start + count`: int64 [count], a copy. IndexError outside [0, len(self))."""
        if start < 0 or count < 0 or start + count > len(self):
            raise IndexError(f"tokens {start} to {start + count} of {len(self)}")
        out = np.empty(count, np.int64)
        shard = bisect_right(self._starts, start) - 1
        done = 0
        while done < count:
            inside = start + done - int(self._starts[shard])
            take = min(count - done, self.index.shards[shard].tokens - inside)
            out[done : done + take] = self._tokens(shard)[inside : inside + take]
            done += take
            shard += 1
        if count and int(out.max()) >= self.index.vocab_size:
            raise PomonaError(
                f"{self.path}: holds a token id of {int(out.max())} in a vocabulary of "
                f"{self.index.vocab_size}; the files are damaged, pack the documents again"
            )
        return out

    def document_ends(self, shard: int) -> NDArray[np.uint64]:
        """Positions within shard `shard` behind the last token of each of its documents (mapped)."""
        return self._map(_ends_file(shard), _ENDS)

    def documents(self) -> Iterator[NDArray[np.int64]]:
        """The token ids of each document, the separator included, in order."""
        for number in range(len(self.index.shards)):
            base, begin = int(self._starts[number]), 0
            for end in self.document_ends(number).tolist():
                yield self.read(base + begin, end - begin)
                begin = end

    def verify(self) -> None:
        """Reads every byte. PomonaError if a sum, a boundary or a token is not what the index says."""
        for number, shard in enumerate(self.index.shards):
            paths = self.path / _tokens_file(number), self.path / _ends_file(number)
            if _sha256(paths) != shard.sha256:
                raise PomonaError(f"{paths[0]}: its sum is not that of {INDEX}; pack the documents again")
            ends = self.document_ends(number)
            if int(ends[-1]) != shard.tokens or not (np.diff(ends.astype(np.int64), prepend=0) > 0).all():
                raise PomonaError(f"{paths[1]}: is no rising list of ends; pack the documents again")
            for start in range(0, shard.tokens, _COPY):
                self.read(int(self._starts[number]) + start, min(_COPY, shard.tokens - start))

    def _tokens(self, shard: int) -> NDArray[Any]:
        return self._map(_tokens_file(shard), self._dtype)

    def _map(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        if name not in self._maps:
            try:
                self._maps[name] = np.memmap(self.path / name, dtype=dtype, mode="r")
            except (OSError, ValueError) as error:
                raise PomonaError(f"{self.path / name}: cannot be mapped ({error}); pack it again") from error
        return self._maps[name]


class PackedWriter:
    """Writes documents into an empty folder; `finish` writes the index and gives it.

    Let a `ModelDirectoryWriter(target, mark=INDEX)` own the folder, so that it is whole or absent.
    """

    def __init__(
        self,
        folder: Path,
        *,
        vocab_size: int,
        separator: int,
        tokenizer: str,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        if not 0 <= separator < vocab_size:
            raise PomonaError(f"separator {separator}: is no token of a vocabulary of {vocab_size}")
        self.folder, self.shard_tokens = folder, shard_tokens
        self._dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= 1 << 16 else "uint32"
        self._facts: dict[str, Any] = {
            "vocab_size": vocab_size,
            "separator": separator,
            "tokenizer": tokenizer,
        }
        self._vocab_size, self._separator = vocab_size, separator
        self._shards: list[ShardIndex] = []
        self._parts: list[NDArray[Any]] = []
        self._ends: list[int] = []

    @property
    def tokens(self) -> int:
        """Tokens so far, separators included."""
        return sum(shard.tokens for shard in self._shards) + (self._ends[-1] if self._ends else 0)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self._shards) + len(self._ends)

    def add(self, ids: Iterable[int]) -> None:
        """One document, without its separator. A document without tokens adds nothing."""
        row = np.fromiter(ids, np.int64)
        if row.size == 0:
            return
        if int(row.min()) < 0 or int(row.max()) >= self._vocab_size:
            raise PomonaError(
                f"a token id lies outside the vocabulary of {self._vocab_size}; check the tokenizer"
            )
        row = np.append(row, self._separator).astype(np.dtype(self._dtype).newbyteorder("<"))
        held = self._ends[-1] if self._ends else 0
        if held and held + row.size > self.shard_tokens:
            self._flush()
            held = 0
        self._parts.append(row)
        self._ends.append(held + row.size)

    def finish(self) -> PackedIndex:
        """PomonaError if there was no document with tokens."""
        self._flush()
        if not self._shards:
            raise PomonaError("no document had any text: there is nothing to pack; check the input")
        index = PackedIndex(
            dtype=self._dtype,
            tokens=sum(shard.tokens for shard in self._shards),
            documents=sum(shard.documents for shard in self._shards),
            shards=self._shards,
            **self._facts,
        )
        write_json(self.folder / INDEX, index.model_dump())
        return index

    def _flush(self) -> None:
        if not self._ends:
            return
        number = len(self._shards)
        paths = self.folder / _tokens_file(number), self.folder / _ends_file(number)
        with paths[0].open("wb") as file:
            for part in self._parts:
                file.write(part.tobytes())
        paths[1].write_bytes(np.array(self._ends, _ENDS).tobytes())
        self._shards.append(
            ShardIndex(tokens=self._ends[-1], documents=len(self._ends), sha256=_sha256(paths))
        )
        self._parts, self._ends = [], []


def packed_sha256(folder: Path) -> str:
    """The sum that says which packed tokens these are: of the index, which holds the sums of all files."""
    try:
        return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
    except OSError as error:
        raise PomonaError(
            f"{folder / INDEX}: cannot be read ({error.strerror}); pack the documents"
        ) from error


def _tokens_file(shard: int) -> str:
    return f"tokens-{shard:05d}.bin"


def _ends_file(shard: int) -> str:
    return f"ends-{shard:05d}.bin"


def _read_index(folder: Path) -> PackedIndex:
    path = folder / INDEX
    if not path.is_file():
        raise PomonaError(f"{folder}: holds no packed tokens (no {INDEX}); make them by `pomona data pack`")
    value: Mapping[str, Any] = read_json_object(path)
    try:
        index = PackedIndex.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PomonaError(f"{path}: {where}: {first['msg']}; pack the documents again") from error
    if index.tokens != sum(shard.tokens for shard in index.shards):
        raise PomonaError(f"{path}: its tokens are not those of its shards; pack the documents again")
    if index.separator >= index.vocab_size:
        raise PomonaError(f"{path}: the separator is no token of the vocabulary; pack the documents again")
    return index


def _check_length(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise PomonaError(f"{path}: cannot be read ({error.strerror}); pack the documents again") from error
    if found != expected:
        raise PomonaError(f"{path}: has {found} bytes instead of {expected}; pack the documents again")


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_COPY):
                digest.update(block)
    return digest.hexdigest()
