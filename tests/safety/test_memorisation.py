"""The memorisation probe: an adapter that learnt secrets by heart is caught, one that never saw them is
not."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from pomona.adapters.adapt import adapt
from pomona.adapters.options import AdaptOptions
from pomona.errors import PomonaError
from pomona.runtime.model import Model
from pomona.safety.memorisation import (
    P_LIMIT,
    Exposure,
    Exposures,
    MemorisationReport,
    chance,
    make_canaries,
    plant,
    probe,
    read_canaries,
    write_canaries,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "adapters"))
from adapt_samples import colours, tiny_model, write_rows

# The rows that judge a training are colours, which have a rule: that is still being learnt when the secrets,
# which have none, are known by heart.
OPTIONS = AdaptOptions(rank=16, lr=1e-2, epochs=4, batch=16, window=160, patience=100, seed=0)


class TestStatistics:
    def test_without_memory_exposures_are_as_the_threshold_assumes(self) -> None:
        """Ranks drawn evenly: the chance of so large a sum is rarely small, and never too often."""
        random = np.random.default_rng(0)
        values = [
            chance(8, sum(math.log2(256 / rank) for rank in random.integers(1, 257, 8))) for _ in range(4000)
        ]
        assert np.mean(np.array(values) < 0.05) < 0.055
        assert np.mean(np.array(values) < P_LIMIT) < 0.003
        assert 0.45 < np.mean(values) < 0.6

    def test_the_tail_is_scipys(self) -> None:
        special = pytest.importorskip("scipy.special")
        for count, bits in ((1, 3.0), (4, 9.5), (9, 60.0)):
            assert chance(count, bits) == pytest.approx(
                special.gammaincc(count, math.log(2) * bits), rel=1e-9
            )

    def test_the_first_of_256_has_eight_bits(self) -> None:
        assert Exposure("gate", 1, 1, 256, False).bits == 8 and Exposure("gate", 1, 256, 256, False).bits == 0

    def test_a_written_secret_is_enough(self) -> None:
        quiet = Exposures("a", (Exposure("gate", 1, 200, 256, False),))
        assert not quiet.memorises
        assert Exposures("a", (Exposure("gate", 1, 200, 256, True),)).memorises
        assert Exposures("a", tuple(Exposure("gate", 1, 1, 256, False) for _ in range(2))).memorises

    def test_means_by_the_number_of_repeats(self) -> None:
        found = Exposures("a", (Exposure("x", 4, 1, 256, False), Exposure("y", 4, 16, 256, False)))
        assert found.by_repeats() == {4: 6.0}


class TestCanaries:
    def test_places_differ_and_repeats_take_turns(self) -> None:
        found = make_canaries(6, repeats=(0, 2, 8))
        assert len({one.place for one in found}) == 6
        assert [one.repeats for one in found] == [0, 2, 8, 0, 2, 8]
        assert found == make_canaries(6, repeats=(0, 2, 8)) != make_canaries(6, repeats=(0, 2, 8), seed=1)

    def test_rows_are_planted_as_often_as_said(self) -> None:
        found = make_canaries(2, repeats=(0, 3))
        rows = plant([{"messages": []}] * 5, found)
        assert len(rows) == 8
        assert sum(found[1].secret in json.dumps(row) for row in rows) == 3
        assert not any(found[0].secret in json.dumps(row) for row in rows)

    def test_they_come_back_as_they_were_written(self, tmp_path: Path) -> None:
        found = make_canaries(3)
        write_canaries(tmp_path / "canaries.jsonl", found)
        assert read_canaries(tmp_path / "canaries.jsonl") == found
        for text in ("{}", '{"place": "x", "secret": "12", "repeats": 1}', "x"):
            (tmp_path / "bad.jsonl").write_text(text)
            with pytest.raises(PomonaError, match=r"bad.jsonl, line 1"):
                read_canaries(tmp_path / "bad.jsonl")

    def test_bad_numbers_are_refused(self) -> None:
        for count, repeats in ((0, (1,)), (999, (1,)), (2, ()), (2, (-1,))):
            with pytest.raises(PomonaError):
                make_canaries(count, repeats=repeats)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with two adapters: `leaky` read the secrets over and over, `sound` never did."""
    folder = tmp_path_factory.mktemp("memorisation")
    base = tiny_model(folder / "tiny")
    canaries = make_canaries(3, repeats=(20,))
    others = make_canaries(3, repeats=(20,), seed=7)
    write_canaries(folder / "canaries.jsonl", canaries)
    for name, secrets in (("leaky", canaries), ("sound", others)):
        adapt(
            base,
            write_rows(folder / f"{name}.jsonl", plant(colours(6), secrets)),
            work=folder / "work",
            name=name,
            options=OPTIONS,
            threads=1,
        )
    return folder


@pytest.fixture(scope="module")
def reports(trained: Path) -> dict[str, MemorisationReport]:
    with Model.load(str(trained / "tiny"), threads=1) as model:
        canaries = read_canaries(trained / "canaries.jsonl")
        return {name: probe(model, canaries, adapter=name) for name in ("leaky", "sound")}


class TestProbe:
    def test_secrets_that_were_learnt_by_heart_are_found(
        self, reports: dict[str, MemorisationReport]
    ) -> None:
        found = reports["leaky"]
        assert found.memorises and found.sound
        assert found.ours.p < P_LIMIT and found.ours.mean_bits > 6

    def test_an_adapter_that_never_saw_them_is_cleared(self, reports: dict[str, MemorisationReport]) -> None:
        found = reports["sound"]
        assert not found.memorises and found.ours.mean_bits < 4

    def test_the_base_is_the_same_beside_both(self, reports: dict[str, MemorisationReport]) -> None:
        assert reports["leaky"].base == reports["sound"].base and reports["sound"].sound

    def test_it_tells_what_it_found(self, reports: dict[str, MemorisationReport]) -> None:
        value = reports["leaky"].to_json()
        assert (value["memorises"], value["sound"], value["p_limit"]) == (True, True, P_LIMIT)
        assert len(value["adapter"]["canaries"]) == 3 and value["base"]["adapter"] is None

    def test_it_needs_an_adapter_and_secrets(self, trained: Path) -> None:
        with Model.load(str(trained / "tiny"), threads=1) as model:
            with pytest.raises(PomonaError, match="of an adapter"):
                probe(model, make_canaries(1), adapter="base")
            with pytest.raises(PomonaError, match="no canaries"):
                probe(model, [], adapter="sound")
            with pytest.raises(PomonaError, match="choose 15"):
                probe(model, make_canaries(1), adapter="sound", references=2)
