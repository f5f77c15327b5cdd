"""`show` tells what an adapter is; `verify` finds each kind of damage, and names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapter_samples import TINY, adapter_for, edit_weights, tiny_model
from safetensors.numpy import load_file

from pomona.adapters import inspection, store


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(folder / "tiny")
    store.add(model, adapter_for(model, folder / "summarize"))
    return model


@pytest.fixture
def model(filled: Path, tmp_path: Path) -> Path:
    """A tiny model with the sound adapter `summarize`."""
    return Path(shutil.copytree(filled, tmp_path / "tiny"))


@pytest.fixture
def directory(model: Path) -> Path:
    return model / "adapters" / "summarize"


def test_show_tells_rank_alpha_size_and_record(model: Path, directory: Path) -> None:
    details = inspection.show(model, "summarize")
    assert (details.rank, details.alpha) == (4, 8)
    assert details.values == 4 * sum(map(sum, TINY.linear_shapes().values()))
    assert details.bytes == sum(path.stat().st_size for path in directory.iterdir())
    assert details.record is not None and details.record.task == "summarize"
    assert json.loads(json.dumps(details.to_json(), default=str))["record"]["license"] == "apache-2.0"


def test_the_norms_are_those_of_the_products(model: Path, directory: Path) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    squares: dict[str, list[float]] = {}
    for module in TINY.linear_shapes():
        a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        squares.setdefault(module.rpartition(".")[2], []).append(float(np.square(2 * b @ a).sum()))
    found = {kind.name: kind for kind in inspection.show(model, "summarize").kinds}
    assert set(found) == set(squares)
    for name, values in squares.items():
        assert found[name].layers == 2
        assert found[name].norm == pytest.approx(sum(values) ** 0.5)
    weights = 2 * 64 * 128
    assert found["up_proj"].size == pytest.approx((sum(squares["up_proj"]) / weights) ** 0.5)


def test_a_sound_adapter_passes_every_check(model: Path) -> None:
    checks = inspection.verify(model, "summarize")
    assert [check.name for check in checks] == ["files", "record", "base", "shapes", "values", "hashes"]
    assert [check.name for check in checks if not check.ok] == []


def stray(model: Path, directory: Path) -> None:
    (directory / "weights.pt").write_bytes(b"pickle")


def link(model: Path, directory: Path) -> None:
    (directory / "adapter_config.json").rename(model / "elsewhere.json")
    (directory / "adapter_config.json").symlink_to(model / "elsewhere.json")


def nameless(model: Path, directory: Path) -> None:
    (directory / "pomona.json").unlink()


def other_model(model: Path, directory: Path) -> None:
    shutil.copy(tiny_model(model / "new", seed=9) / "model.safetensors", model / "model.safetensors")
    shutil.rmtree(model / "new")


def nan(model: Path, directory: Path) -> None:
    edit_weights(directory, float("nan"))


def changed(model: Path, directory: Path) -> None:
    edit_weights(directory, 0.25)


def other_rank(model: Path, directory: Path) -> None:
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))


def unreadable(model: Path, directory: Path) -> None:
    (directory / "pomona.json").write_text("{")


def foreign_hash(model: Path, directory: Path) -> None:
    record = json.loads((directory / "pomona.json").read_text())
    record["sha256"] = {"../../config.json": "0" * 64}
    (directory / "pomona.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "failing"),
    [
        (stray, ["files"]),
        (link, ["files"]),
        (nameless, ["record"]),
        (changed, ["hashes"]),
        (nan, ["values", "hashes"]),
        (other_rank, ["shapes", "values", "hashes"]),
        (unreadable, ["record", "shapes", "values", "hashes"]),
        (foreign_hash, ["hashes"]),
        (other_model, ["shapes", "values"]),
    ],
)
def test_damage_is_found_where_it_is(
    model: Path, directory: Path, damage: Callable[[Path, Path], None], failing: list[str]
) -> None:
    damage(model, directory)
    checks = inspection.verify(model, "summarize")
    assert [check.name for check in checks if not check.ok] == failing
    assert all("\n" not in check.found for check in checks)


def test_a_packed_base_whose_weights_were_changed_is_found(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "palettized",
        "version": 1,
        "base_fingerprint": "of other weights",
        "bits": {},
    }
    (model / "config.json").write_text(json.dumps(config))
    failing = [check for check in inspection.verify(model, "summarize") if not check.ok]
    assert failing[0].name == "base" and "of other weights" in failing[0].found
