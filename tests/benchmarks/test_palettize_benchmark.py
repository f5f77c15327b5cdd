"""benchmarks.palettize: errors by their formula, our side on a small layer, and the goals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import palettize
from benchmarks.common import BenchmarkError
from benchmarks.palettize import (
    COMPENSATED,
    FINE,
    PLAIN,
    WEIGHTED,
    Errors,
    Layer,
    Result,
    contest,
    errors_of,
    goals,
)
from benchmarks.palettize_peer import CoremlPeer, setting_name
from pomona.compression.moments import InputMoments
from pomona.models.presets import PRESETS

GENERATOR = np.random.default_rng(1)


def small_layer() -> Layer:
    weights = {name: GENERATOR.standard_normal((32, 128), np.float32) for name in ("q_proj", "up_proj")}
    inputs = GENERATOR.standard_normal((128, 400)) * GENERATOR.lognormal(0, 1, (128, 1))
    inputs += GENERATOR.standard_normal((128, 1)) * GENERATOR.standard_normal(400)
    full = (inputs @ inputs.T / 400).astype(np.float32)
    moments = InputMoments(400, np.diag(full).astype(np.float64), full)
    return Layer("small", weights, dict.fromkeys(weights, moments))


# The far end without coremltools: it knows the requests and says how long it took.
STAND_IN = """
import json, sys
assert sys.argv[1:] == ["-m", "benchmarks.palettize_peer", "serve"]
for line in sys.stdin:
    r = json.loads(line)
    if r["do"] == "start":
        answer = {"coremltools": "0", "torch": "0"}
    elif r["do"] == "load":
        import numpy
        weights = dict(numpy.load(r["layer"]))
        answer = {}
    else:
        numpy.savez(r["result"], **{name: 0.8 * weight for name, weight in weights.items()})
        answer = {"seconds": 100.0 * r["workers"]}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def peer_python(tmp_path: Path) -> Path:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{STAND_IN}")
    python.chmod(0o755)
    return python


def test_errors_are_of_all_matrices_together() -> None:
    one, two = np.full((2, 2), 3.0, np.float32), np.full((2, 2), 4.0, np.float32)
    off = one + np.array([[0.3, 0.0], [0.0, 0.0]], np.float32)
    full = np.array([[2.0, 0.5], [0.5, 1.0]], np.float32)
    moments = InputMoments(1, np.diag(full).astype(np.float64), full)
    layer = Layer("two", {"a": one, "b": two}, {"a": moments, "b": moments})
    errors = errors_of(layer, {"a": off, "b": two})
    assert errors.plain == pytest.approx((0.09 / 100) ** 0.5, rel=1e-5)
    assert errors.weighted == pytest.approx((2 * 0.09 / (3 * 2 * 9 + 3 * 2 * 16)) ** 0.5, rel=1e-5)
    # (3, 3) H (3, 3)^T = 9 * 4, (4, 4) H (4, 4)^T = 16 * 4, two rows of each
    assert errors.output == pytest.approx((2 * 0.09 / (2 * 36 + 2 * 64)) ** 0.5, rel=1e-5)


def test_both_sides_are_measured_in_turns(peer_python: Path, tmp_path: Path) -> None:
    with CoremlPeer(peer_python, 1) as peer:
        result = contest(small_layer(), peer, ((1, False), (2, True)), 1, 2, tmp_path)
    theirs = ("coremltools, 1 process", "coremltools, 2 processes, row scales")
    assert list(result.seconds) == [PLAIN, WEIGHTED, COMPENSATED, FINE, *theirs]
    assert all(len(values) == 2 for values in result.seconds.values())
    assert result.faster(WEIGHTED) == pytest.approx(np.median([100 / s for s in result.seconds[WEIGHTED]]))
    assert result.errors[theirs[0]].plain == pytest.approx(0.2, rel=1e-3)
    # Each of ours is the best at what it minimises; finer tables help further.
    errors = result.errors
    assert 0.05 < errors[PLAIN].plain < 0.13  # 4 bits of a normal distribution: about 0.1
    assert errors[PLAIN].plain < errors[WEIGHTED].plain
    assert errors[WEIGHTED].weighted < errors[PLAIN].weighted
    assert errors[COMPENSATED].output < errors[WEIGHTED].output
    assert errors[FINE].output < errors[COMPENSATED].output
    assert json.dumps(result.to_json())
    assert [row["by"] for row in result.rows()] == list(result.seconds)


def test_goals_compare_with_the_fastest_and_the_most_exact_setting() -> None:
    errors = {
        PLAIN: Errors(0.105, 0.2, 0.2),
        WEIGHTED: Errors(0.12, 0.1, 0.15),
        COMPENSATED: Errors(0.2, 0.2, 0.05),
        "coremltools, a": Errors(0.11, 0.13, 0.14),
        "coremltools, b": Errors(0.10, 0.12, 0.13),
    }
    seconds = {"coremltools, a": [12.0], "coremltools, b": [24.0], WEIGHTED: [1.0], PLAIN: [0.5]}
    speed, plain, weighted, output = goals([Result(small_layer(), seconds, errors)], None, wanted=False)
    assert (speed.value, speed.met) == (12.0, True)
    assert (plain.value, plain.met) == (pytest.approx(1.05), False)
    assert (weighted.value, weighted.met) == (pytest.approx(0.1 / 0.12), True)
    assert (output.value, output.met) == (pytest.approx(0.05 / 0.13), True)


def test_the_whole_model_has_goals_when_it_was_asked_for() -> None:
    whole = {"seconds": 1200.0, "peak_gb": 13.0}
    minutes, memory = goals([], whole, wanted=True)
    assert (minutes.value, minutes.met) == (20.0, True)
    assert not memory.met
    assert not any(goal.met for goal in goals([], None, wanted=True))


def test_a_layer_is_its_seven_matrices() -> None:
    config = PRESETS["afm-nano"]
    modules = palettize.layer_modules(config, 1)
    assert sorted(modules) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert all(name.startswith("model.layers.1.") for name in modules.values())
    with pytest.raises(BenchmarkError, match="layers"):
        palettize.layer_modules(config, 1000)


def test_settings_have_names() -> None:
    assert setting_name(1, False) == "1 process"
    assert setting_name(2, True) == "2 processes, row scales"


def test_a_missing_environment_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="make coreml-setup"):
        CoremlPeer(tmp_path / "python", 1)
