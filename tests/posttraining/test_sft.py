"""Supervised fine-tuning: what is learnt, dropout, adapters and models that the runtime runs, a real kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pomona.adapters.data import read_rows
from pomona.adapters.metadata import read_record
from pomona.adapters.packing import encode_rows
from pomona.errors import PomonaError
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.conversations import padding_token
from pomona.posttraining.options import SftOptions
from pomona.posttraining.sft import SftResult, sft
from pomona.posttraining.training.base import add_dropout, load_causal
from pomona.posttraining.training.sft_trainer import IGNORED, answer_loss, labels
from pomona.posttraining.training.trainer import StepReport
from tests.adapters.adapt_samples import chat, colours, write_rows
from tests.posttraining.conftest import QUICK


def train(base: Path, data: Path, target: Path, **options: Any) -> SftResult:
    run = {key: options.pop(key) for key in ("resume", "on_step", "start", "work") if key in options}
    run.setdefault("work", target.parent / "work")
    return sft(base, data, target, options=SftOptions(**{**QUICK, **options}), threads=1, **run)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "colours.jsonl", colours(8))


@pytest.fixture(scope="module")
def adapted(tiny_dir: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> SftResult:
    return train(tiny_dir, data, tmp_path_factory.mktemp("sft") / "adapter", epochs=6, validation=0.2)


def test_the_options_are_those_of_the_report() -> None:
    options = SftOptions()
    assert (options.schedule, options.dropout, options.warm_up) == ("constant", 0.1, 0.0)


def test_only_the_answers_are_learnt(tiny_dir: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(tiny_dir)
    rows, _ = read_rows(write_rows(tmp_path / "d.jsonl", [chat("ab", "cd", "ef", "gh")]))
    [example] = encode_rows(rows, tokenizer, 512).examples
    learnt = [token for token in labels(example) if token != IGNORED]
    assert tokenizer.decode(learnt, skip_special_tokens=False) == "cd<|im_end|>gh<|im_end|>"


def test_the_loss_on_held_out_rows_falls(adapted: SftResult) -> None:
    assert adapted.run.last["loss"] < 0.5 * adapted.run.first["loss"]
    assert adapted.rows + adapted.held_out_rows == 24


def test_the_adapter_gives_the_runtime_the_same_loss(adapted: SftResult, tiny_dir: Path, data: Path) -> None:
    """The trainer's held-out loss, from the runtime's log-probabilities with the written adapter."""
    from pomona.posttraining.sft import held_out
    from pomona.runtime.model import Model

    tokenizer = Tokenizer.from_directory(tiny_dir)
    rows, _ = read_rows(data)
    parts = held_out(encode_rows(rows, tokenizer, 512).examples, SftOptions(validation=0.2))
    assert len(parts.held_out) == adapted.held_out_rows
    with Model.load(str(tiny_dir), threads=1) as model:
        model.adapters.register("sft", adapted.directory)
        adapter = model.adapters.acquire("sft")
        total = sum(
            float(-model.engine.score(e.ids.tolist(), adapter)[e.learnt[1:]].sum()) for e in parts.held_out
        )
    count = sum(e.answers for e in parts.held_out)
    assert total / count == pytest.approx(adapted.run.last["loss"], rel=0.05)
    record = read_record(adapted.directory)
    assert record is not None and record.task == "sft"
    assert record.metrics is not None and record.metrics["held_out_loss"]["after"] == adapted.run.last["loss"]


def test_an_adapter_begins_as_another_one(
    adapted: SftResult, tiny_dir: Path, data: Path, tmp_path: Path
) -> None:
    more = train(
        tiny_dir, data, tmp_path / "more", start=adapted.directory, max_steps=1, lr=1e-6, validation=0.2
    )
    assert more.run.first["loss"] == pytest.approx(adapted.run.last["loss"], rel=0.02)


def test_all_weights_are_a_model_that_loads_again(tiny_dir: Path, data: Path, tmp_path: Path) -> None:
    found = train(tiny_dir, data, tmp_path / "full", weights="full", lr=1e-3, max_steps=3, validation=0.2)
    tokenizer = Tokenizer.from_directory(found.directory)
    examples = encode_rows(read_rows(data)[0], tokenizer, 512).examples
    losses = [
        answer_loss(load_causal(d), examples, padding_token(tokenizer), pass_rows=4, precision="float32")
        for d in (tiny_dir, found.directory)
    ]
    assert losses[1] < losses[0]
    record = read_record(found.directory)
    assert record is not None and record.base_fingerprint is None


def test_dropout_falls_on_both_branches_in_training_alone(tiny_dir: Path) -> None:
    model = load_causal(tiny_dir)
    plain = load_causal(tiny_dir)
    add_dropout(model, 0.5)
    ids = torch.arange(40).view(1, 40)
    model.eval()
    assert torch.equal(model(ids).logits, plain(ids).logits)
    model.train()
    torch.manual_seed(0)
    first = model(ids).logits
    assert not torch.allclose(first, plain(ids).logits)
    torch.manual_seed(0)
    assert torch.equal(model(ids).logits, first)
    seen = []
    for name in ("self_attn", "mlp"):
        module = getattr(model.model.layers[0], name)
        module.register_forward_hook(
            lambda m, i, o: seen.append(float((o[0] if isinstance(o, tuple) else o).eq(0).float().mean()))
        )
    model(ids)
    assert [share == pytest.approx(0.5, abs=0.06) for share in seen] == [True, True]


def test_bad_rows_refuse_the_file_unless_they_are_left_out(tiny_dir: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [*colours(2), "{}"])
    with pytest.raises(PomonaError, match=r"1 of 7 rows cannot be trained on .line 7"):
        train(tiny_dir, data, tmp_path / "a")
    found = sft(
        tiny_dir, data, tmp_path / "a", work=tmp_path / "w", skip_bad=True, threads=1,
        options=SftOptions(**QUICK, max_steps=1, validation=0.2),
    )  # fmt: skip
    assert found.rows + found.held_out_rows == 6


@pytest.mark.slow
def test_a_run_ended_by_sigkill_goes_on_to_the_same_adapter(
    tiny_dir: Path, data: Path, tmp_path: Path
) -> None:
    whole = train(tiny_dir, data, tmp_path / "whole", epochs=4, checkpoint_steps=2)
    program = (
        "from pathlib import Path\nfrom tests.posttraining.test_sft import train\n"
        f"train(Path({str(tiny_dir)!r}), Path({str(data)!r}), Path({str(tmp_path / 'half')!r}),"
        f" work=Path({str(tmp_path / 'killed')!r}), epochs=4, checkpoint_steps=2,"
        " on_step=lambda step: print(step.step, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "5":
                process.send_signal(signal.SIGKILL)
                break
    time.sleep(0.1)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "half").exists()
    steps: list[StepReport] = []
    half = train(
        tiny_dir, data, tmp_path / "half", work=tmp_path / "killed", epochs=4, checkpoint_steps=2,
        resume=True, on_step=steps.append,
    )  # fmt: skip
    assert steps[0].step in (3, 5)
    weights = [(d / "adapter_model.safetensors").read_bytes() for d in (whole.directory, half.directory)]
    assert weights[0] == weights[1]
    assert np.isfinite(half.run.last["loss"])
