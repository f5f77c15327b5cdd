"""Benchmarks are kept out by the report's rule, which an independent count by strings confirms."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove")

from pipeline_samples import recipe, rows_below, write_rows

from pomona.data.ngrams import plain_words
from pomona.data.pipeline.decontamination import BenchmarkIndex, benchmark_texts
from pomona.data.pipeline.recipe import Benchmark, Decontaminate
from pomona.data.pipeline.run import run_recipe
from pomona.errors import PomonaError


def grams(text: str, shortest: int, longest: int) -> list[tuple[str, ...]]:
    words = plain_words(text)
    return [tuple(words[i : i + n]) for n in range(shortest, longest + 1) for i in range(len(words) - n + 1)]


def settings(path: Path, **more: Any) -> Decontaminate:
    return Decontaminate(benchmarks=[Benchmark(name="b", path=str(path))], **more)


def removed_by(
    tmp_path: Path, texts: list[str], given: Decontaminate, tasks: int = 1
) -> dict[int, dict[str, Any]]:
    """Number of the text -> metadata of those that go."""
    for number in range(tasks):
        rows = [{"id": str(i), "text": texts[i]} for i in range(number, len(texts), tasks)]
        write_rows(tmp_path / "in" / f"{number}.jsonl", rows)
    inputs = [{"name": "all", "path": str(tmp_path / "in"), "kind": "jsonl"}]
    steps = [{"decontaminate": given.model_dump()}]
    run_recipe(recipe(inputs, steps, tasks=tasks), tmp_path, tmp_path / "run")
    found = rows_below(tmp_path / "run" / "removed" / "01-decontaminate")
    return {int(row["id"]): row["metadata"] for row in found}


@pytest.mark.parametrize(("rule", "common"), [("any", 12), ("longest", 6)])
def test_the_rule_is_that_of_a_count_by_strings(tmp_path: Path, rule: str, common: int) -> None:
    rng = random.Random(5)
    vocabulary = [f"w{i}" for i in range(7 if rule == "any" else 3)]
    items = [" ".join(rng.choices(vocabulary, k=rng.randint(2, 9))) for _ in range(12)]
    texts = [" ".join(rng.choices([*vocabulary, "rare", "other"], k=rng.randint(0, 30))) for _ in range(300)]
    path = write_rows(tmp_path / "b.jsonl", items)
    given = settings(path, shortest=3, longest=6, common=common, rule=rule)
    found = removed_by(tmp_path, texts, given, tasks=3)

    if rule == "any":
        wanted = {gram for item in items for gram in grams(item, 3, 6)}
    else:
        sizes = {item: min(6, len(item.split())) for item in items}
        wanted = {gram for item, n in sizes.items() if n >= 3 for gram in grams(item, n, n)}
    counts = Counter(gram for text in texts for gram in grams(text, 3, 6) if gram in wanted)
    bad = {
        i
        for i, text in enumerate(texts)
        if any(g in wanted and counts[g] < common for g in grams(text, 3, 6))
    }
    assert set(found) == bad and 0 < len(bad) < 300
    assert max(counts.values()) >= common  # so the exception was tried
    for number, metadata in found.items():
        shared = tuple(metadata["contamination"].split())
        assert shared in wanted and counts[shared] < common and metadata["filter_reason"] == "contaminated_b"
        assert " ".join(shared) in " ".join(plain_words(texts[number]))


def test_common_phrases_stay_from_the_thousandth_occurrence_on(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "b.jsonl", ["How many apples does he have", "What is the sum of these"])
    texts = [f"{i} x how many, apples DOES he have? y {i}" for i in range(1000)]
    texts += [f"{i} x what is the sum of these {i}" for i in range(999)]
    found = removed_by(tmp_path, [*texts, "nothing of the kind"], settings(path))
    assert set(found) == set(range(1000, 1999))


def test_no_n_gram_reaches_from_one_text_of_a_benchmark_into_the_next(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "b.jsonl", ["one two three", "four five six"])
    index = BenchmarkIndex.build(settings(path, shortest=2, longest=4), tmp_path)
    assert len(index.find(plain_words("three four")).index) == 0
    match = index.find(plain_words("zero one two three four five"))
    assert sorted(zip(match.first.tolist(), match.length.tolist(), strict=True)) == [
        (1, 2),
        (1, 3),
        (2, 2),
        (4, 2),
    ]


@pytest.mark.parametrize("text", ["", "a", "a b c"])
def test_short_documents_share_nothing(tmp_path: Path, text: str) -> None:
    path = write_rows(tmp_path / "b.jsonl", ["a b c d e"])
    assert len(BenchmarkIndex.build(settings(path), tmp_path).find(plain_words(text)).index) == 0


def test_benchmarks_of_all_forms_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('"one, two",three\nfour,five\n')
    (tmp_path / "d.json").write_text(json.dumps([{"q": "six", "options": ["seven", {"x": "eight"}], "n": 9}]))
    (tmp_path / "e.txt").write_text("ten\neleven\n")
    write_rows(tmp_path / "f.jsonl", [{"text": "twelve", "answer": "thirteen"}])
    texts = list(benchmark_texts(Benchmark(name="all", path=str(tmp_path)), tmp_path))
    assert texts[:4] == ["one, two", "three", "four", "five"]
    assert texts[4:] == ["six", "seven", "eight", "ten", "eleven", "twelve", "thirteen"]
    only = Benchmark(name="d", path="d.json", keys=["options"])
    assert list(benchmark_texts(only, tmp_path)) == ["seven", "eight"]


def test_a_benchmark_without_text_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "b.jsonl", ["too short"])
    with pytest.raises(PomonaError, match="no text of 4 words"):
        BenchmarkIndex.build(settings(path), tmp_path)
    (tmp_path / "x.jsonl").write_text("{broken")
    with pytest.raises(PomonaError, match="cannot be read as a benchmark"):
        BenchmarkIndex.build(settings(tmp_path / "x.jsonl"), tmp_path)
    with pytest.raises(PomonaError, match="no such file"):
        BenchmarkIndex.build(settings(tmp_path / "none"), tmp_path)


def test_the_index_is_saved_as_it_is(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "b.jsonl", ["a b c d e f", "g h i j k"])
    index = BenchmarkIndex.build(settings(path), tmp_path)
    index.save(tmp_path / "i.npz")
    again = BenchmarkIndex.load(tmp_path / "i.npz")
    assert (again.hashes == index.hashes).all() and (again.owner == index.owner).all()
    assert (again.names, again.lengths, again.nested) == (["b"], range(4, 14), True)
