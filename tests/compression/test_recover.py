"""Recovery from end to end on a tiny random model: the KL falls, runs resume, the runtime runs the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pomona.compression.compress import compress
from pomona.compression.recover import recover
from pomona.compression.recovery_text import TextOptions
from pomona.compression.training.options import Point, TrainOptions
from pomona.compression.training.trainer import Trainer
from pomona.errors import PomonaError
from pomona.models.palettized import describe
from pomona.models.safetensors_file import Checkpoint
from pomona.runtime.adapters import load_adapter
from pomona.runtime.engine import Engine
from pomona.runtime.model import Model

TEXT = TextOptions(tokens=2048, window=32, held_out=2)
TRAIN = TrainOptions(rank=8, lr=3e-3, batch=4, accumulate=2, passes=2, evaluate_tokens=1024)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def packed(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at 2 bits, which hurts it."""
    target = tmp_path_factory.mktemp("packed") / "tiny-2bit"
    compress(tiny_dir, target, bits=2, calibration="none", table_columns=64)
    return target


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text and teacher's states are made once for all tests."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def base(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "base"))


@pytest.fixture
def run(base: Path, tiny_dir: Path, work: Path) -> Callable[..., Any]:
    def call(**options: Any) -> Any:
        return recover(
            base, tiny_dir, **{"work": work, "text": TEXT, "train": TRAIN, "threads": 1, **options}
        )

    return call


def adapter_bytes(base: Path) -> bytes:
    return (base / "adapters" / "recovery" / "adapter_model.safetensors").read_bytes()


# --- what comes of it


def test_the_kl_falls_and_the_adapter_says_how_it_was_made(
    run: Callable[..., Any], base: Path, tiny_dir: Path
) -> None:
    seen: list[Point] = []
    report = run(on_point=lambda point, left: seen.append(point))
    assert report.kl < 0.8 * report.start_kl
    assert report.closed == pytest.approx(1 - report.kl / report.start_kl)
    assert list(report.curve) == seen and len(seen) > 3
    assert [point.step for point in seen[:2]] == [0, 0]  # the base alone, and the adapter before training
    assert seen[1].held_out_kl < seen[0].held_out_kl
    assert report.directory == base / "adapters" / "recovery"
    record = json.loads((report.directory / "pomona.json").read_text())
    assert record["base_fingerprint"] == report.base_fingerprint == describe(base).fingerprint
    assert record["teacher_fingerprint"] == describe(tiny_dir).fingerprint
    assert record["recipe"]["rank"] == 8 and record["recipe"]["lr"] == 3e-3
    assert {source["name"] for source in record["text"]["sources"]} == {"free", "invented", "answers"}
    assert record["result"]["held_out_kl"] == {"before": report.start_kl, "after": report.kl}


def test_the_runtime_says_what_transformers_with_peft_says(run: Callable[..., Any], base: Path) -> None:
    import sys

    from peft import PeftModel

    sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
    from engine_reference import transformers_model

    run()
    model = PeftModel.from_pretrained(transformers_model(base), str(base / "adapters" / "recovery"))
    tokens = [int(i) for i in np.random.default_rng(1).integers(0, 256, 60)]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        with model.disable_adapter():
            plain = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    engine = Engine.load(base, threads=1)
    out = np.empty((len(tokens), engine.config.vocab_size), np.float32)
    with engine.new_sequence(load_adapter(engine, base / "adapters" / "recovery")) as sequence:
        engine.native.logits(sequence.handle, np.array(tokens, np.int32), out)

    def kl(found: torch.Tensor) -> float:
        return float((expected.exp() * (expected - found)).sum(-1).mean())

    assert kl(torch.from_numpy(out).log_softmax(-1)) < 1e-3  # as test_parity allows a packed model
    assert kl(plain) > 1e-2


def test_the_runtime_takes_it_by_default(run: Callable[..., Any], base: Path) -> None:
    run()
    with Model.load(str(base), threads=1) as model:
        assert model.adapter_for(None) == "recovery"


def test_the_text_and_the_teachers_states_are_used_again(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("was computed again")

    monkeypatch.setattr("pomona.compression.recovery_text._Writer", never)
    monkeypatch.setattr("pomona.compression.training.states.torch", None)
    run(train=replace(TRAIN, rank=16), overwrite=True)


# --- runs that stop and go on


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, where: str = "_gradient") -> None:
    """Ctrl-C in the step after `steps`."""
    real = getattr(Trainer, where)

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        if self.step == steps:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, where, interrupted)


@pytest.mark.parametrize(
    ("steps", "where"), [(0, "_gradient"), (3, "_gradient"), (4, "_evaluate"), (16, "_evaluate")]
)
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    run: Callable[..., Any], base: Path, monkeypatch: pytest.MonkeyPatch, steps: int, where: str
) -> None:
    whole = run()
    expected = adapter_bytes(base)
    shutil.rmtree(base / "adapters")
    with monkeypatch.context() as patch:
        stop_after(patch, steps, where)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not (base / "adapters").exists()
    with pytest.raises(PomonaError, match="--resume"):
        run()
    resumed = run(resume=True)
    assert adapter_bytes(base) == expected
    timeless = [replace(p, seconds=0, tokens_per_second=None) for p in resumed.curve]
    assert timeless == [replace(p, seconds=0, tokens_per_second=None) for p in whole.curve]


def test_a_run_can_be_begun_anew(
    run: Callable[..., Any], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run()
    with pytest.raises(PomonaError, match="other options"):
        run(resume=True, train=replace(TRAIN, lr=1e-3))
    anew = run(restart=True)
    assert anew.curve[0].step == 0
    with pytest.raises(PomonaError, match="no run to resume"):
        run(resume=True, overwrite=True)


def test_a_start_without_residuals_is_the_base_itself(run: Callable[..., Any]) -> None:
    report = run(train=replace(TRAIN, start="zero"))
    assert [point.step for point in report.curve[:2]] == [0, 4]
    assert report.kl < report.start_kl


def test_training_goes_on_from_the_adapter_that_is_there(run: Callable[..., Any], base: Path) -> None:
    first = run()
    again = run(train=replace(TRAIN, start="present", lr=1e-4), overwrite=True)
    assert again.start_kl == first.start_kl  # of the base alone
    assert again.curve[1].held_out_kl == pytest.approx(first.kl, rel=2e-2)  # the file holds bfloat16
    assert again.kl <= again.curve[1].held_out_kl
    assert again.directory == base / "adapters" / "recovery"


def test_without_an_adapter_there_is_nothing_to_go_on_from(run: Callable[..., Any]) -> None:
    with pytest.raises(PomonaError, match="no such adapter directory"):
        run(train=replace(TRAIN, start="present"))


def test_a_time_budget_ends_the_run(run: Callable[..., Any]) -> None:
    report = run(train=replace(TRAIN, passes=1000, minutes=0.02))
    assert report.stopped == "time" and report.seconds < 30


def test_patience_ends_the_run(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(train=replace(TRAIN, lr=0.5, passes=1000, patience=2))
    assert report.stopped == "early"


# --- when it does not help


def test_nothing_is_written_when_nothing_was_gained(run: Callable[..., Any], base: Path) -> None:
    report = run(train=replace(TRAIN, lr=30.0, start="zero"))
    assert report.kl == report.start_kl and report.last_kl > report.start_kl
    assert report.directory is None and not (base / "adapters").exists()


# --- what is refused


def test_what_does_not_belong_together_is_refused(
    run: Callable[..., Any], base: Path, tiny_dir: Path, small_dir: Path, work: Path
) -> None:
    for arguments, words in (
        ((tiny_dir, tiny_dir), "not compressed"),
        ((base, base), "teacher must be the 16-bit model"),
        ((base, small_dir), "another shape"),
    ):
        with pytest.raises(PomonaError, match=words):
            recover(*arguments, work=work, text=TEXT, train=TRAIN)


def test_a_weight_that_is_no_number_is_refused(
    base: Path, tiny_dir: Path, tmp_path: Path, changed: Callable[..., Path], work: Path
) -> None:
    name = "model.norm.weight"

    def spoil(array: np.ndarray) -> np.ndarray:
        array[3] = 0x7FC0
        return array

    bad = changed(tiny_dir, tmp_path / "bad", {name: spoil})
    with pytest.raises(PomonaError, match="not finite"):
        recover(base, bad, work=tmp_path / "w", text=TEXT, train=TRAIN)


@pytest.mark.parametrize(
    ("content", "words"), [("", "needs two windows"), (b"\xff\xfe\x00", "UTF-8"), (None, "cannot be read")]
)
def test_text_that_is_none_is_refused(
    run: Callable[..., Any], tmp_path: Path, content: str | bytes | None, words: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PomonaError, match=words):
        run(text=replace(TEXT, files=(path,)))


def test_an_adapter_that_is_there_is_not_lost(run: Callable[..., Any], base: Path) -> None:
    run()
    before = adapter_bytes(base)
    with pytest.raises(PomonaError, match="overwrite"):
        run()
    assert adapter_bytes(base) == before
    run(overwrite=True, train=replace(TRAIN, seed=1))
    assert adapter_bytes(base) != before
    assert sorted(p.name for p in (base / "adapters").iterdir()) == ["recovery"]


# --- tables


def test_trained_tables_are_a_new_base_with_the_same_indices(
    run: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    plain = run()
    target = tmp_path / "new"
    report = run(target=target, train=replace(TRAIN, tables=True))
    assert report.kl < plain.kl
    assert describe(target).fingerprint != describe(base).fingerprint
    assert describe(target).file_bytes == describe(base).file_bytes
    changed = set()
    with Checkpoint(base) as old, Checkpoint(target) as new:
        assert set(old.tensors) == set(new.tensors)
        for name in old.tensors:
            if not np.array_equal(old.array(name), new.array(name)):
                changed.add(name.rpartition("_")[2])
    assert changed == {"tables", "scales"}
    engine = Engine.load(target, threads=1)
    assert engine.fingerprint == describe(target).fingerprint
    load_adapter(engine, target / "adapters" / "recovery")
    with pytest.raises(PomonaError, match="was made for base"):
        load_adapter(Engine.load(base, threads=1), target / "adapters" / "recovery")


def test_what_was_measured_is_what_was_written(
    run: Callable[..., Any], tmp_path: Path, tiny_dir: Path, work: Path
) -> None:
    """The held-out KL of the written model, adapter and all, in another process of measuring: the engine."""
    target = tmp_path / "new"
    report = run(target=target, train=replace(TRAIN, tables=True))
    store = next(work.glob("text-*"))
    windows = np.fromfile(store / "held_out.i32", "<i4").reshape(-1, TEXT.window)
    teacher, student = Engine.load(tiny_dir, threads=1), Engine.load(target, threads=1)
    adapter = load_adapter(student, target / "adapters" / "recovery")
    total = 0.0
    for window in windows:
        log_t = torch.from_numpy(teacher.logits(window)).log_softmax(-1)
        out = np.empty(log_t.shape, np.float32)
        with student.new_sequence(adapter) as sequence:
            student.native.logits(sequence.handle, window, out)
        total += float((log_t.exp() * (log_t - torch.from_numpy(out).log_softmax(-1))).sum())
    assert total / windows.size == pytest.approx(report.kl, rel=0.05)
