"""benchmarks.palettize: errors by their formula, our side on a small layer, and the goals."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from benchmarks import palettize
from benchmarks.common import BenchmarkError
from benchmarks.palettize import FINE, PLAIN, WEIGHTED, Layer, Result, contest, goals
from benchmarks.palettize_peer import CoremlPeer, relative_errors, setting_name
from pomona.models.presets import PRESETS

GENERATOR = np.random.default_rng(1)


def small_layer() -> Layer:
    weights = {name: GENERATOR.standard_normal((32, 128), np.float32) for name in ("q_proj", "up_proj")}
    importance = {name: GENERATOR.lognormal(0, 2, 128).astype(np.float32) for name in weights}
    return Layer("small", weights, importance)


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
        assert sorted(numpy.load(r["layer"]).files)[:2] == ["h.q_proj", "h.up_proj"]
        answer = {}
    else:
        answer = {"seconds": 100.0 * r["workers"], "plain": 0.2, "weighted": 0.3}
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
    weigh = np.array([2.0, 1.0], np.float32)
    plain, weighted = relative_errors([(one, off, weigh), (two, two, weigh)])
    assert plain == pytest.approx((0.09 / 100) ** 0.5, rel=1e-5)
    assert weighted == pytest.approx((2 * 0.09 / (3 * 2 * 9 + 3 * 2 * 16)) ** 0.5, rel=1e-5)


def test_both_sides_are_measured_in_turns(peer_python: Path, tmp_path: Path) -> None:
    with CoremlPeer(peer_python, 1) as peer:
        result = contest(small_layer(), peer, ((1, False), (2, True)), 1, 2, tmp_path)
    assert list(result.seconds) == [
        *(PLAIN, WEIGHTED, FINE),
        *("coremltools, 1 process", "coremltools, 2 processes, row scales"),
    ]
    assert all(len(values) == 2 for values in result.seconds.values())
    assert result.faster == pytest.approx(100 / np.median(result.seconds[WEIGHTED]), rel=0.5)
    # Weights help where they count; finer tables help everywhere.
    assert result.errors[WEIGHTED][1] < result.errors[PLAIN][1]
    assert result.errors[PLAIN][0] < result.errors[WEIGHTED][0]
    assert result.errors[FINE][1] < result.errors[WEIGHTED][1]
    assert 0.05 < result.errors[PLAIN][0] < 0.13  # 4 bits of a normal distribution: about 0.1
    assert json.dumps(result.to_json())
    assert [row["by"] for row in result.rows()] == list(result.seconds)


def result(ours: float, theirs: float, errors: Mapping[str, tuple[float, float]]) -> Result:
    seconds = {PLAIN: [ours], WEIGHTED: [ours], "coremltools, a": [theirs], "coremltools, b": [2 * theirs]}
    return Result(small_layer(), seconds, errors)


def test_goals_compare_with_the_fastest_and_the_most_exact_setting() -> None:
    errors = {
        PLAIN: (0.105, 0.2),
        WEIGHTED: (0.12, 0.1),
        "coremltools, a": (0.11, 0.13),
        "coremltools, b": (0.10, 0.12),
    }
    speed, plain, weighted = goals([result(1.0, 12.0, errors)], None, wanted=False)
    assert (speed.value, speed.met) == (12.0, True)
    assert (plain.value, plain.met) == (pytest.approx(1.05), False)
    assert (weighted.value, weighted.met) == (pytest.approx(0.1 / 0.12), True)


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


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("a.self_attn.v_proj", "a.self_attn.q_proj"),
        ("a.mlp.up_proj", "a.mlp.gate_proj"),
        ("a.o_proj", "a.o_proj"),
    ],
)
def test_moments_are_found_under_the_first_that_reads_the_input(module: str, source: str) -> None:
    assert palettize.moments_of(module) == source


def test_settings_have_names() -> None:
    assert setting_name(1, False) == "1 process"
    assert setting_name(2, True) == "2 processes, row scales"


def test_a_missing_environment_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="make coreml-setup"):
        CoremlPeer(tmp_path / "python", 1)
