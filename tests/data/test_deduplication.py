"""Near-duplicates: found by the share of n-grams in common, across tasks; one of each cluster stays."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datatrove")

from pipeline_samples import prose, recipe, rows_below, write_rows

from pomona.data.pipeline.deduplication import Signatures, shingles
from pomona.data.pipeline.recipe import Deduplicate
from pomona.data.pipeline.run import run_recipe


def edited(text: str, rng: random.Random, share: float) -> str:
    words = text.split(" ")
    for place in rng.sample(range(len(words)), round(share * len(words))):
        words[place] = f"changed{rng.randrange(10**6)}"
    return " ".join(words)


def test_signatures_estimate_the_share_of_common_n_grams(tmp_path: Path) -> None:
    rng = random.Random(1)
    text = " ".join(f"w{rng.randrange(5000)}" for _ in range(400))
    settings = Deduplicate(bands=40, rows=5)
    block = Signatures(tmp_path, settings)
    for share in (0.0, 0.02, 0.05, 0.2, 1.0):
        other = edited(text, rng, share)
        a, b = set(shingles(text, 3).tolist()), set(shingles(other, 3).tolist())
        true = len(a & b) / len(a | b)
        one, two = (np.ravel(block.get_signature(block.get_shingles(one))) for one in (text, other))
        assert abs(float((one == two).mean()) - true) < 4 * np.sqrt(0.25 / 200)


def test_signatures_do_not_depend_on_how_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Signatures(tmp_path, Deduplicate())
    grams = block.get_shingles(prose(random.Random(2), 60))
    whole = block.get_signature(grams)
    monkeypatch.setattr("pomona.data.pipeline.deduplication._CHUNK", 7)
    assert block.get_signature(grams) == whole == block.get_signature(grams[::-1])


def test_short_texts_count_by_all_their_words() -> None:
    assert len(shingles("", 3)) == 0
    assert (
        shingles("Two words", 3).tolist()
        == shingles("two, WORDS!", 3).tolist()
        != shingles("two birds", 3).tolist()
    )
    assert len(shingles("a b c a b c", 3)) == 3  # abc, bca, cab


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """60 texts in three files, 20 of them with a copy edited by 5% in another file, a cluster of exact
    copies, and an empty file, in four tasks."""
    root = tmp_path_factory.mktemp("duplicates")
    rng = random.Random(7)
    texts = {f"text-{i}": " ".join(f"w{rng.randrange(900)}" for _ in range(150)) for i in range(60)}
    copies = {f"copy-{i}": edited(texts[f"text-{i}"], rng, 0.05) for i in range(20)}
    exact = {f"exact-{i}": "the same few words" for i in range(4)}
    rows = [{"id": name, "text": text} for name, text in {**texts, **copies, **exact}.items()]
    rng.shuffle(rows)
    for number in range(3):
        write_rows(root / "in" / f"{number}.jsonl", rows[number::3])
    (root / "in" / "9-empty.jsonl").touch()
    given = [{"name": "all", "path": str(root / "in"), "kind": "jsonl"}]
    run_recipe(recipe(given, ["deduplicate"], tasks=4), root, root / "run")
    return root / "run", {**texts, **copies, **exact}


def test_near_duplicates_are_found_across_files_and_nothing_else(run: tuple[Path, dict[str, str]]) -> None:
    folder, documents = run
    removed = {row["id"] for row in rows_below(folder / "removed" / "01-deduplicate")}
    kept = {row["id"] for row in rows_below(folder / "documents")}
    assert removed | kept == set(documents) and not removed & kept
    pairs = [{f"text-{i}", f"copy-{i}"} for i in range(20)]
    assert all(len(pair & removed) == 1 for pair in pairs)
    assert len({f"exact-{i}" for i in range(4)} & kept) == 1
    assert not {f"text-{i}" for i in range(20, 60)} & removed


def test_what_was_removed_names_its_cluster(run: tuple[Path, dict[str, str]]) -> None:
    folder, _ = run
    removed = rows_below(folder / "removed" / "01-deduplicate")
    kept = {row["metadata"].get("duplicate_cluster"): row["id"] for row in rows_below(folder / "documents")}
    for row in removed:
        assert row["metadata"]["filter_reason"] == "duplicate"
        left = kept[row["metadata"]["duplicate_cluster"]]
        assert left.partition("-")[2] == row["id"].partition("-")[2] or left.startswith("exact")


def test_the_bar_of_similarity_decides(tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [" ".join(f"w{rng.randrange(900)}" for _ in range(200)) for _ in range(15)]
    path = write_rows(tmp_path / "a.jsonl", [*texts, *(edited(text, rng, 0.05) for text in texts)])
    counts = []
    for bar in (0.4, 0.99):
        made = recipe(path, [{"deduplicate": {"bands": 12, "rows": 4, "min_similarity": bar}}])
        funnel = run_recipe(made, tmp_path, tmp_path / f"run-{bar}")
        assert funnel is not None
        counts.append(funnel.rows[1].removed.get("duplicate", 0))
    assert counts == [15, 0]
