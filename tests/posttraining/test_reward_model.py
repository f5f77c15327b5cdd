"""The reward model: its last state, its two forms on disk, scores, and training that survives a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pomona.adapters.metadata import read_record
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.conversations import encode, padding_token
from pomona.posttraining.options import RewardOptions
from pomona.posttraining.preferences import LEVELS, Preference, PreferenceReport, Response
from pomona.posttraining.reward import RewardResult, train_reward
from pomona.posttraining.reward_model import RewardModel
from pomona.posttraining.training.reward_network import GradedRewardNetwork, last_state
from pomona.posttraining.training.reward_trainer import padded
from pomona.posttraining.training.trainer import CURVE, StepReport
from pomona.runtime.adapter_file import read_adapter
from tests.posttraining.conftest import QUICK


def preferences(count: int = 40) -> list[Preference]:
    """Pairs with a rule: "yes ..." is better and true, "no" is not. The last row is a grading alone."""
    rows = [
        Preference(
            i,
            ({"role": "user", "content": f"q{i}"},),
            Response(f"yes {i}", {"truthfulness": "good"} if i % 2 else {}),
            Response("no", {"truthfulness": "poor"} if i % 2 else {}),
            LEVELS[i % 4],
        )
        for i in range(count)
    ]
    return [*rows, Preference(count, rows[0].prompt, Response("no yes", {"conciseness": "fair"}))]


def train(base: Path, target: Path, work: Path, **options: Any) -> RewardResult:
    run = {key: options.pop(key) for key in ("resume", "restart", "on_step") if key in options}
    return train_reward(
        base,
        preferences(),
        target,
        work=work,
        data=PreferenceReport("p.jsonl", ""),
        options=RewardOptions(**{**QUICK, "epochs": 4, **options}),
        threads=1,
        **run,
    )


@pytest.fixture(scope="module")
def trained(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RewardResult:
    folder = tmp_path_factory.mktemp("reward")
    return train(tiny_dir, folder / "model", folder / "work", validation=0.25)


@pytest.fixture(scope="module")
def model(trained: RewardResult) -> RewardModel:
    return RewardModel.load(trained.directory)


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_the_state_is_that_of_the_last_token_that_is_no_padding() -> None:
    states = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    assert torch.equal(last_state(states, mask), torch.stack([states[0, 1], states[1, 3]]))


def test_left_and_right_padding_give_the_same_reward(model: RewardModel) -> None:
    network: GradedRewardNetwork = model.network
    row = encode(chat("q", "yes indeed"), model.tokenizer).ids
    found = []
    for left, right in ((0, 0), (7, 0), (0, 7), (3, 4)):
        ids = torch.tensor([[model.padding] * left + row + [model.padding] * right])
        mask = torch.tensor([[0] * left + [1] * len(row) + [0] * right])
        with torch.no_grad():
            out = network(input_ids=ids, attention_mask=mask)
        found.append(torch.cat([out.logits.flatten(), out.gradings.flatten()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_padding_is_never_the_token_that_ends_a_turn(tiny_dir: Path) -> None:
    tokenizer = Tokenizer.from_directory(tiny_dir)
    ids = encode(chat("q", "a"), tokenizer).ids
    assert ids[-1] in tokenizer.eos_token_ids
    assert padding_token(tokenizer) not in tokenizer.eos_token_ids
    assert encode(chat("q", ""), tokenizer).answer == [ids[-1]]


def test_it_learns_the_rule_and_the_grades(trained: RewardResult) -> None:
    report = trained.held_out
    assert report is not None and report.accuracy is not None
    assert report.accuracy.value == 1.0
    assert report.gradings["truthfulness"][0].value > report.gradings["truthfulness"][1]
    assert trained.run.broken_steps == 0
    assert trained.rows + trained.held_out_rows == 41


def test_an_adapter_that_the_runtime_reads_and_a_record_are_written(
    trained: RewardResult, tiny_dir: Path
) -> None:
    mark = describe(tiny_dir).fingerprint
    file = read_adapter(trained.directory, ModelConfig.from_directory(tiny_dir), mark)
    assert file.rank == 4
    record = read_record(trained.directory)
    assert record is not None and (record.task, record.base_fingerprint) == ("reward", mark)
    assert json.loads((trained.directory / "reward_report.json").read_text())["pairs"] >= 9
    assert (trained.directory / "calibration.svg").read_text().startswith("<svg")


def test_scores_are_the_same_for_the_same_list_and_nearly_so_in_other_company(model: RewardModel) -> None:
    texts = ["yes", "no", "", "yes and no " * 20, "maybe"]
    conversations = [chat("q", text) for text in texts]
    together = model.score(conversations)
    assert together.shape == (5,) and together.dtype == np.float64 and np.isfinite(together).all()
    assert np.array_equal(together, model.score(conversations))
    alone = np.concatenate([model.score([one]) for one in conversations])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert together[0] > together[1]
    assert model.score([]).shape == (0,)
    assert set(model.grade(conversations[:1])[0].values()) <= {"poor", "fair", "good"}


def test_a_conversation_that_cannot_be_scored_is_named(model: RewardModel) -> None:
    with pytest.raises(PomonaError, match=r"conversation 1: .*assistant"):
        model.score([chat("q", "a"), chat("q", "a")[:1]])
    with pytest.raises(PomonaError, match=r"conversation 0: has .* tokens"):
        model.score([chat("q", "a" * 600)])


def test_a_reward_that_is_no_number_is_nan_and_counted(trained: RewardResult) -> None:
    broken = RewardModel.load(trained.directory)
    with torch.no_grad():
        broken.network.score.weight[0, 0] = math.nan
    assert np.isnan(broken.score([chat("q", "a"), chat("q", "b")])).all()
    assert broken.not_finite == 2


def test_a_model_of_another_base_or_without_its_heads_is_refused(
    trained: RewardResult, tmp_path: Path
) -> None:
    import shutil

    with pytest.raises(PomonaError, match="is no reward model"):
        RewardModel.load(tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(trained.directory, moved)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "gone"}))
    with pytest.raises(PomonaError, match="name the base"):
        RewardModel.load(moved)
    (moved / "reward_heads.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(PomonaError, match=r"reward_heads.safetensors: tensor"):
        RewardModel.load(moved, config["base_model_name_or_path"])


def test_all_weights_are_a_sequence_classifier_of_transformers(tiny_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    found = train(tiny_dir, tmp_path / "full", tmp_path / "work", weights="full", epochs=1, lr=1e-3)
    ours = RewardModel.load(found.directory)
    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        found.directory, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    conversations = [chat("q", "yes"), chat("q", "no, never at all")]
    rows = [encode(one, ours.tokenizer).ids for one in conversations]
    ids, mask = padded(rows, ours.padding)
    with torch.no_grad():
        rewards = theirs(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    np.testing.assert_allclose(ours.score(conversations), rewards.numpy(), rtol=1e-4, atol=1e-5)


class _KilledError(Exception):
    pass


def test_a_run_that_was_killed_ends_as_one_that_was_not(tiny_dir: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "checkpoint_steps": 2, "dropout": 0.1, "validation": 0.0}
    steps: list[StepReport] = []
    whole = train(tiny_dir, tmp_path / "whole", tmp_path / "a", on_step=steps.append, **options)

    def killed(step: StepReport) -> None:
        if step.step == 3:
            raise _KilledError

    with pytest.raises(_KilledError):
        train(tiny_dir, tmp_path / "half", tmp_path / "b", on_step=killed, **options)
    assert not (tmp_path / "half").exists()
    with pytest.raises(PomonaError, match="--resume"):
        train(tiny_dir, tmp_path / "half", tmp_path / "b", **options)
    [folder] = (tmp_path / "b").iterdir()
    assert len((folder / CURVE).read_text().splitlines()) >= 2
    again: list[StepReport] = []
    resumed = train(tiny_dir, tmp_path / "half", tmp_path / "b", resume=True, on_step=again.append, **options)
    assert [step.loss for step in again] == [step.loss for step in steps[2:]]
    for name in ("adapter_model.safetensors", "reward_heads.safetensors"):
        assert (resumed.directory / name).read_bytes() == (whole.directory / name).read_bytes()
    assert not list(folder.glob("checkpoint-*"))


def test_a_step_whose_loss_is_no_number_is_left_out_and_counted(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona.posttraining.training import reward_trainer

    sound = reward_trainer.reward_loss
    calls = iter(range(1000))

    def sometimes(*arguments: Any, **options: Any) -> torch.Tensor:
        loss = sound(*arguments, **options)
        return loss * math.nan if next(calls) == 2 else loss

    monkeypatch.setattr(reward_trainer, "reward_loss", sometimes)
    found = train(tiny_dir, tmp_path / "some", tmp_path / "work", epochs=1, validation=0.0)
    assert found.run.broken_steps == 1
    rewards = RewardModel.load(found.directory).score([chat("q", "a")])
    assert np.isfinite(rewards).all()
    monkeypatch.setattr(reward_trainer, "reward_loss", lambda *a, **o: sound(*a, **o) * math.nan)
    with pytest.raises(PomonaError, match="no number 10 steps in a row"):
        train(tiny_dir, tmp_path / "none", tmp_path / "work", epochs=4, validation=0.0)
    assert not (tmp_path / "none").exists()


def test_rows_that_are_too_long_are_left_out_and_counted(tiny_dir: Path, tmp_path: Path) -> None:
    rows = [
        *preferences(3),
        Preference(9, ({"role": "user", "content": "x" * 300},), Response("a"), Response("b")),
    ]
    report = PreferenceReport("p.jsonl", "", read=len(rows))
    options = RewardOptions(**QUICK, window=100, validation=0.0, max_steps=1)
    train_reward(tiny_dir, rows, tmp_path / "m", work=tmp_path / "w", data=report, options=options, threads=1)
    assert report.counts() == {"too long": 1}
    with pytest.raises(PomonaError, match="is there already"):
        train_reward(tiny_dir, rows, tmp_path / "m", work=tmp_path / "w", data=report, options=options)
