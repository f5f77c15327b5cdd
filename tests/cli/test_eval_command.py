"""`pomona eval`: suites, results held against each other, pages, the recovery table, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pomona.errors import PomonaError
from pomona.evaluation.results import EvalResult, TaskResult, write_result

Command = Callable[..., Any]


@pytest.fixture
def results(tmp_path: Path) -> tuple[Path, Path]:
    """Two results on the same ten items; the first is right on two more."""
    paths = (tmp_path / "after.json", tmp_path / "before.json")
    for path, right in zip(paths, (7, 5), strict=True):
        items = {str(n): float(n < right) for n in range(10)}
        tasks = (TaskResult("ifeval", "prompt_strict", 0, "1", items),)
        one = EvalResult("instruct", path.stem, "f", None, None, False, None, "", "2026-01-01", 1.0, tasks)
        write_result(one, path)
    return paths


def test_suites_are_listed(pomona: Command) -> None:
    listed = pomona("eval", "--list").out
    for name in ("core", "quick", "instruct", "math", "code", "tools", "long"):
        assert f"\n{name} " in f"\n{listed}"
    as_json = pomona("eval", "--list", "--json").json
    assert as_json["instruct"] == ["ifeval"] and len(as_json["long"]) == 20
    assert "bfcl_parallel" in as_json["tools"]


def test_two_results_are_compared(pomona: Command, results: tuple[Path, Path], tmp_path: Path) -> None:
    after, before = map(str, results)
    outcome = pomona("eval", "--compare", after, before)
    assert outcome.code == 0 and "+20.00%" in outcome.out and "10 items" in outcome.out
    page = tmp_path / "report.html"
    outcome = pomona("eval", "--compare", after, before, "--page", str(page), "--json")
    assert outcome.json["ifeval"]["value"] == pytest.approx(0.2)
    assert page.read_text().startswith("<!doctype html>") and "+20.00" in page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "which model?"),
        (("m", "--suite", "cor"), "choose of core"),
        (("m", "--suite", "tools", "--task", "hotpot"), "--task hotpot"),
        (("m", "--suite", "instruct", "--samples", "3"), "--temperature"),
        (("m", "--out", "no/such/folder/x.json"), "create it first"),
        (("--compare", "no.json", "no.json"), "cannot be read"),
        (("recovery",), "MODEL"),
        (("recovery", "m", "--limit", "ifeval"), "TASK=ITEMS"),
        (("recovery", "m", "--limit", "ifeval=x"), "TASK=ITEMS"),
        (("recovery", "m", "--task", "mmlu"), "choose of ifeval"),
        (("recovery", "m"), "smollm2-135m"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(
    pomona: Command, cli_models: Path, words: tuple[str, ...], message: str
) -> None:
    outcome = pomona("eval", *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_without_data_the_folder_is_named(
    pomona: Command, cli_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POMONA_DATA", raising=False)
    outcome = pomona("eval", "m", "--suite", "instruct")
    assert outcome.code == 2 and "POMONA_DATA" in outcome.err


def test_help_pages_have_examples(pomona: Command) -> None:
    assert "pomona eval recovery smollm2-135m-4bit" in pomona("eval", "--help").out
    page = pomona("eval", "recovery", "--help").out
    assert "Table 10" in page and "--limit gsm8k_cot=200" in page
    assert "pomona eval recovery" in page  # the usage line


@pytest.mark.data
def test_a_suite_is_run_written_and_shown(pomona: Command, smollm2_dir: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "r.json", tmp_path / "r.html"
    words = ("--suite", "instruct", "--limit", "3", "--max-new-tokens", "12", "--threads", "2")
    outcome = pomona("eval", str(smollm2_dir), *words, "--out", str(out), "--page", str(page), "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["suite"] == "instruct" and outcome.json["max_new_tokens"] == 12
    assert set(outcome.json["table"]) == {
        "ifeval",
        "ifeval instruction_strict",
        "ifeval prompt_loose",
        "ifeval instruction_loose",
    }
    read = EvalResult.read(out)
    assert read.limit == 3 and len(read.tasks[0].answers) == 3
    assert "ifeval: answers" in page.read_text()
    again = pomona("eval", str(smollm2_dir), *words)
    assert "3 items" in again.out and "average" in again.out


@pytest.mark.data
def test_the_recovery_table_is_printed(
    pomona: Command, smollm2_dir: Path, small_other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "table.json"
    words = (
        "--reference",
        str(smollm2_dir),
        "--task",
        "qmsum",
        "--limit",
        "qmsum=2",
        "--max-new-tokens",
        "8",
    )
    outcome = pomona("eval", "recovery", str(small_other), *words, "--out", str(out))
    assert outcome.code == 0, outcome.err
    assert "QMSum, ROUGE-L" in outcome.out and "compressed" in outcome.out and "2 of qmsum" in outcome.out
    assert [row["kind"] for row in json.loads(out.read_text())["rows"]] == ["16 bit", "compressed"]


@pytest.fixture
def small_other(smollm2_dir: Path, tmp_path: Path) -> Path:
    """The same model in another directory, as a stand-in for a compressed one."""
    target = tmp_path / "other"
    target.mkdir()
    for path in smollm2_dir.iterdir():
        (target / path.name).symlink_to(path)
    return target


def test_limits_are_read() -> None:
    from pomona.cli.eval_recovery import read_limits

    assert read_limits(["ifeval=100", "qmsum=2"]) == {"ifeval": 100, "qmsum": 2}
    with pytest.raises(PomonaError, match="ifeval=0"):
        read_limits(["ifeval=0"])
