"""Sequences of several packed sources by weight: deterministic, and sequence i is known without i - 1.

The i-th sequence is a pure function of (seed, i), so a run resumes anywhere at once:

- SLOTS slots are dealt to the sources by their weights, each source's slots spread evenly with a jitter, so
  that every stretch of the mixture keeps the weights (to a sequence or two). The deal repeats.
- Slot i of a source is its k-th draw, and k counts through shuffled passes over the source's sequences: none
  comes twice before all have come once.

The report mixes web, code, math, licensed and public text per stage (AFM_REPORT 2.1, 3.6) and publishes no
weights. How they are drawn is our own choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pomona.data.packed_tokens import PackedTokens
from pomona.data.permutation import mix, permute
from pomona.errors import PomonaError

SLOTS = 4096


@dataclass(frozen=True)
class Source:
    """A folder of packed tokens, and its weight relative to those of the other sources."""

    path: Path
    weight: float
    name: str


@dataclass(frozen=True)
class Place:
    """Where a sequence of the mixture comes from. epoch: finished passes over that source before it."""

    source: str
    epoch: int
    sequence: int


class PackedMixture:
    """A mixture as a sequence of int64 [sequence_length + 1] (inputs, and labels one further on).

    Neighbouring sequences of a source share one token, so that every token is a label once. Works as a data
    set of torch's DataLoader (give it no shuffling sampler: the order is shuffled already), and may be
    pickled. `length` is how many sequences it has; the default is as many as all sources have together.

    PomonaError: no source, a weight that is not positive or too small to be kept, a name twice, a source that
    is too short for one sequence, or sources of different tokenizers.
    """

    def __init__(
        self, sources: Sequence[Source], *, sequence_length: int, seed: int, length: int | None = None
    ) -> None:
        if sequence_length < 1 or (length is not None and length < 1):
            raise ValueError("sequence_length and length are at least 1")
        self.sources = tuple(sources)
        self.sequence_length, self.seed = sequence_length, seed
        _check(self.sources)
        self._tokens = [PackedTokens(source.path) for source in self.sources]
        self._check_alike()
        self._counts = [(len(tokens) - 1) // sequence_length for tokens in self._tokens]
        for source, count in zip(self.sources, self._counts, strict=True):
            if count < 1:
                raise PomonaError(
                    f"{source.path}: has fewer than {sequence_length + 1} tokens, not one sequence; "
                    "add text to it or leave it out"
                )
        self._shares = _shares(self.sources)
        self._keys = [mix(seed, _name_key(source.name)) for source in self.sources]
        self._source_of, self._rank_of = _deal(self._shares, self._keys)
        self._length = sum(self._counts) if length is None else length

    @property
    def vocab_size(self) -> int:
        return self._tokens[0].index.vocab_size

    @property
    def tokenizer(self) -> str:
        """SHA-256 of the tokenizer.json that all sources were packed with."""
        return self._tokens[0].index.tokenizer

    @property
    def shares(self) -> dict[str, float]:
        """Share of the sequences that each source really gets: its weight, rounded to 1 / SLOTS."""
        return {source.name: n / SLOTS for source, n in zip(self.sources, self._shares, strict=True)}

    @property
    def sequences(self) -> dict[str, int]:
        """Sequences in one pass over each source."""
        return {source.name: n for source, n in zip(self.sources, self._counts, strict=True)}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """Sequence `index`: int64 [sequence_length + 1]. IndexError outside [0, len(self))."""
        source, _, sequence = self._locate(index)
        return self._tokens[source].read(sequence * self.sequence_length, self.sequence_length + 1)

    def locate(self, index: int) -> Place:
        """Where sequence `index` comes from."""
        source, epoch, sequence = self._locate(index)
        return Place(self.sources[source].name, epoch, sequence)

    def _locate(self, index: int) -> tuple[int, int, int]:
        if not 0 <= index < self._length:
            raise IndexError(f"sequence {index} of {self._length}")
        deal, slot = divmod(int(index), SLOTS)
        source = int(self._source_of[slot])
        draw = deal * self._shares[source] + int(self._rank_of[slot])
        epoch, within = divmod(draw, self._counts[source])
        return source, epoch, permute(within, self._counts[source], mix(self._keys[source], epoch))

    def _check_alike(self) -> None:
        first = self._tokens[0].index
        for source, tokens in zip(self.sources, self._tokens, strict=True):
            index = tokens.index
            if (index.tokenizer, index.vocab_size) != (first.tokenizer, first.vocab_size):
                raise PomonaError(
                    f"{source.path}: was packed with another tokenizer than {self.sources[0].path}; "
                    "pack both with the same one"
                )


class MixtureRecipe(BaseModel):
    """Sources by name, and their weights per stage.

    sources: {web: packed/web, code: packed/code}     # folders, relative to the recipe
    stages: {core: {web: 0.8, code: 0.2}, continued: {web: 0.5, code: 0.5}}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, Path] = Field(min_length=1)
    stages: dict[str, dict[str, float]] = Field(min_length=1)

    def stage(self, name: str, *, folder: Path | None = None) -> list[Source]:
        """The sources of a stage; relative paths start from `folder`. PomonaError for an unknown name."""
        if name not in self.stages:
            raise PomonaError(f"stage {name}: is not in the mixture; it has {', '.join(self.stages)}")
        weights = self.stages[name]
        if unknown := sorted(set(weights) - set(self.sources)):
            raise PomonaError(
                f"stage {name}: has a weight for {unknown[0]}, which is no source; add its path"
            )
        base = folder or Path()
        return [
            Source(base / self.sources[source], weight, source)
            for source, weight in weights.items()
            if weight != 0
        ]


def read_mixture(value: Mapping[str, Any], where: str) -> MixtureRecipe:
    """A mixture out of a recipe's YAML. PomonaError, naming `where`, if it has another form."""
    try:
        return MixtureRecipe.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise PomonaError(f"{where}: {place}: {first['msg']}; correct the mixture") from error


def _check(sources: Sequence[Source]) -> None:
    if not sources:
        raise PomonaError("the mixture has no source; give at least one with a weight above 0")
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise PomonaError("the mixture has two sources of one name; give each its own")
    for source in sources:
        if not 0 < source.weight < float("inf"):
            raise PomonaError(
                f"{source.name}: its weight {source.weight} is not above 0; correct it or leave it out"
            )


def _shares(sources: Sequence[Source]) -> list[int]:
    """Slots of each source out of SLOTS, by largest remainder."""
    total = sum(source.weight for source in sources)
    exact = [source.weight / total * SLOTS for source in sources]
    slots = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda j: (slots[j] - exact[j], j))
    for j in order[: SLOTS - sum(slots)]:
        slots[j] += 1
    for source, count in zip(sources, slots, strict=True):
        if count == 0:
            raise PomonaError(
                f"{source.name}: its weight is below one in {SLOTS} of the mixture; raise it or leave it out"
            )
    return slots


def _deal(shares: Sequence[int], keys: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For every slot its source, and how many slots before it are of that source."""
    places = []
    for source, (count, key) in enumerate(zip(shares, keys, strict=True)):
        jitter = (mix(key, rank, count) / 2**64 for rank in range(count))
        places += [((rank + shift) / count, source, rank) for rank, shift in enumerate(jitter)]
    places.sort()
    source_of = np.array([source for _, source, _ in places], np.int32)
    return source_of, np.array([rank for _, _, rank in places], np.int32)


def _name_key(name: str) -> int:
    # By name and not by place: a source keeps its order when another one is added.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
