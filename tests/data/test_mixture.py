"""The mixture: a pure function of seed and index, that keeps its weights and repeats nothing too early."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from packing_samples import write_packed

from pomona.data.mixture import SLOTS, PackedMixture, Place, Source, read_mixture
from pomona.data.permutation import mix, permute
from pomona.errors import PomonaError

LENGTH = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sources of 300, 50 and 7 sequences; the tokens of each count upwards from its own hundred thousand."""
    root = tmp_path_factory.mktemp("sources")
    made = {}
    for number, (name, sequences) in enumerate({"web": 300, "code": 50, "math": 7}.items(), start=1):
        ids = [number * 100_000 + n for n in range(sequences * LENGTH)]
        made[name] = write_packed(root / name, [ids], vocab_size=1_000_000)
    return made


def mixture(
    folders: dict[str, Path], seed: int = 3, length: int | None = None, **weights: float
) -> PackedMixture:
    weights = weights or {"web": 0.6, "code": 0.3, "math": 0.1}
    sources = [Source(folders[name], weight, name) for name, weight in weights.items()]
    return PackedMixture(sources, sequence_length=LENGTH, seed=seed, length=length)


def test_sequence_i_needs_nothing_but_seed_and_i(folders: dict[str, Path]) -> None:
    one, other = mixture(folders), mixture(folders)
    forwards = [one[i] for i in range(len(one))]
    assert len(one) == 357 and all(row.shape == (LENGTH + 1,) and row.dtype == np.int64 for row in forwards)
    for i in reversed(range(len(one))):
        assert (other[i] == forwards[i]).all()
    assert any((mixture(folders, seed=4)[i] != forwards[i]).any() for i in range(20))


def test_a_sequence_far_ahead_costs_no_more_than_the_first(folders: dict[str, Path]) -> None:
    far = mixture(folders, length=10**15)
    row = far[10**15 - 1]
    assert row.shape == (LENGTH + 1,) and far.locate(10**15 - 1).epoch > 10**10


def test_every_stretch_keeps_the_weights(folders: dict[str, Path]) -> None:
    mixed = mixture(folders, length=3 * SLOTS)
    names = [mixed.locate(i).source for i in range(len(mixed))]
    for start in range(0, len(names) - 500, 333):
        counts = Counter(names[start : start + 500])
        for name, share in {"web": 0.6, "code": 0.3, "math": 0.1}.items():
            assert abs(counts[name] - 500 * share) <= 3
    assert mixed.shares == pytest.approx({"web": 0.6, "code": 0.3, "math": 0.1}, abs=1 / SLOTS)
    assert Counter(names[:SLOTS]) == {name: round(share * SLOTS) for name, share in mixed.shares.items()}


def test_no_sequence_comes_again_before_its_whole_source_has_come(folders: dict[str, Path]) -> None:
    mixed = mixture(folders, length=4000)
    seen: dict[str, list[Place]] = {}
    for i in range(len(mixed)):
        place = mixed.locate(i)
        seen.setdefault(place.source, []).append(place)
    for name, count in mixed.sequences.items():
        draws = [place.sequence for place in seen[name]]
        passes = [draws[k : k + count] for k in range(0, len(draws) - count + 1, count)]
        assert len(passes) >= 4 and all(sorted(one) == list(range(count)) for one in passes)
        assert all(place.epoch == k // count for k, place in enumerate(seen[name]))
    assert len({tuple(p.sequence for p in seen["code"][k : k + 50]) for k in range(0, 1000, 50)}) == 20


def test_every_token_is_a_label_once_in_a_pass(folders: dict[str, Path]) -> None:
    mixed = mixture(folders, code=1.0)
    labels = np.sort(np.concatenate([mixed[i][1:] for i in range(50)]))
    stream = [*range(200_001, 200_000 + 50 * LENGTH), 0]
    assert labels.tolist() == sorted(stream)


def test_a_source_keeps_its_order_when_another_joins(folders: dict[str, Path]) -> None:
    alone, joined = mixture(folders, web=1.0), mixture(folders, web=1.0, math=1.0)
    order = [alone.locate(i).sequence for i in range(60)]
    places = [joined.locate(i) for i in range(120)]
    assert [place.sequence for place in places if place.source == "web"][:55] == order[:55]


def test_it_is_a_data_set_for_torch_workers(folders: dict[str, Path]) -> None:
    torch = pytest.importorskip("torch")
    mixed = mixture(folders, length=24)
    loader = torch.utils.data.DataLoader(mixed, batch_size=4, num_workers=1)
    rows = torch.cat(list(loader)).numpy()
    assert rows.shape == (24, LENGTH + 1) and (rows == np.stack(list(mixed))).all()  # type: ignore[call-overload]
    assert len(pickle.dumps(mixed)) < 60_000


@pytest.mark.parametrize(
    ("weight", "message"), [(0.0, "not above 0"), (-1, "not above 0"), (1e-6, "below one in")]
)
def test_a_weight_that_could_not_be_kept_is_refused(
    folders: dict[str, Path], weight: float, message: str
) -> None:
    with pytest.raises(PomonaError, match=message):
        mixture(folders, web=1.0, math=weight)


def test_sources_that_do_not_fit_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    short = write_packed(tmp_path / "short", [[1, 2, 3]], vocab_size=1_000_000)
    foreign = write_packed(tmp_path / "foreign", [[1] * 50], vocab_size=1_000_000, tokenizer="b" * 64)
    web = Source(folders["web"], 1.0, "web")
    for sources, message in [
        ([], "no source"),
        ([web, web], "two sources of one name"),
        ([web, Source(short, 1.0, "short")], "fewer than 9 tokens"),
        ([web, Source(foreign, 1.0, "foreign")], "another tokenizer"),
        ([Source(tmp_path / "none", 1.0, "none")], "no packed tokens"),
    ]:
        with pytest.raises(PomonaError, match=message):
            PackedMixture(sources, sequence_length=LENGTH, seed=0)
    with pytest.raises(IndexError):
        mixture(folders)[357]
    with pytest.raises(IndexError):
        mixture(folders)[-1]


def test_a_recipe_gives_each_stage_its_sources(tmp_path: Path) -> None:
    recipe = read_mixture(
        {
            "sources": {"web": "w", "code": "c"},
            "stages": {"core": {"web": 0.8, "code": 0.2}, "late": {"code": 1}},
        },
        "r.yaml",
    )
    assert recipe.stage("core", folder=tmp_path) == [
        Source(tmp_path / "w", 0.8, "web"),
        Source(tmp_path / "c", 0.2, "code"),
    ]
    assert [source.name for source in recipe.stage("late")] == ["code"]
    with pytest.raises(PomonaError, match="it has core, late"):
        recipe.stage("middle")
    with pytest.raises(PomonaError, match=r"r\.yaml: stage: Extra inputs"):
        read_mixture({"sources": {"a": "b"}, "stages": {"core": {"a": 1}}, "stage": {}}, "r.yaml")
    wrong = read_mixture({"sources": {"a": "b"}, "stages": {"core": {"x": 1}}}, "r.yaml")
    with pytest.raises(PomonaError, match="weight for x, which is no source"):
        wrong.stage("core")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1000])
def test_a_permutation_is_one(count: int) -> None:
    images = [permute(i, count, key=9) for i in range(count)]
    assert sorted(images) == list(range(count))
    assert count < 16 or images != [permute(i, count, key=10) for i in range(count)] != list(range(count))


def test_a_permutation_looks_shuffled() -> None:
    # Rank correlation of a thousand draws with their order, over keys: within five deviations of none.
    ranks = np.array([[permute(i, 1000, key) for i in range(1000)] for key in range(20)])
    correlation = [np.corrcoef(np.arange(1000), row)[0, 1] for row in ranks]
    assert max(map(abs, correlation)) < 5 / np.sqrt(1000)
    steps = np.abs(np.diff(ranks, axis=1)).mean()
    assert abs(steps - 1000 / 3) < 15


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of splitmix64 from seed 0
    assert mix(1, 2) != mix(2, 1)
