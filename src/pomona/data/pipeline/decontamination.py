"""Keeping benchmarks out: a document that shares an n-gram with one is dropped, unless the n-gram is common.

AFM_REPORT 2.3: the unit is the document, the trigger any shared n-gram of 4 to 13 words, the exception an
n-gram that the corpus has 1,000 times or more. Two passes: one counts the benchmarks' n-grams in the corpus,
one drops. What is counted (occurrences, over the documents that reach this step) and how words are made
(lower case, no punctuation) is ours.

All lengths of n-gram go into one sorted array, so a look-up is a binary search. An n-gram can only be shared
where both its (n-1)-grams are, so longer ones are looked up in few places.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.jsonl import JsonlWriter
from numpy.typing import NDArray

from pomona.data.documents import find_files, open_maybe_compressed, read_lines
from pomona.data.ngrams import Hashes, ngram_hashes, plain_words, word_hashes
from pomona.data.pipeline.blocks import Documents, Filter, Verdict
from pomona.data.pipeline.recipe import Benchmark, Decontaminate, resolve
from pomona.errors import PomonaError

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".txt")
_MAX_LINE = 16 << 20


@dataclass(frozen=True)
class Match:
    """n-grams of a document that benchmarks have. index: int64 [M] into the index; first, length: words."""

    index: NDArray[np.int64]
    first: NDArray[np.int64]
    length: NDArray[np.int64]


@dataclass(frozen=True)
class BenchmarkIndex:
    """The n-grams of benchmarks: sorted `hashes` uint64 [N], `owner` uint16 [N] the benchmark of each.
    nested: of every n-gram its shorter ones are there too."""

    hashes: Hashes
    owner: NDArray[np.uint16]
    names: list[str]
    lengths: range
    nested: bool

    @classmethod
    def build(cls, settings: Decontaminate, base: Path) -> BenchmarkIndex:
        """Of the texts of a recipe's benchmarks. PomonaError for one that is not there or has no text."""
        hashes, owner = [], []
        for number, benchmark in enumerate(settings.benchmarks):
            found = _ngrams_of(list(benchmark_texts(benchmark, base)), settings)
            if len(found) == 0:
                raise PomonaError(
                    f"benchmark {benchmark.name}: has no text of {settings.shortest} words; "
                    "check its path and keys"
                )
            hashes.append(found)
            owner.append(np.full(len(found), number, np.uint16))
        unique, first = np.unique(np.concatenate(hashes), return_index=True)
        lengths = range(settings.shortest, settings.longest + 1)
        names = [benchmark.name for benchmark in settings.benchmarks]
        return cls(unique, np.concatenate(owner)[first], names, lengths, settings.rule == "any")

    def save(self, path: Path) -> None:
        lengths = [self.lengths.start, self.lengths.stop]
        facts = {"names": self.names, "lengths": lengths, "nested": self.nested}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, hashes=self.hashes, owner=self.owner)

    @classmethod
    def load(cls, path: Path) -> BenchmarkIndex:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        with np.load(path, allow_pickle=False) as file:
            lengths = range(*facts["lengths"])
            return cls(file["hashes"], file["owner"], facts["names"], lengths, facts["nested"])

    def find(self, words: list[str]) -> Match:
        """All n-grams of a document that are in the index."""
        hashes = word_hashes(words)
        none = np.empty(0, np.int64)
        indices, firsts, lengths = [none], [none], [none]
        places = np.arange(max(0, len(hashes) - self.lengths.start + 1))
        for n in self.lengths:
            if len(places) == 0:
                break
            grams = ngram_hashes(hashes, n)[places]
            at = np.searchsorted(self.hashes, grams)
            hit = self.hashes[np.minimum(at, len(self.hashes) - 1)] == grams
            found = places[hit]
            indices.append(at[hit])
            firsts.append(found)
            lengths.append(np.full(len(found), n))
            if self.nested:  # the next length needs two neighbours of this one
                places = found[:-1][np.diff(found) == 1]
            else:
                places = np.arange(max(0, len(hashes) - n))
        return Match(np.concatenate(indices), np.concatenate(firsts), np.concatenate(lengths))


def _ngrams_of(texts: list[str], settings: Decontaminate) -> Hashes:
    """The different n-grams of a benchmark's texts; none reaches from one text into the next."""
    words = [plain_words(text) for text in texts]
    hashes = word_hashes([word for row in words for word in row])
    sizes = [len(row) for row in words]
    text, size = np.repeat(np.arange(len(words)), sizes), np.repeat(sizes, sizes)
    found = [np.empty(0, np.uint64)]
    for n in range(settings.shortest, settings.longest + 1):
        count = max(0, len(hashes) - n + 1)
        inside = text[:count] == text[n - 1 :][:count]
        if settings.rule == "longest":
            inside &= np.minimum(size[:count], settings.longest) == n
        found.append(np.unique(ngram_hashes(hashes, n)[inside]))
    return np.unique(np.concatenate(found))


def benchmark_texts(benchmark: Benchmark, base: Path) -> Iterator[str]:
    """The texts of a benchmark's files, a field or line each."""
    for path in find_files([resolve(benchmark.path, base)], _SUFFIXES):
        try:
            with open_maybe_compressed(path) as file:
                if ".jsonl" in path.name:
                    for number, line in read_lines(file, _MAX_LINE):
                        if line is None:
                            raise ValueError(f"line {number} is too long")
                        if line.strip():
                            yield from _strings(json.loads(line), benchmark.keys)
                    continue
                text = file.read().decode("utf-8", "replace")
            if path.suffix == ".json":
                yield from _strings(json.loads(text), benchmark.keys)
            elif path.suffix == ".csv":
                yield from (cell for row in csv.reader(io.StringIO(text)) for cell in row)
            else:
                yield from text.splitlines()
        except (OSError, ValueError, RecursionError, csv.Error) as error:
            raise PomonaError(f"{path}: cannot be read as a benchmark ({error}); get it again") from error


def _strings(value: Any, keys: list[str]) -> Iterable[str]:
    """All strings in a JSON value, or those below one of `keys`."""
    if isinstance(value, str):
        return [] if keys else [value]
    if isinstance(value, list):
        return [text for one in value for text in _strings(one, keys)]
    if isinstance(value, dict):
        below = ((one, [] if key in keys else keys) for key, one in value.items())
        return [text for one, wanted in below for text in _strings(one, wanted)]
    return []


class CountNgrams(PipelineStep):  # type: ignore[misc]
    """Pass 1: how often the documents of a task have each n-gram of the index."""

    name = "count n-grams"
    type = "decontaminate"

    def __init__(self, index: Path, folder: Path) -> None:
        super().__init__()
        self.index_path, self.folder = index, folder

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> None:
        index = BenchmarkIndex.load(self.index_path)
        counts = np.zeros(len(index.hashes), np.int64)
        for doc in data:
            self.stat_update("total")
            with self.track_time():
                match = index.find(plain_words(doc.text))
                np.add.at(counts, match.index, 1)
        [found] = np.nonzero(counts)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{rank:05d}.npz").open("wb") as file:
            np.savez(file, allow_pickle=False, index=found, count=counts[found])


class MergeCounts(PipelineStep):  # type: ignore[misc]
    """Between the passes, one task: which n-grams are common in the whole corpus."""

    name = "merge counts"
    type = "decontaminate"

    def __init__(self, index: Path, folder: Path, common: int) -> None:
        super().__init__()
        self.index_path, self.folder, self.common = index, folder, common

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        counts = np.zeros(len(BenchmarkIndex.load(self.index_path).hashes), np.int64)
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as file:
                counts[file["index"]] += file["count"]
        self.stat_update("shared_ngrams", value=int((counts > 0).sum()))
        self.stat_update("common_ngrams", value=int((counts >= self.common).sum()))
        with (self.folder / "common.npy").open("wb") as out:
            np.save(out, counts >= self.common, allow_pickle=False)


class DropContaminated(Filter):
    """Pass 2. Removed: contaminated_NAME, of the benchmark; the shared words stand in `contamination`."""

    name = "decontaminate"

    def __init__(self, index: Path, folder: Path, writer: JsonlWriter | None = None) -> None:
        super().__init__(writer)
        self.index_path, self.folder = index, folder
        self._index: BenchmarkIndex | None = None
        self._common: NDArray[np.bool_] = np.empty(0, np.bool_)

    def filter(self, doc: Document) -> Verdict:
        if self._index is None:
            self._index = BenchmarkIndex.load(self.index_path)
            self._common = np.load(self.folder / "common.npy", allow_pickle=False)
        words = plain_words(doc.text)
        match = self._index.find(words)
        [rare] = np.nonzero(~self._common[match.index])
        if len(rare) == 0:
            return True
        worst = rare[np.argmax(match.length[rare])]  # the longest says most
        first, length = int(match.first[worst]), int(match.length[worst])
        doc.metadata["contamination"] = " ".join(words[first : first + length])
        return False, f"contaminated_{self._index.names[int(self._index.owner[match.index[worst]])]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}
