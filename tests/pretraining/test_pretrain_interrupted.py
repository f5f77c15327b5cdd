"""Runs of the command as processes: killed at random moments, and two of them sharing one model by FSDP2."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretrain_samples import settings, write_recipe

from pomona.models.safetensors_file import SafetensorsFile
from pomona.pretraining.curve import CLOCK, read_curve

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(recipe: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "pomona", "pretrain", str(recipe), "--out", str(out), *options]


def finish(words: list[str]) -> None:
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def timeless(out: Path, stage: str) -> list[dict[str, Any]]:
    rows = [asdict(point) for point in read_curve(out / "stages" / stage / "curve.csv")]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def steps_made(out: Path) -> int:
    return sum(len(read_curve(path)) for path in out.glob("stages/*/curve.csv"))


def test_killed_ten_times_it_ends_with_the_bits_of_the_uninterrupted_run(tmp_path: Path) -> None:
    values = settings(tokens=8 * 32 * 400, save_every=7, evaluate_every=50, warm_up=20)
    values["stages"].append(values["stages"][0] | {"name": "after", "tokens": 8 * 32 * 200, "peak_lr": 0.001})
    recipe = write_recipe(tmp_path / "recipe", values)
    finish(command(recipe, tmp_path / "whole"))
    out, rng, killed = tmp_path / "killed", random.Random(0), 0
    goals = sorted(rng.sample(range(5, 560), 10))
    for goal in goals:
        options = ["--resume"] if (out / "run.json").is_file() else []
        process = subprocess.Popen(
            command(recipe, out, *options), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None and steps_made(out) < goal:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        _, said = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), said.decode()[-3000:]
    assert killed == 10
    finish(command(recipe, out, "--resume"))
    for stage in ("core", "after"):
        assert timeless(out, stage) == timeless(tmp_path / "whole", stage)
    assert (out / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model" / "model.safetensors"
    ).read_bytes()
    for name in ("model.safetensors", "optimizer.safetensors"):
        (one,) = out.glob(f"stages/after/checkpoint-00000200/{name}")
        (other,) = (tmp_path / "whole").glob(f"stages/after/checkpoint-00000200/{name}")
        assert one.read_bytes() == other.read_bytes()


def torchrun(processes: int, words: list[str]) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    return [sys.executable, "-m", *launch, *words[1:]]


@pytest.mark.parametrize("kind", ["rmsprop-momentum", "adamw"])
def test_two_processes_that_share_the_model_equal_one(tmp_path: Path, kind: str) -> None:
    """FSDP2 over gloo. Shards are uneven (rows do not divide), so that a mean over shards would show."""
    values = settings(tokens=8 * 32 * 24, evaluate_every=12, save_every=12, micro_batch=2)
    values["model"] |= {"hidden_size": 66, "intermediate_size": 129}
    values["optimizer"] = {"kind": kind, "muparam_base_width": 32}
    recipe = write_recipe(tmp_path / "recipe", values)
    finish(command(recipe, tmp_path / "one"))
    finish(torchrun(2, command(recipe, tmp_path / "two")))
    for one, two in zip(timeless(tmp_path / "one", "core"), timeless(tmp_path / "two", "core"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=2e-4)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=2e-3)
    last = "stages/core/checkpoint-00000024/model.safetensors"
    with SafetensorsFile(tmp_path / "one" / last) as one, SafetensorsFile(tmp_path / "two" / last) as two:
        assert set(one.tensors) == set(two.tensors)
        worst = max(float(np.abs(one.array(name) - two.array(name)).max()) for name in one.tensors)
    assert worst < 1e-3


def test_one_process_goes_on_where_two_were_killed(tmp_path: Path) -> None:
    values = settings(tokens=8 * 32 * 24, evaluate_every=12, save_every=4)
    recipe = write_recipe(tmp_path / "recipe", values)
    finish(command(recipe, tmp_path / "one"))
    out = tmp_path / "two"
    process = subprocess.Popen(
        torchrun(2, command(recipe, out)), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None and steps_made(out) < 6:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # torchrun ends its processes
    process.communicate()
    assert steps_made(out) < 24
    finish(command(recipe, out, "--resume"))
    for one, two in zip(timeless(tmp_path / "one", "core"), timeless(out, "core"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=2e-4)


def test_two_processes_share_masks_and_teacher(tmp_path: Path) -> None:
    """Scores are sharded by layers, the teacher's windows by process; the student is narrower in between."""
    parent = write_recipe(tmp_path / "parent", settings(tokens=8 * 32 * 24, evaluate_every=12, save_every=12))
    finish(command(parent, tmp_path / "runs" / "parent"))
    values = settings(tokens=8 * 32 * 12, evaluate_every=6, save_every=6, micro_batch=2)
    masks = values["stages"][0] | {"name": "masks", "prune": {"intermediate_size": 48}}
    teacher = {"teacher": "../runs/parent/model", "batch": 3}
    values["stages"] = [masks, values["stages"][0] | {"distill": teacher}]
    values |= {"start": "../runs/parent/model", "tokenizer": {"path": "../runs/parent/model"}}
    recipe = write_recipe(tmp_path / "recipe", values)
    finish(command(recipe, tmp_path / "one"))
    finish(torchrun(2, command(recipe, tmp_path / "two")))
    for stage in ("masks", "core"):
        for one, two in zip(
            timeless(tmp_path / "one", stage), timeless(tmp_path / "two", stage), strict=True
        ):
            assert two["loss"] == pytest.approx(one["loss"], abs=1e-2)
    ids = [(tmp_path / run / "teacher" / "text-32" / "ids.bin").read_bytes() for run in ("one", "two")]
    assert len(ids[0]) == len(ids[1])
    same = np.frombuffer(ids[0], np.uint16) == np.frombuffer(ids[1], np.uint16)
    assert same.mean() > 0.99
