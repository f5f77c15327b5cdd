"""The teacher's likeliest tokens on disk, so that a teacher runs once: for all epochs, runs and students.

    CACHE/SOURCE-LENGTH/
        teacher.json    whose tokens these are: fingerprint of the teacher, sum of the packed tokens
        ids.bin         a record for each sequence of the source: CRC-32, then the teacher's token at each
                        of its LENGTH positions

A record belongs to a sequence of the packed source and not to a window of a stage, so seeds and weights of
the mixture do not matter. The file is sparse, and mapped for reading; a record is there if its sum is right,
so a killed writer leaves nothing but records that are not there yet.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pomona.data.mixture import PackedMixture
from pomona.data.packed_tokens import PackedTokens, packed_sha256
from pomona.errors import PomonaError
from pomona.models.model_directory import ModelDirectoryWriter, read_json_object, write_json
from pomona.pretraining.recipe import difference

RECORD, IDS = "teacher.json", "ids.bin"
_SUM = np.dtype("<u4")


class TeacherIdentity(BaseModel):
    """What teacher.json holds. teacher: fingerprint of its weights. data: sum of the packed tokens.
    precision: in which it computes, since a near tie may fall either way."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["pomona-teacher-ids"] = "pomona-teacher-ids"
    version: Literal[1] = 1
    teacher: str = Field(pattern=r"^[0-9a-f]{32}$")
    data: str = Field(pattern=r"^[0-9a-f]{64}$")
    precision: Literal["float32", "bfloat16"]
    sequence_length: int = Field(ge=1, le=1 << 24)
    sequences: int = Field(ge=1, le=1 << 48)
    vocab_size: int = Field(ge=1, le=1 << 31)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of an id."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @property
    def record(self) -> np.dtype[Any]:
        return np.dtype([("sum", _SUM), ("ids", self.dtype, (self.sequence_length,))])

    @classmethod
    def of(
        cls, source: Path, sequence_length: int, *, teacher: str, precision: Literal["float32", "bfloat16"]
    ) -> TeacherIdentity:
        """For the sequences of that length of a folder of packed tokens."""
        tokens = PackedTokens(source)
        return cls(
            teacher=teacher,
            data=packed_sha256(source),
            precision=precision,
            sequence_length=sequence_length,
            sequences=(len(tokens) - 1) // sequence_length,
            vocab_size=tokens.index.vocab_size,
        )


class TeacherIds:
    """The records of one source. Reading maps the file; several processes may write different records."""

    def __init__(self, folder: Path, identity: TeacherIdentity) -> None:
        """Opens the folder. PomonaError: it is not there or damaged, or it belongs to another teacher or
        other data, with the first difference."""
        self.folder, self.identity = folder, identity
        raw = read_json_object(folder / RECORD)
        try:
            found = TeacherIdentity.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise PomonaError(
                f"{folder / RECORD}: {place}: {first['msg']}; remove the folder, the teacher runs again"
            ) from error
        other = difference(found.model_dump(), identity.model_dump())
        if other is not None:
            raise PomonaError(
                f"{folder}: holds a teacher's tokens for something else ({other}); choose another "
                "distill.cache, or remove the folder"
            )
        expected = identity.sequences * identity.record.itemsize
        size = (folder / IDS).stat().st_size if (folder / IDS).is_file() else -1
        if size != expected:
            raise PomonaError(
                f"{folder / IDS}: is not of the {expected} bytes that {RECORD} tells; remove the folder, "
                "the teacher runs again"
            )
        self._records: NDArray[Any] = np.memmap(folder / IDS, dtype=identity.record, mode="r")

    def __getitem__(self, sequence: int) -> NDArray[np.int64]:
        """The teacher's tokens of a sequence [LENGTH]: at position t its guess of the token after t.

        IndexError outside the source; PomonaError if the record is not there, or damaged.
        """
        if not 0 <= sequence < self.identity.sequences:
            raise IndexError(f"sequence {sequence} of {self.identity.sequences}")
        if not self.has(sequence):
            raise PomonaError(
                f"{self.folder}: has no sound record of sequence {sequence}; run the stage again, which "
                "fills in what is missing"
            )
        return np.array(self._records[sequence]["ids"], np.int64)

    def has(self, sequence: int) -> bool:
        """Whether the record is there and whole."""
        record = self._records[sequence]
        ids = record["ids"]
        return int(record["sum"]) == _crc(ids, sequence) and int(ids.max()) < self.identity.vocab_size

    def put(self, sequences: Iterable[int], ids_BS: NDArray[np.int64]) -> None:
        """Writes the records of these sequences. ValueError for ids that do not fit."""
        if ids_BS.shape[1:] != (self.identity.sequence_length,):
            raise ValueError(f"ids of shape {ids_BS.shape} for sequences of {self.identity.sequence_length}")
        if ids_BS.size and not 0 <= int(ids_BS.min()) <= int(ids_BS.max()) < self.identity.vocab_size:
            raise ValueError("an id lies outside the vocabulary")
        with (self.folder / IDS).open("r+b", buffering=0) as file:
            for sequence, ids_S in zip(sequences, ids_BS, strict=True):
                record = np.zeros((), self.identity.record)
                record["ids"] = ids_S
                record["sum"] = _crc(record["ids"], sequence)
                os.pwrite(file.fileno(), record.tobytes(), sequence * self.identity.record.itemsize)


@dataclass(frozen=True)
class MixtureTeacher:
    """The teacher's tokens of the windows of a mixture: called with a window's number it gives int64 [S]."""

    windows: PackedMixture
    ids: dict[str, TeacherIds]  # by source

    def __call__(self, index: int) -> NDArray[np.int64]:
        place = self.windows.locate(index)
        return self.ids[place.source][place.sequence]

    def missing(self, first: int, step: int) -> list[int]:
        """Every `step`-th window from `first` on whose record is not there; of equal sequences the first."""
        seen: set[tuple[str, int]] = set()
        found = []
        for index in range(first, len(self.windows), step):
            place = self.windows.locate(index)
            key = (place.source, place.sequence)
            if key not in seen and not self.ids[place.source].has(place.sequence):
                seen.add(key)
                found.append(index)
        return found

    def put(self, indices: list[int], ids_BS: NDArray[np.int64]) -> None:
        """Keeps what the teacher said of these windows."""
        for index, ids_S in zip(indices, ids_BS, strict=True):
            place = self.windows.locate(index)
            self.ids[place.source].put([place.sequence], ids_S[None])


def open_mixture_teacher(
    windows: PackedMixture,
    cache: Path,
    *,
    teacher: str,
    precision: Literal["float32", "bfloat16"],
    create: bool,
) -> MixtureTeacher:
    """The cache of a mixture's sources; create: make the folders that are not there.

    PomonaError: one of them belongs to another teacher or other data, or is damaged.
    """
    ids = {}
    for source in windows.sources:
        identity = TeacherIdentity.of(
            source.path, windows.sequence_length, teacher=teacher, precision=precision
        )
        folder = cache / f"{source.name}-{windows.sequence_length}"
        if create and not folder.exists():
            _create(folder, identity)
        ids[source.name] = TeacherIds(folder, identity)
    return MixtureTeacher(windows, ids)


def _create(folder: Path, identity: TeacherIdentity) -> None:
    with ExitStack() as stack:
        directory = stack.enter_context(ModelDirectoryWriter(folder, mark=RECORD))
        file = stack.enter_context((directory.path / IDS).open("wb"))
        file.truncate(identity.sequences * identity.record.itemsize)
        write_json(directory.path / RECORD, identity.model_dump())


def _crc(ids: NDArray[Any], sequence: int) -> int:
    # Begun with the number, so that a record in another's place is none.
    return zlib.crc32(ids.tobytes(), sequence & 0xFFFFFFFF)
