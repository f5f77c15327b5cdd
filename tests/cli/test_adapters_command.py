"""`pomona adapters`: each sub-command on a small real model, its output, its JSON and its exit codes."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
from adapter_samples import adapter_for, peft_adapter, tiny_model

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def model(pristine: Path, cli_models: Path) -> Path:
    """`tiny` in the cache, without adapters."""
    return Path(shutil.copytree(pristine, cli_models / "tiny"))


@pytest.fixture
def summarize(model: Path, tmp_path: Path) -> Path:
    return adapter_for(model, tmp_path / "summarize")


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What somebody at a terminal will type."""

    def type_in(words: str) -> None:
        terminal = io.StringIO(words)
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", terminal)

    return type_in


def test_without_a_word_the_sub_commands_are_listed(pomona: Command) -> None:
    outcome = pomona("adapters")
    assert outcome.code == 0
    for word in ("list", "add", "remove", "show", "verify", "export", "rebase"):
        assert f" {word} " in outcome.out


def test_add_then_list(pomona: Command, model: Path, summarize: Path) -> None:
    assert "no adapters" in pomona("adapters", "list").out
    outcome = pomona("adapters", "add", "tiny", str(summarize))
    assert outcome.code == 0, outcome.err
    assert "summarize: rank 4" in outcome.out
    for line in (["adapters", "list"], ["adapters", "list", "tiny"]):
        assert [word in pomona(*line).out for word in ("tiny summarize", "apache-2.0")] == [True, True]
    [found] = pomona("adapters", "list", "--json").json["adapters"]
    assert (found["model"], found["name"], found["rank"], found["problem"]) == ("tiny", "summarize", 4, None)


def test_an_added_recovery_adapter_is_said_to_run_by_default(
    pomona: Command, model: Path, summarize: Path
) -> None:
    outcome = pomona("adapters", "add", "tiny", str(summarize), "--name", "recovery")
    assert "runs by default" in outcome.out


def test_an_adapter_of_an_unknown_base_needs_the_option(pomona: Command, model: Path, tmp_path: Path) -> None:
    stranger = str(peft_adapter(tmp_path / "stranger"))
    refused = pomona("adapters", "add", "tiny", stranger)
    assert refused.code == 2 and "--base-unknown-ok" in refused.err and refused.err.count("\n") == 1
    taken = pomona("adapters", "add", "tiny", stranger, "--base-unknown-ok", "--json")
    assert taken.code == 0 and taken.json["name"] == "stranger"


def test_an_adapter_that_cannot_be_used_is_listed_with_the_reason(
    pomona: Command, model: Path, summarize: Path
) -> None:
    pomona("adapters", "add", "tiny", str(summarize))
    (model / "adapters" / "summarize" / "adapter_model.safetensors").write_bytes(b"")
    outcome = pomona("adapters", "list", "tiny")
    assert outcome.code == 0 and "tiny summarize" in outcome.out
    assert "tiny summarize cannot be used: " in outcome.err


def test_show_prints_record_and_norms(pomona: Command, model: Path, summarize: Path) -> None:
    pomona("adapters", "add", "tiny", str(summarize))
    outcome = pomona("adapters", "show", "tiny", "summarize")
    assert outcome.code == 0, outcome.err
    for word in ("rank", "4, alpha 8", "apache-2.0", "gate_proj", "norm of the change"):
        assert word in outcome.out
    found = pomona("adapters", "show", "tiny", "summarize", "--json").json
    assert {kind["name"] for kind in found["kinds"]} >= {"q_proj", "down_proj"}
    assert found["record"]["origin"]["source"] == "summarize"


def test_verify_ends_with_1_when_something_is_wrong(pomona: Command, model: Path, summarize: Path) -> None:
    assert pomona("adapters", "verify", "tiny").code == 0
    pomona("adapters", "add", "tiny", str(summarize))
    sound = pomona("adapters", "verify", "tiny")
    assert sound.code == 0 and "summarize: sound" in sound.out
    (model / "adapters" / "summarize" / "run.sh").write_text("echo")
    wrong = pomona("adapters", "verify", "tiny", "summarize")
    assert wrong.code == 1 and "NOT sound" in wrong.out and "WRONG files" in wrong.out
    outcome = pomona("adapters", "verify", "tiny", "--json")
    assert outcome.code == 1
    assert outcome.json["ok"] is False
    assert [c["name"] for c in outcome.json["adapters"]["summarize"] if not c["ok"]] == ["files"]


@pytest.mark.parametrize(("words", "gone"), [("y\n", True), ("yes\n", True), ("n\n", False), ("", False)])
def test_remove_asks(
    pomona: Command,
    model: Path,
    summarize: Path,
    answer: Callable[[str], None],
    words: str,
    gone: bool,
) -> None:
    pomona("adapters", "add", "tiny", str(summarize))
    answer(words)
    outcome = pomona("adapters", "remove", "tiny", "summarize")
    assert "Remove " in outcome.err and "[y/N]" in outcome.err
    assert outcome.code == (0 if gone else 2)
    assert (model / "adapters" / "summarize").exists() is not gone


def test_remove_does_not_wait_for_nobody(pomona: Command, model: Path, summarize: Path) -> None:
    pomona("adapters", "add", "tiny", str(summarize))
    refused = pomona("adapters", "remove", "tiny", "summarize")
    assert refused.code == 2 and "give --yes" in refused.err
    assert pomona("adapters", "remove", "tiny", "summarize", "--yes", "--json").json == {
        "removed": str(model / "adapters" / "summarize")
    }


def test_recovery_needs_force_before_anybody_is_asked(
    pomona: Command, model: Path, summarize: Path, answer: Callable[[str], None]
) -> None:
    pomona("adapters", "add", "tiny", str(summarize), "--name", "recovery")
    answer("y\n")
    refused = pomona("adapters", "remove", "tiny", "recovery")
    assert refused.code == 2 and "--force" in refused.err and "[y/N]" not in refused.err
    assert pomona("adapters", "remove", "tiny", "recovery", "--force", "--yes").code == 0


def test_export_writes_a_directory_or_an_archive(
    pomona: Command, model: Path, summarize: Path, tmp_path: Path
) -> None:
    pomona("adapters", "add", "tiny", str(summarize))
    outcome = pomona("adapters", "export", "tiny", "summarize", str(tmp_path / "out"))
    assert outcome.code == 0 and (tmp_path / "out" / "pomona.json").is_file()
    packed = tmp_path / "out.tar.gz"
    found = pomona("adapters", "export", "tiny", "summarize", str(packed), "--json").json
    assert found == {"written": str(packed), "bytes": packed.stat().st_size}
    assert pomona("adapters", "export", "tiny", "summarize", str(packed)).code == 2
    assert pomona("adapters", "export", "tiny", "summarize", str(packed), "--overwrite").code == 0


@pytest.mark.parametrize(
    "words", ["show tiny none", "verify tiny none", "remove tiny none", "export tiny none x"]
)
def test_an_adapter_that_is_not_there_is_one_line(pomona: Command, model: Path, words: str) -> None:
    outcome = pomona("adapters", *words.split())
    assert outcome.code == 2
    assert "tiny: has no adapter none (there: none)" in outcome.err and outcome.err.count("\n") == 1


def test_a_wrong_sub_command_is_one_line(pomona: Command) -> None:
    outcome = pomona("adapters", "fly")
    assert outcome.code == 2 and "fly" in outcome.err and outcome.err.count("\n") == 1


def test_json_errors_are_json(pomona: Command, model: Path) -> None:
    outcome = pomona("adapters", "show", "tiny", "none", "--json")
    assert outcome.code == 2 and "has no adapter none" in json.dumps(outcome.json)


# --- rebase, whose work is tested in tests/adapters


@pytest.fixture
def rebased(fake_module: Callable[..., None], tmp_path: Path) -> list[dict[str, Any]]:
    """pomona.adapters.rebase, replaced; gives what it was asked for. With a --name it fails to improve."""
    asked: list[dict[str, Any]] = []

    def rebase(adapter: str, old: Path, new: Path, **options: Any) -> Any:
        asked.append({"adapter": adapter, "old": old, "new": new, **options})
        options["on_point"](SimpleNamespace(step=3, held_out_kl=0.5, same_top=0.75), 1.0)
        kl = 0.25 if options["name"] is None else 2.0
        report = {
            "directory": new / "adapters" / adapter if kl < 1 else None,
            "base_kl": 1.0,
            "carried_kl": 0.5,
            "kl": kl,
            "same_top": 0.9,
            "prompts": 36,
            "held_out": 4,
        }
        return SimpleNamespace(**report, to_json=lambda: report)

    fake_module("pomona.adapters.rebase", rebase=rebase, RebaseOptions=dict)
    return asked


REBASE = ["adapters", "rebase", "brief", "--from", "old", "--to", "new", "--data", "p.jsonl"]


def test_rebase_passes_its_options_on_and_tells_what_came_of_it(
    pomona: Command, put_model: Callable[..., Path], rebased: list[dict[str, Any]]
) -> None:
    old, new = put_model("old"), put_model("new")
    outcome = pomona(*REBASE, "--lr", "0.01", "--minutes", "2", "--threads", "1")
    assert outcome.code == 0, outcome.err
    assert "0.2500 nats per token, before 1.0000, 0.5000 with the old values" in outcome.out
    assert "step 3, held-out KL 0.5000, same top token 75.0%" in outcome.err
    [asked] = rebased
    assert (asked["adapter"], asked["old"], asked["new"]) == ("brief", old, new)
    assert (asked["data"], asked["threads"], asked["overwrite"]) == (Path("p.jsonl"), 1, False)
    assert (asked["options"]["lr"], asked["options"]["minutes"]) == (0.01, 2)
    assert pomona(*REBASE, "--json").json["kl"] == 0.25


def test_rebase_warns_when_nothing_was_written(
    pomona: Command, put_model: Callable[..., Path], rebased: list[dict[str, Any]]
) -> None:
    put_model("old"), put_model("new")
    outcome = pomona(*REBASE, "--name", "worse")
    assert outcome.code == 0 and "WARNING" in outcome.err and "nothing" in outcome.out
