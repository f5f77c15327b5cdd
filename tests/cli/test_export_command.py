"""`pomona export`: the directory, the command for vLLM, JSON and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
from adapter_samples import adapter_for, tiny_model

Command = Callable[..., Any]


@pytest.fixture
def model(cli_models: Path) -> Path:
    """`tiny` in the cache, with two adapters."""
    directory = tiny_model(cli_models / "tiny")
    for seed, name in enumerate(("recovery", "summarize")):
        adapter_for(directory, directory / "adapters" / name, seed=seed)
    return directory


def test_the_model_is_written_and_the_command_for_vllm_told(
    pomona: Command, model: Path, tmp_path: Path
) -> None:
    outcome = pomona("export", "tiny", "--to", "hf", "--out", str(tmp_path / "server"))
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "server" / "adapters" / "summarize" / "adapter_config.json").is_file()
    assert "recovery (rank 4), summarize (rank 4)" in outcome.out
    assert f"vllm serve {tmp_path / 'server'} " in outcome.out


def test_json_and_a_choice_of_adapters(pomona: Command, model: Path, tmp_path: Path) -> None:
    (model / "adapters" / "recovery").rename(model / "adapters" / "rewrite")
    out = str(tmp_path / "server")
    outcome = pomona("export", "tiny", "--out", out, "--adapter", "summarize", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["adapters"] == {"summarize": 4}
    assert outcome.json["written"] == out
    assert outcome.json["bytes"] > 0
    assert outcome.json["vllm"].startswith("vllm serve ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "onnx"), "--to onnx"),
        (("--adapter", "nothing"), "has no adapter nothing"),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_is_written(
    pomona: Command, model: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    outcome = pomona("export", "tiny", "--out", str(tmp_path / "server"), *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "server").exists()


def test_a_directory_must_be_named(pomona: Command, model: Path) -> None:
    outcome = pomona("export", "tiny")
    assert outcome.code == 2
    assert "--out" in outcome.err


def test_help_shows_examples(pomona: Command) -> None:
    assert "pomona export smollm2-135m-4bit --to hf" in pomona("export", "--help").out


def test_a_model_card_and_a_data_statement_come_along(pomona: Command, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "server"
    outcome = pomona("export", "tiny", "--out", str(target), "--json")
    assert outcome.json["cards"] == ["README.md", "DATA.md"]
    assert (target / "README.md").read_text().startswith("---\nlicense: other\n")
    assert "| `summarize` |" in (target / "README.md").read_text()
    assert (target / "DATA.md").read_text().startswith("# Data of tiny")


def test_a_result_of_another_model_is_refused(pomona: Command, model: Path, tmp_path: Path) -> None:
    from pomona.evaluation.results import EvalResult, TaskResult, write_result

    tasks = (TaskResult("ifeval", "prompt_strict", 0, "1", {"1": 1.0}),)
    path = tmp_path / "result.json"
    write_result(EvalResult("s", "other", "f", None, None, False, None, "", "d", 1.0, tasks), path)
    outcome = pomona("export", "tiny", "--out", str(tmp_path / "server"), "--results", str(path))
    assert outcome.code == 2 and "not of tiny" in outcome.err
    assert not (tmp_path / "server").exists()
