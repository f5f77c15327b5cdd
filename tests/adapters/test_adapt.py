"""`adapt` from end to end on a tiny random model: it learns, resumes, and other programs run the result."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapt_samples import ENDLESS, chat, colours, tiny_model, write_rows

from pomona.adapters.adapt import adapt
from pomona.adapters.data import DataReport, read_rows
from pomona.adapters.options import DEFAULTS, AdaptOptions, AdaptPoint
from pomona.adapters.packing import encode_rows, split
from pomona.adapters.plan import Plan
from pomona.adapters.training.loss import cross_entropy, cross_entropy_gradient
from pomona.adapters.training.task_trainer import Answers, Batch, TaskTrainer
from pomona.compression.compress import compress
from pomona.compression.training.network import Network
from pomona.errors import PomonaError
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.adapter_file import read_adapter
from pomona.runtime.adapter_writer import write_adapter
from pomona.runtime.adapters import load_adapter
from pomona.runtime.engine import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from engine_reference import transformers_model

OPTIONS = AdaptOptions(rank=4, lr=1e-2, epochs=8, batch=8, window=128, patience=100)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny chat model in 16 bits."""
    return tiny_model(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture(scope="module")
def packed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("packed") / "tiny-4bit"
    compress(plain, target, bits=4, calibration="none", table_columns=64)
    return target


@pytest.fixture
def base(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "base"))


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "colours.jsonl", colours())


@pytest.fixture
def run(base: Path, rows_file: Path, tmp_path: Path) -> Callable[..., Any]:
    def call(data: Path = rows_file, **options: Any) -> Any:
        defaults = {"work": tmp_path / "work", "options": OPTIONS, "threads": 1}
        return adapt(base, data, **{**defaults, **options})

    return call


def adapter_bytes(base: Path, name: str = "colours") -> bytes:
    return (base / "adapters" / name / "adapter_model.safetensors").read_bytes()


def recovery(base: Path, rank: int, *, seed: int = 0, alpha: float = 12.0) -> None:
    """A recovery adapter of random values."""
    generator = np.random.default_rng(seed)
    network = Network.load(base)
    pairs = {
        name: (
            generator.standard_normal((rank, columns)).astype(np.float32) * 0.05,
            generator.standard_normal((rows, rank)).astype(np.float32) * 0.05,
        )
        for name, (rows, columns) in network.config.linear_shapes().items()
    }
    record = {"version": 1, "task": "recovery", "base_fingerprint": describe(base).fingerprint}
    write_adapter(base / "adapters" / "recovery", pairs, scale=alpha / rank, record=record)


# --- what comes of it


def test_it_learns_a_rule_and_the_adapter_says_how_it_was_made(
    run: Callable[..., Any], base: Path, rows_file: Path
) -> None:
    points: list[AdaptPoint] = []
    plans: list[Plan] = []
    report = run(on_point=lambda point, left: points.append(point), on_plan=plans.append)
    assert report.loss < 0.35 * report.start_loss and report.accuracy > report.start_accuracy
    assert list(report.curve) == points and points[0].step == 0
    (plan,) = plans
    assert plan.rows + plan.held_out_rows == 36 and plan.seconds is not None and plan.seconds > 0
    assert (plan.start, plan.loop.scale) == ("zero", 2.0)
    assert report.directory == base / "adapters" / "colours"
    record = json.loads((report.directory / "pomona.json").read_text())
    assert record["base_fingerprint"] == report.base_fingerprint == describe(base).fingerprint
    assert record["task"] == "colours" and record["prompt"] == {"instructions": "Name the colour."}
    (source,) = record["data"]
    assert (source["file"], source["rows"]) == ("colours.jsonl", plan.rows)
    assert source["sha256"] == report.data.sha256
    assert record["recipe"]["rank"] == 4 and record["recipe"]["lr"] == 1e-2
    assert record["metrics"]["validation_loss"] == {"before": report.start_loss, "after": report.loss}
    json.dumps(report.to_json())


def test_the_runtime_and_transformers_with_peft_give_the_same_logits(
    run: Callable[..., Any], base: Path
) -> None:
    from peft import PeftModel

    run()
    reference = PeftModel.from_pretrained(transformers_model(base), str(base / "adapters" / "colours"))
    tokens = [int(i) for i in np.random.default_rng(1).integers(0, 256, 60)]
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
        with reference.disable_adapter():
            without = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
    engine = Engine.load(base, threads=1)
    out = np.empty((len(tokens), engine.config.vocab_size), np.float32)
    with engine.new_sequence(load_adapter(engine, base / "adapters" / "colours")) as sequence:
        engine.native.logits(sequence.handle, np.array(tokens, np.int32), out)

    def kl(found: torch.Tensor) -> float:
        return float((expected.exp() * (expected - found)).sum(-1).mean())

    assert kl(torch.from_numpy(out).log_softmax(-1)) < 2e-3  # as test_parity allows a packed model
    assert kl(without) > 0.1


def test_a_16_bit_base_is_adapted_too(plain: Path, rows_file: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(plain, tmp_path / "plain"))
    report = adapt(base, rows_file, work=tmp_path / "work", options=OPTIONS, threads=1)
    assert report.loss < 0.35 * report.start_loss
    load_adapter(Engine.load(base, threads=1), base / "adapters" / "colours")


# --- the mathematics


def prepared(base: Path, path: Path, **options: Any) -> tuple[Network, Answers]:
    rows, _ = read_rows(path)
    found = encode_rows(rows, Tokenizer.from_directory(base), 400).examples
    network = Network.load(base)
    return network, Answers(network, split(found, 0.3, seed=0), **options)


def trainer_of(network: Network, answers: Answers, folder: Path) -> TaskTrainer:
    """With an adapter that does something."""
    loop = OPTIONS.loop(answers.windows)
    generator = np.random.default_rng(3)
    pairs = {
        name: (
            generator.standard_normal((4, columns)).astype(np.float32) * 0.05,
            generator.standard_normal((rows, 4)).astype(np.float32) * 0.05,
        )
        for name, (rows, columns) in network.config.linear_shapes().items()
    }
    return TaskTrainer(network, answers, loop, folder, pairs)


def close(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative distance of two tensors."""
    return float((found - expected).norm() / expected.norm())


UNEVEN = [chat(f"q{n}" * (1 + 3 * n), "answer" * (1 + n % 3), "and?", f"a{n}") for n in range(9)]


def test_loss_and_gradients_are_those_of_transformers_with_peft(base: Path, tmp_path: Path) -> None:
    """Rows of uneven length, several in a pass, against one row at a time in float32 with autograd."""
    from peft import LoraConfig, get_peft_model

    network, answers = prepared(base, write_rows(tmp_path / "rows.jsonl", UNEVEN), pass_tokens=300)
    trainer = trainer_of(network, answers, tmp_path)
    chosen = list(range(answers.windows))
    assert 1 < len(answers._batches(answers.rows.train)) < len(chosen)
    found = answers.gradient(chosen)

    targets = sorted({name.rpartition(".")[2] for name in network.config.linear_shapes()})
    model = get_peft_model(transformers_model(base), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, (a, b) in trainer.pairs().items():
            prefix = f"base_model.model.{name}"
            parameters[f"{prefix}.lora_A.default.weight"].copy_(torch.from_numpy(a).bfloat16())
            parameters[f"{prefix}.lora_B.default.weight"].copy_(torch.from_numpy(b).bfloat16())
    total = torch.zeros(())
    for row in answers.rows.train:
        labels = torch.from_numpy(np.where(row.learnt, row.ids, -100).astype(np.int64))
        logits = model(torch.from_numpy(row.ids.astype(np.int64))[None]).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum")
    count = sum(row.answers for row in answers.rows.train)
    (total / count).backward()
    assert found.counted == count
    assert found.loss == pytest.approx(total.item(), rel=0.02)
    for name in network.config.linear_shapes():
        _, _, a_grad, b_grad = trainer.flats["adapter"].views(f"{name}.a", f"{name}.b")
        prefix = f"base_model.model.{name}"
        assert close(a_grad, parameters[f"{prefix}.lora_A.default.weight"].grad) < 0.08, name
        assert close(b_grad, parameters[f"{prefix}.lora_B.default.weight"].grad) < 0.08, name


def test_a_rows_states_do_not_depend_on_its_company(base: Path, tmp_path: Path) -> None:
    network, answers = prepared(base, write_rows(tmp_path / "rows.jsonl", UNEVEN))
    rows = answers.rows.train
    batch = Batch.of(rows)
    together, _ = network.forward(batch.ids, lengths=batch.lengths)
    start = 0
    for row in rows:
        alone, _ = network.forward(torch.from_numpy(row.ids[None, :-1].astype(np.int64)))
        assert close(together[start : start + row.tokens].float(), alone.float()) < 0.01
        start += row.tokens


@pytest.mark.parametrize("count", [1, 31, 70])
def test_the_loss_is_cross_entropy_and_its_gradient(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    states = torch.randn(count, 64, generator=generator).bfloat16()
    head = torch.randn(300, 64, generator=generator).mul_(0.1).bfloat16()
    wanted = torch.randint(0, 300, (count,), generator=generator)
    exact = states.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(exact @ head.double().t(), wanted, reduction="sum")
    (expected,) = torch.autograd.grad(loss, exact)
    total, grad = cross_entropy_gradient(states, wanted, head)
    assert total == pytest.approx(loss.item(), rel=0.01)
    assert close(grad.double(), expected) < 0.02
    judged, right = cross_entropy(states, wanted, head)
    assert judged == pytest.approx(total, rel=1e-4)
    assert right == int(((states @ head.t()).argmax(-1) == wanted).sum())


# --- where it starts


def test_it_starts_as_the_recovery_adapter_of_the_same_rank(run: Callable[..., Any], base: Path) -> None:
    recovery(base, rank=4, alpha=12.0)
    plans: list[Plan] = []
    report = run(on_plan=plans.append, options=replace(OPTIONS, lr=1e-3, epochs=1))
    assert plans[0].start == "recovery" and plans[0].loop.scale == 3.0
    config = json.loads((base / "adapters" / "colours" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 12)
    network = Network.load(base)
    start = read_adapter(base / "adapters" / "recovery", network.config, report.base_fingerprint)
    end = read_adapter(base / "adapters" / "colours", network.config, report.base_fingerprint)
    for name, (_, values) in start.tensors.items():
        # Few and small steps: still near the start, of which random values would be far.
        first, last = (
            torch.from_numpy(np.array(x)).view(torch.bfloat16).float() for x in (values, end.tensors[name][1])
        )
        assert 0 < close(last, first) < 0.3, name


def test_a_lower_rank_starts_as_the_best_part_of_the_recovery_adapter(
    run: Callable[..., Any], base: Path
) -> None:
    recovery(base, rank=8, alpha=16.0)
    plans: list[Plan] = []
    whole = run(name="whole", options=replace(OPTIONS, rank=8, epochs=1))
    part = run(name="part", on_plan=plans.append, options=replace(OPTIONS, epochs=1))
    alone = run(name="alone", options=replace(OPTIONS, rank=1, epochs=1))
    assert plans[0].start == "recovery" and "the best 4 are kept" in plans[0].start_note
    assert plans[0].loop.scale == 2.0
    assert abs(part.start_loss - whole.start_loss) < abs(alone.start_loss - whole.start_loss)


def test_a_higher_rank_starts_as_the_recovery_adapter_too(run: Callable[..., Any], base: Path) -> None:
    recovery(base, rank=2, alpha=4.0)
    same = run(name="same", options=replace(OPTIONS, rank=2, epochs=1))
    more = run(name="more", options=replace(OPTIONS, rank=4, epochs=1))
    assert more.start_loss == pytest.approx(same.start_loss, rel=1e-3)


# --- runs that stop and go on


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, where: str = "_gradient") -> None:
    """Ctrl-C in the step after `steps`."""
    real = getattr(TaskTrainer, where)

    def interrupted(self: TaskTrainer, *arguments: Any) -> Any:
        if self.step == steps:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(TaskTrainer, where, interrupted)


def test_it_goes_on_from_a_given_adapter(run: Callable[..., Any], base: Path, tmp_path: Path) -> None:
    first = run(name="first")
    assert first.directory is not None
    again = run(name="again", start_from=first.directory)
    assert again.start_loss == pytest.approx(first.loss, abs=2e-3)  # it was kept in 16 bits
    record = json.loads((again.directory / "pomona.json").read_text())
    assert re.fullmatch(r"first#[0-9a-f]{16}", record["recipe"]["start"])
    with pytest.raises(PomonaError, match="nowhere"):
        run(name="third", start_from=tmp_path / "nowhere")


@pytest.mark.parametrize(("steps", "where"), [(0, "_gradient"), (5, "_gradient"), (8, "_evaluate")])
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    run: Callable[..., Any], base: Path, monkeypatch: pytest.MonkeyPatch, steps: int, where: str
) -> None:
    options = replace(OPTIONS, epochs=3)
    whole = run(options=options)
    expected = adapter_bytes(base)
    shutil.rmtree(base / "adapters")
    with monkeypatch.context() as patch:
        stop_after(patch, steps, where)
        with pytest.raises(KeyboardInterrupt):
            run(options=options)
    assert not (base / "adapters").exists()
    with pytest.raises(PomonaError, match="--resume"):
        run(options=options)
    resumed = run(options=options, resume=True)
    assert adapter_bytes(base) == expected
    timeless = [replace(p, seconds=0, tokens_per_second=None) for p in resumed.curve]
    assert timeless == [replace(p, seconds=0, tokens_per_second=None) for p in whole.curve]


def test_a_run_can_be_begun_anew_and_is_not_resumed_with_other_options(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run()
    with pytest.raises(PomonaError, match="other options"):
        run(resume=True, options=replace(OPTIONS, lr=1e-3))
    anew = run(restart=True, options=replace(OPTIONS, epochs=1))
    assert anew.curve[0].step == 0
    with pytest.raises(PomonaError, match="no run to resume"):
        run(resume=True, overwrite=True)


def test_a_time_budget_ends_a_run(run: Callable[..., Any]) -> None:
    report = run(options=replace(OPTIONS, epochs=1000, minutes=0.02))
    assert report.stopped == "time" and report.seconds < 30


def test_patience_ends_a_run_that_learns_by_heart(run: Callable[..., Any], tmp_path: Path) -> None:
    """Answers without a rule: what is learnt helps no other row."""
    generator = np.random.default_rng(0)
    rows = [chat(f"{n}?", "".join(map(chr, generator.integers(97, 123, 6)))) for n in range(24)]
    path = write_rows(tmp_path / "chance.jsonl", rows)
    report = run(path, options=replace(OPTIONS, epochs=60, patience=2, validation=0.3))
    assert report.stopped == "early" and report.curve[-1].step < report.plan.steps
    assert report.loss < report.last_loss  # the best moment was kept


def test_event_files_are_written_where_tensorboard_is(run: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = run(options=replace(OPTIONS, epochs=1))
    (folder,) = (tmp_path / "work").glob("*/tensorboard")
    log = EventAccumulator(str(folder))
    log.Reload()
    losses = [event.value for event in log.Scalars("validation/loss")]
    assert losses == pytest.approx([point.validation_loss for point in report.curve])
    assert len(log.Scalars("train/loss")) == report.plan.steps


# --- when it does not help, or must not


def test_nothing_is_written_when_nothing_was_gained(run: Callable[..., Any], base: Path) -> None:
    run()
    (base / "adapters" / "colours").rename(base / "adapters" / "recovery")  # a start that is hard to better
    report = run(options=replace(OPTIONS, lr=30.0, epochs=1))
    assert report.loss == report.start_loss and report.last_loss > report.start_loss
    assert report.directory is None
    assert [path.name for path in (base / "adapters").iterdir()] == ["recovery"]


def test_bad_rows_are_refused_by_line_or_left_out(
    run: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    rows = [*colours(4), "{", chat("q" * 300, "a"), chat("q", "")]
    path = write_rows(tmp_path / "some.jsonl", rows)
    seen: list[DataReport] = []
    with pytest.raises(PomonaError, match=r"3 of 15 rows cannot be trained on \(line 13: .*--skip-bad"):
        run(path, on_data=seen.append)
    assert seen[0].counts() == {"not JSON": 1, "empty": 1, "too long": 1}
    report = run(path, skip_bad=True, options=replace(OPTIONS, epochs=2))
    assert report.plan.rows + report.plan.held_out_rows == 12
    record = json.loads((base / "adapters" / "some" / "pomona.json").read_text())
    assert record["data"][0]["left_out_rows"] == 3


def test_a_dry_run_tells_and_writes_nothing(run: Callable[..., Any], base: Path) -> None:
    plans: list[Plan] = []
    report = run(dry_run=True, on_plan=plans.append)
    assert not (base / "adapters").exists() and report.directory is None and report.loss is None
    (plan,) = plans
    assert plan.seconds is not None and plan.memory_bytes > 1 << 20
    assert json.loads(json.dumps(report.to_json()))["plan"]["steps"] == plan.steps
    run(options=replace(OPTIONS, epochs=1))  # and is in nobody's way


def test_a_template_without_end_tokens_is_said(tmp_path: Path, rows_file: Path) -> None:
    base = tiny_model(tmp_path / "endless", ENDLESS)
    report = adapt(base, rows_file, work=tmp_path / "work", options=OPTIONS, dry_run=True, threads=1)
    assert report.plan.endless_rows == 36


def test_an_adapter_that_is_there_is_not_lost(run: Callable[..., Any], base: Path) -> None:
    options = replace(OPTIONS, epochs=1)
    run(options=options)
    before = adapter_bytes(base)
    with pytest.raises(PomonaError, match="overwrite"):
        run(options=options)
    assert adapter_bytes(base) == before
    run(overwrite=True, options=replace(options, seed=1))
    assert adapter_bytes(base) != before
    assert sorted(p.name for p in (base / "adapters").iterdir()) == ["colours"]


@pytest.mark.parametrize("name", ["recovery", "base", "../x", ".x", "a b", "x" * 65])
def test_names_that_are_none_or_mean_another_are_refused(run: Callable[..., Any], name: str) -> None:
    with pytest.raises(PomonaError, match="--name"):
        run(name=name)


# --- options


def test_defaults_follow_the_number_of_rows() -> None:
    for limit, (epochs, batch, lr) in DEFAULTS:
        rows = 1_000_000 if limit == float("inf") else int(limit) - 1
        loop = AdaptOptions().loop(rows)
        assert (loop.passes, loop.batch, loop.lr) == (epochs, batch, lr)
    assert AdaptOptions().loop(3).batch == 3  # not more than there are
    assert AdaptOptions(schedule="constant").loop(10).last_lr == 1.0
    assert AdaptOptions(batch=5, lr=1e-4, epochs=2).loop(10_000).batch == 5


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"epochs": 0},
        {"batch": 0},
        {"window": 8},
        {"schedule": "step"},
        {"validation": 0.0},
        {"validation": 0.9},
        {"warm_up": 1.0},
        {"minutes": -1.0},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PomonaError):
        AdaptOptions(**options)


def test_a_window_beyond_the_context_is_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(PomonaError, match="context has 512"):
        run(options=replace(OPTIONS, window=1000))


# --- the real model


@pytest.mark.slow
def test_the_real_model_says_the_same_in_our_runtime_and_in_transformers_with_peft(
    smollm2_4bit_dir: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    path = write_rows(tmp_path / "colours.jsonl", colours(8))
    report = adapt(
        smollm2_4bit_dir,
        path,
        work=tmp_path / "work",
        target=tmp_path / "colours",
        options=AdaptOptions(epochs=2, batch=4),
    )
    assert report.loss < 0.5 * report.start_loss
    reference = PeftModel.from_pretrained(transformers_model(smollm2_4bit_dir), str(tmp_path / "colours"))
    engine = Engine.load(smollm2_4bit_dir, threads=1)
    tokenizer = Tokenizer.from_directory(smollm2_4bit_dir)
    assert tokenizer.chat_template is not None
    text = tokenizer.chat_template.render(colours(9)[-1]["messages"], add_generation_prompt=False)
    tokens = tokenizer.encode(text)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
    out = np.empty((len(tokens), engine.config.vocab_size), np.float32)
    with engine.new_sequence(load_adapter(engine, tmp_path / "colours")) as sequence:
        engine.native.logits(sequence.handle, np.array(tokens, np.int32), out)
    found = torch.from_numpy(out).log_softmax(-1)
    assert float((expected.exp() * (expected - found)).sum(-1).mean()) < 5e-3
