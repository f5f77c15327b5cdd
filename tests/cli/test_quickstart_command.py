"""`pomona quickstart`: pulls, compresses, adds the zoo's recovery adapter, answers, measures; again without
doing it twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pomona.cli import quickstart
from pomona.data.builtin_text import demo_prompts
from pomona.models import store

Command = Callable[..., Any]

MARK = "of the compressed model"


class FakeEngine:
    threads, isa = 2, "scalar"

    def __init__(self, chance: float) -> None:
        self.chance = chance
        self.config = SimpleNamespace(max_position_embeddings=2048, vocab_size=100_000)

    def score(self, token_ids: Sequence[int], adapter: str | None = None) -> Any:
        chance = self.chance if adapter is None else 1 / 22
        return np.full(len(token_ids) - 1, np.log(chance), np.float32)

    def new_sequence(self, adapter: str | None) -> Any:
        return nullcontext(adapter)


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo without adapters."""
    monkeypatch.setenv("POMONA_ZOO", str(tmp_path / "zoo"))
    (tmp_path / "zoo").mkdir()
    return tmp_path / "zoo"


@pytest.fixture
def house(
    cli_models: Path,
    zoo: Path,
    fake_module: Callable[..., None],
    runtime: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """Fakes for everything the tour calls; gives the list of what it did."""
    done: list[str] = []

    def make(directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text("{}")
        return directory

    def pull(source: str, *, progress: Callable[..., None], overwrite: bool) -> Path:
        done.append(f"pull {source} {overwrite}")
        progress("download", 1, 1)
        return make(cli_models / source)

    def compress(source: Path, target: Path, *, overwrite: bool, **options: Any) -> None:
        assert (source / "config.json").is_file()
        done.append(f"compress {target.name} {overwrite}")
        make(target)

    def describe(directory: Path) -> SimpleNamespace:
        small = directory.name.endswith("-4bit")
        return SimpleNamespace(
            file_bytes=82_000_000 if small else 269_000_000,
            projection_bits_per_weight=4.04 if small else 16.0,
            file_bits_per_weight=4.9 if small else 16.01,
            fingerprint=MARK if small else "of the original",
        )

    def load(source: str, **options: Any) -> Any:
        model = runtime.load(source, **options)
        model.engine = FakeEngine(1 / 25 if source.endswith("-4bit") else 1 / 20)
        model.adapters = SimpleNamespace(acquire=lambda name: name)
        return model

    def generate(
        engine: Any, ids: list[int], *, sampling: Any, max_new_tokens: int, stop_ids: Any, sequence: Any
    ) -> Iterator[int]:
        done.append(f"generate {len(ids)} {max_new_tokens}" + ("" if sequence is None else f" {sequence}"))
        yield from range(max_new_tokens)

    def add(model: Path, source: str) -> None:
        done.append(f"add {source}")
        make(model / "adapters" / "recovery")
        (model / "adapters" / "recovery" / "adapter_config.json").write_text("{}")
        (model / "adapters" / "recovery" / "adapter_model.safetensors").write_bytes(bytes(1_000_000))

    fake_module("pomona.adapters.store", add=add)
    monkeypatch.setattr(store, "pull", pull)
    fake_module("pomona.compression.compress", compress=compress)
    fake_module("pomona.models.palettized", describe=describe)
    fake_module("pomona.runtime.generate", generate=generate)
    fake_module("pomona.runtime.model", Model=SimpleNamespace(load=load))
    return done


def put_recovery(zoo: Path, mark: str) -> None:
    (zoo / "small" / "recovery").mkdir(parents=True)
    (zoo / "small" / "recovery" / "pomona.json").write_text(json.dumps({"base_fingerprint": mark}))


def test_the_tour(pomona: Command, house: list[str], runtime: Any) -> None:
    outcome = pomona("quickstart")
    assert outcome.code == 0, outcome.err
    assert house[:2] == ["pull smollm2-135m False", "compress smollm2-135m-4bit False"]
    asked = [request[0]["content"] for model in runtime.loaded for request in model.requests]
    assert asked == demo_prompts()
    for words in ("> " + demo_prompts()[0], "Hello.", "269 MB", "82 MB", "16.00", "4.04", "20.00", "25.00"):
        assert words in outcome.out
    assert "torch imported:" in outcome.out


def test_speeds_are_measured_in_turns_with_fixed_lengths(pomona: Command, house: list[str]) -> None:
    pomona("quickstart")
    measured = [line for line in house if line.startswith("generate")]
    once = [f"generate {quickstart.PREFILL_TOKENS} 1", f"generate 32 {quickstart.DECODE_TOKENS + 1}"]
    assert measured == once * 2 * quickstart.REPEATS


def test_the_second_time_uses_what_is_there_and_says_so(pomona: Command, house: list[str]) -> None:
    assert pomona("quickstart", "--json").json["reused"] == []
    house.clear()
    outcome = pomona("quickstart")
    assert outcome.code == 0
    assert outcome.out.count("already in") == 2
    assert not [line for line in house if line.startswith(("pull", "compress"))]
    assert pomona("quickstart", "--json").json["reused"] == ["smollm2-135m", "smollm2-135m-4bit"]


def test_fresh_does_it_all_again(pomona: Command, house: list[str]) -> None:
    pomona("quickstart")
    house.clear()
    assert pomona("quickstart", "--fresh").code == 0
    assert house[:2] == ["pull smollm2-135m True", "compress smollm2-135m-4bit True"]


def test_json_is_one_object_and_the_tour_goes_to_standard_error(pomona: Command, house: list[str]) -> None:
    outcome = pomona("quickstart", "--json", "--threads", "2")
    found = outcome.json
    assert found["source"]["file_bytes"] == 269_000_000
    assert found["compressed"]["projection_bits_per_weight"] == 4.04
    assert found["source"]["perplexity"] == pytest.approx(20)
    assert found["compressed"]["perplexity"] == pytest.approx(25)
    assert found["compressed"]["decode_tokens_per_second"] > 0
    assert [answer["response"] for answer in found["answers"]] == ["Hello.", "Hello."]
    assert set(found["seconds"]) == {"pull", "compress", "recover", "answer", "measure", "total"}
    assert "Hello." in outcome.err


def test_the_recovery_adapter_of_the_zoo_is_put_in_and_measured(
    pomona: Command, house: list[str], zoo: Path
) -> None:
    put_recovery(zoo, MARK)
    found = pomona("quickstart", "--json").json
    assert "add zoo:recovery" in house
    assert [found[key]["perplexity"] for key in ("source", "compressed", "recovered")] == pytest.approx(
        [20, 25, 22]
    )
    assert found["recovered"]["adapter"] == "recovery" and found["compressed"]["adapter"] is None
    more = found["recovered"]["file_bytes"] - found["compressed"]["file_bytes"]
    assert 1_000_000 < more < 1_001_000
    assert found["recovered"]["file_bits_per_weight"] == pytest.approx(4.9 * (1 + more / 82_000_000))
    measured = [line for line in house if line.startswith("generate")]
    assert measured[4:6] == [f"{line} recovery" for line in measured[:2]]
    assert len(measured) == 3 * 2 * quickstart.REPEATS


def test_the_adapter_that_is_there_stays(
    pomona: Command, house: list[str], zoo: Path, cli_models: Path
) -> None:
    put_recovery(zoo, MARK)
    pomona("quickstart")
    own = cli_models / "smollm2-135m-4bit" / "adapters" / "recovery" / "adapter_config.json"
    own.write_text('{"mine": 1}')
    house.clear()
    outcome = pomona("quickstart")
    assert "with recovery" in outcome.out
    assert "add zoo:recovery" not in house
    assert own.read_text() == '{"mine": 1}'


def test_without_a_fitting_adapter_the_tour_says_so_and_goes_on(
    pomona: Command, house: list[str], zoo: Path, cli_models: Path
) -> None:
    put_recovery(zoo, "of another model")
    outcome = pomona("quickstart")
    assert outcome.code == 0
    assert f"none is in the zoo for base {MARK}" in outcome.out
    assert "with recovery" not in outcome.out
    assert not (cli_models / "smollm2-135m-4bit" / "adapters").exists()
