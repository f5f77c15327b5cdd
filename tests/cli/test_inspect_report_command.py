"""`pomona inspect MODEL --report`: the same figures in the terminal, as JSON and in the page."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pomona.compression.compress import compress
from pomona.models.config import ModelConfig
from pomona.models.palettized import describe
from pomona.models.random_init import random_model

Command = Callable[..., Any]

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=320,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
    rope_theta=10000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model at 3 bits, whose report says what 4 and 2 would have been."""
    folder = tmp_path_factory.mktemp("report")
    source = random_model(CONFIG, folder / "source", seed=1)
    target = folder / "small-3bit"
    compress(source, target, bits=3, calibration="none", threads=1)
    path = target / "compression_report.json"
    report = json.loads(path.read_text())
    modules = []
    for tensor in describe(target).tensors:
        if not tensor.format.startswith("palette"):
            continue
        modules.append(
            {
                "name": tensor.name.removesuffix(".weight"),
                "shape": tensor.shape,
                "kind": tensor.name.split(".")[-2],
                "bits": 3,
                "pinned": tensor.name.endswith("1.mlp.down_proj.weight"),
                "choices": [
                    {"bits": b, "bytes": tensor.bytes * b // 3, "relative_error": 0.5**b, "kl": 0.1**b}
                    for b in (4, 3, 2)
                ],
            }
        )
    extra = {"options": {}, "calibration": {}, "predicted_kl": 0.014, "measured_kl": None}
    path.write_text(json.dumps({**report, **extra, "version": 2, "modules": modules}))
    return target


def test_the_terminal_shows_every_tensor_and_the_totals_by_kind(pomona: Command, model: Path) -> None:
    outcome = pomona("inspect", str(model), "--report", "--threads", "1")
    assert outcome.code == 0, outcome.err
    tensors, kinds, facts = outcome.out.split("\n\n")
    rows = [line.split() for line in tensors.splitlines()[1:]]
    assert len(rows) == 15
    times = [float(row[-2]) for row in rows]
    assert times == sorted(times, reverse=True)
    assert "model.layers.1.mlp.down_proj (pinned)" in tensors
    bits = {row[0]: row[-6] for row in rows if row[0] != "model.layers.1.mlp.down_proj"}
    assert bits.pop("model.embed_tokens") == "8"
    assert set(bits.values()) == {"3"}
    for kind in ("q_proj", "down_proj", "attention", "the rest"):
        assert kind in kinds
    assert "tokens/s" in facts and "predicted KL" in facts and "0.014" in facts and "measured KL" not in facts


def test_json_and_page_hold_the_same_data(pomona: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    outcome = pomona("inspect", str(model), "--report", "--out", str(out), "--json", "--threads", "1")
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert data.pop("page") == str(out)
    page = out.read_text(encoding="utf-8")
    embedded = re.search(r'type="application/json">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None and json.loads(embedded.group(1)) == data
    assert data["model"] == "small-3bit" and data["time"]["tokens"] >= 32
    assert [m["name"] for m in data["modules"] if m["fixed"]] == ["model.embed_tokens"]
    assert len(data["modules"]) == 15
    parts = sum(module["ns"] for module in data["modules"])
    assert parts + data["time"]["fixed_ns"] == pytest.approx(data["time"]["token_ns"])
    assert stat.S_IMODE(out.stat().st_mode) & 0o077 == 0o644 & 0o077
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_is_there_is_replaced(pomona: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    assert pomona("inspect", str(model), "--report", "--out", str(out), "--threads", "1").code == 0
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "x.html"], "--out belongs to --report"),
        (["--threads", "2"], "--threads belongs to --report"),
        (["--report", "--tensors"], "leave --tensors out"),
        (["--report", "--out", "."], "is a directory"),
        (["--report", "--out", "no/such/folder/x.html"], "create it first"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    pomona: Command, model: Path, options: list[str], words: str
) -> None:
    outcome = pomona("inspect", str(model), *options)
    assert outcome.code == 2
    assert words in outcome.err and outcome.err.count("\n") == 1


def test_a_model_that_is_not_compressed_is_refused(pomona: Command, model: Path) -> None:
    outcome = pomona("inspect", str(model.parent / "source"), "--report")
    assert outcome.code == 2
    assert "pomona compress" in outcome.err


def test_a_report_of_another_model_is_refused(pomona: Command, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    path = other / "compression_report.json"
    path.write_text(path.read_text().replace("layers.1.mlp.down_proj", "layers.7.mlp.down_proj"))
    outcome = pomona("inspect", str(other), "--report")
    assert outcome.code == 2
    assert "layers.7.mlp.down_proj" in outcome.err
