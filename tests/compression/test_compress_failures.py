"""What compression refuses, and what it leaves when it fails or is stopped: one line, and nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pomona.compression import compress as module
from pomona.compression.compress import compress
from pomona.errors import PomonaError
from pomona.models.model_directory import read_json_object
from pomona.models.palettized import describe
from pomona.models.safetensors_file import SafetensorsWriter, TensorSpec, bf16_from_float32, float32_from_bf16

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.layers.1.post_attention_layernorm.weight"

# --- what is refused


def damage(name: str, change: Callable[[NDArray[np.uint16]], Any]) -> Callable[..., dict[str, Any]]:
    def prepare(tiny_dir: Path, tmp: Path, changed: Callable[..., Path]) -> dict[str, Any]:
        return {"source": changed(tiny_dir, tmp / "source", {name: change}), "calibration": "none"}

    return prepare


def spoiled(bits: int) -> Callable[[NDArray[np.uint16]], NDArray[np.uint16]]:
    def change(array: NDArray[np.uint16]) -> NDArray[np.uint16]:
        array.reshape(-1)[-5] = bits
        return array

    return change


def too_large(array: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return bf16_from_float32(float32_from_bf16(array) * np.float32(1e9))


def text(content: bytes | None) -> Callable[..., dict[str, Any]]:
    def prepare(_: Path, tmp: Path, __: Callable[..., Path]) -> dict[str, Any]:
        if content is not None:
            (tmp / "text.txt").write_bytes(content)
        return {"calibration": tmp / "text.txt"}

    return prepare


def without(name: str) -> Callable[..., dict[str, Any]]:
    def prepare(tiny_dir: Path, tmp: Path, _: Callable[..., Path]) -> dict[str, Any]:
        shutil.copytree(tiny_dir, tmp / "source", ignore=shutil.ignore_patterns(name))
        return {"source": tmp / "source"}

    return prepare


def compressed(tiny_dir: Path, tmp: Path, _: Callable[..., Path]) -> dict[str, Any]:
    compress(tiny_dir, tmp / "source", calibration="none", threads=1)
    return {"source": tmp / "source"}


def foreign(tiny_dir: Path, tmp: Path, _: Callable[..., Path]) -> dict[str, Any]:
    shutil.copytree(tiny_dir, tmp / "source")
    config = read_json_object(tiny_dir / "config.json")
    (tmp / "source" / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
    )
    return {"source": tmp / "source"}


REFUSED: dict[str, tuple[Callable[..., dict[str, Any]], str]] = {
    "1 bit": (lambda *_: {"bits": 1}, r"--bits 1: must lie in 2 \.\. 4"),
    "4.5 bits": (lambda *_: {"bits": 4.5}, r"--bits 4\.5: must lie in 2 \.\. 4"),
    "16 bits": (lambda *_: {"bits": 16}, r"--bits 16: must lie in 2 \.\. 4"),
    "no number of bits": (lambda *_: {"bits": float("nan")}, r"--bits nan: must lie in 2 \.\. 4"),
    "a budget without room for tables": (
        lambda *_: {"bits": 2.05, "calibration": "none"},
        r"--bits 2\.05: the projections take 2\.\d\d bits per weight at the least",
    ),
    "no table columns": (lambda *_: {"table_columns": 0}, "must be a multiple of 64"),
    "negative table columns": (lambda *_: {"table_columns": -64}, "must be a multiple of 64"),
    "table columns below a block": (lambda *_: {"table_columns": 32}, "must be a multiple of 64"),
    "odd table columns": (lambda *_: {"table_columns": 100}, "must be a multiple of 64"),
    "no source": (lambda _, tmp, __: {"source": tmp / "source"}, "cannot be read"),
    "a file for a source": (lambda tiny, *_: {"source": tiny / "config.json"}, "cannot be read"),
    "no config": (without("config.json"), "config.json: cannot be read"),
    "no weights": (without("model.safetensors"), "has neither model.safetensors nor"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer.json"),
    "compressed already": (compressed, "is compressed already; start from the 16-bit model"),
    "compressed by someone else": (foreign, "compressed already|not supported"),
    "NaN in a projection": (damage(Q_PROJ, spoiled(0x7FC0)), rf"'{Q_PROJ}' holds a value that is not finite"),
    "infinity in a projection": (
        damage(Q_PROJ, spoiled(0xFF80)),
        rf"'{Q_PROJ}' holds a value that is not finite",
    ),
    "NaN in the embedding": (
        damage("model.embed_tokens.weight", spoiled(0x7FC0)),
        "embed_tokens.weight' holds a value",
    ),
    "NaN in a norm": (damage(NORM, spoiled(0x7FC0)), rf"'{NORM}' holds a value that is not finite"),
    "a projection too large": (damage(Q_PROJ, too_large), Q_PROJ),
    "an embedding too large": (damage("model.embed_tokens.weight", too_large), "model.embed_tokens.weight"),
    "a missing projection": (damage(Q_PROJ, lambda _: None), Q_PROJ),
    "a missing norm": (damage(NORM, lambda _: None), NORM),
    "another shape": (damage(Q_PROJ, lambda array: array[:64].copy()), Q_PROJ),
    "another type": (damage(Q_PROJ, float32_from_bf16), Q_PROJ),
    "an empty text": (text(b""), "0 tokens are too few to calibrate on"),
    "a short text": (text(b"Too short."), "10 tokens are too few to calibrate on"),
    "a text that is not UTF-8": (text("naïve ".encode("latin-1") * 50), "cannot be read as UTF-8 text"),
    "a missing text": (text(None), "cannot be read as UTF-8 text"),
    "a directory for a text": (lambda tiny, *_: {"calibration": tiny}, "cannot be read as UTF-8 text"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    what: str, tiny_dir: Path, tmp_path: Path, changed: Callable[..., Path]
) -> None:
    prepare, words = REFUSED[what]
    options: dict[str, Any] = {"source": tiny_dir, "threads": 1, **prepare(tiny_dir, tmp_path, changed)}
    (tmp_path / "models").mkdir()
    with pytest.raises(PomonaError, match=words) as caught:
        compress(target=tmp_path / "models" / "out", **options)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "models") == []


@pytest.mark.parametrize("damaged", ["projection", "norm"])
def test_nan_is_found_when_calibrating_too(
    damaged: str, tiny_dir: Path, tmp_path: Path, text_file: Path, changed: Callable[..., Path]
) -> None:
    name = Q_PROJ if damaged == "projection" else NORM
    source = changed(tiny_dir, tmp_path / "source", {name: spoiled(0x7FC0)})
    (tmp_path / "models").mkdir()
    with pytest.raises(PomonaError, match="not finite") as caught:
        compress(source, tmp_path / "models" / "out", calibration=text_file, threads=1)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "models") == []


def test_an_existing_target_is_refused_before_any_work(tiny_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("mine")

    def progress(*_: object) -> None:
        pytest.fail("work has begun")

    with pytest.raises(PomonaError, match=f"{target}: already exists"):
        compress(tiny_dir, target, calibration="none", progress=progress)
    assert os.listdir(tmp_path) == ["out"]
    assert (target / "config.json").read_text() == "mine"


def test_overwriting_replaces_the_target_only_at_the_end(tiny_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    (target / "old.txt").write_text("old")

    def interrupt(*_: object) -> None:
        assert (target / "old.txt").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(tiny_dir, target, calibration="none", threads=1, overwrite=True, progress=interrupt)
    assert sorted(os.listdir(target)) == ["config.json", "old.txt"]
    assert sorted(os.listdir(tmp_path)) == ["out", "out.work"]
    compress(tiny_dir, target, calibration="none", threads=1, overwrite=True)
    assert not (target / "old.txt").exists()
    assert describe(target).projection_bits_per_weight < 5
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("bits", "step", "after"),
    [
        (4, "calibrate", 0),
        (4, "palettise", 3),
        (4, "write", 2),
        (3.5, "palettise", 9),
        (3.5, "sensitivity", 4),
    ],
)
def test_an_interrupted_run_goes_on_where_it_stopped_and_gives_the_same_bytes(
    tiny_dir: Path, text_file: Path, tmp_path: Path, bits: float, step: str, after: int
) -> None:
    seen: list[str] = []

    def interrupt(label: str, done: int, total: int) -> None:
        seen.append(label)
        if label == step and seen.count(step) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(tiny_dir, tmp_path / "out", bits=bits, calibration=text_file, threads=1, progress=interrupt)
    assert os.listdir(tmp_path) == ["out.work"]
    packed: list[int] = []

    def count(label: str, done: int, total: int) -> None:
        if label == "palettise":
            packed.append(done)

    compress(tiny_dir, tmp_path / "out", bits=bits, calibration=text_file, threads=1, progress=count)
    assert os.listdir(tmp_path) == ["out"]
    if step == "palettise":
        assert packed[0] == after + 2  # the step that was interrupted had been finished
    elif step in ("write", "sensitivity"):
        assert packed == []
    compress(tiny_dir, tmp_path / "fresh", bits=bits, calibration=text_file, threads=1)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_a_budget_out_of_reach_keeps_the_work_for_the_next_one(
    tiny_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PomonaError, match="at the least; ask for more"):
        compress(tiny_dir, tmp_path / "out", size=1000, calibration=text_file, threads=1)
    assert os.listdir(tmp_path) == ["out.work"]
    labels: list[str] = []
    compress(
        tiny_dir,
        tmp_path / "out",
        size=400_000,
        calibration=text_file,
        threads=1,
        progress=lambda label, *_: labels.append(label),
    )
    assert set(labels) == {"write"}
    assert (tmp_path / "out" / "model.safetensors").stat().st_size <= 400_000


# --- disk full


def test_too_little_space_is_noticed_before_any_work(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pomona.models.model_directory._free_bytes", lambda _: 100_000)
    calls: list[object] = []
    with pytest.raises(PomonaError, match=r"needs .* and .* are free on that disk"):
        compress(
            tiny_dir,
            tmp_path / "out",
            calibration="none",
            threads=1,
            progress=lambda *call: calls.append(call),
        )
    assert calls == []
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs Linux' /dev/full, a device that is always full"
)
def test_a_disk_that_fills_is_one_line_and_leaves_nothing(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnFullDisk(SafetensorsWriter):
        def __init__(self, path: Path, specs: list[TensorSpec], metadata: dict[str, str]) -> None:
            path.symlink_to("/dev/full")
            super().__init__(path, specs, metadata)

    monkeypatch.setattr(module, "SafetensorsWriter", OnFullDisk)
    target = tmp_path / "out"
    with pytest.raises(PomonaError, match="the disk is full") as caught:
        compress(tiny_dir, target, calibration="none", threads=1)
    assert str(caught.value).startswith(f"{target}: ")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("limit", [4_000, 150_000])
def test_a_file_size_limit_is_met_in_a_real_process(tiny_dir: Path, tmp_path: Path, limit: int) -> None:
    """RLIMIT_FSIZE makes the kernel itself refuse the write, in the header or amid the tensors."""
    program = f"""
        import resource, signal
        from pomona.errors import PomonaError
        from pomona.compression.compress import compress
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else it ends the process; now write() gives EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            compress({str(tiny_dir)!r}, {str(tmp_path / "out")!r}, calibration="none", threads=1)
        except PomonaError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.startswith(f"{tmp_path / 'out'}: a file grew past the size limit")
    assert done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []
