"""`pomona write`: features on files, shown for people and as JSON; a model stands in that answers by rote."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "features"))
from answering_helpers import AnsweringModel, content

from pomona.adapters.edits import text_edits
from pomona.cli import write as command


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], AnsweringModel]:
    """Puts a model that answers by `answer` in the place of every model that is loaded."""

    def put(answer: Any) -> AnsweringModel:
        model = AnsweringModel(answer if callable(answer) else lambda _: answer)

        def load(name: str, **options: Any) -> AnsweringModel:
            model.loaded = (name, options)  # type: ignore[attr-defined]
            return model

        from pomona.runtime.model import Model

        monkeypatch.setattr(Model, "load", SimpleNamespace(__call__=load).__call__)
        return model

    return put


def test_a_summary_goes_to_standard_output_and_its_origin_to_the_other(
    pomona: Callable[..., Any], answers: Any, tmp_path: Path
) -> None:
    model = answers("Anna moves the meeting.")
    (tmp_path / "mail.txt").write_text("Hi, it is Anna.")
    done = pomona(
        "write", "summarize", str(tmp_path / "mail.txt"), "--style", "three sentences", "--kind", "thread"
    )
    assert (done.code, done.out) == (0, "Anna moves the meeting.\n")
    assert "without an adapter, 1 answer" in done.err
    assert "message thread in at most three sentences" in model.prompts[0]
    assert model.loaded[0] == "smollm2-135m-4bit" and model.closed  # type: ignore[attr-defined]


def test_standard_input_and_json(
    pomona: Callable[..., Any], answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(lambda p: content(p).replace("has", "have"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("I has it."))
    done = pomona("write", "proofread", "-", "--json", "--adapter", "mine", "--model", "other")
    assert done.code == 0
    value = done.json
    assert value["text"] == "I have it."
    assert value["edits"] == [{"start": 2, "end": 5, "original": "has", "replacement": "have"}]
    assert value["origin"]["adapter"] == "mine" and value["feature"] == "proofread"


def test_points_replies_priorities_and_data(pomona: Callable[..., Any], answers: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("sale today\n\nsmoke!\n")
    answers('{"points":["one point","two points"]}')
    assert pomona("write", "key-points", str(file)).out == "- one point\n- two points\n"
    answers('{"questions":["Do you come?"],"replies":["Yes.","No.","Perhaps."]}')
    assert pomona("write", "reply", str(file)).out == "? Do you come?\n- Yes.\n- No.\n- Perhaps.\n"
    answers(lambda p: "urgent" if "smoke" in p else "not urgent")
    assert pomona("write", "prioritize", str(file)).out == "urgent      smoke!\nnot urgent  sale today\n"
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"thing": {"type": "string"}}}))
    answers('{"thing":"smoke"}')
    assert json.loads(pomona("write", "extract", str(file), "--schema", str(schema)).out) == {
        "thing": "smoke"
    }
    answers('{"contacts":[],"events":[]}')
    assert pomona("write", "extract", str(file), "--json").json["value"] == {"contacts": [], "events": []}


def test_the_diff_shows_what_goes_and_what_comes() -> None:
    text = "I has the old old book."
    shown = command.word_diff(text, text_edits(text, "I have the old book."))
    red, green, off = command.RED, command.GREEN, command.OFF
    assert shown == f"I {red}has{off}{green}have{off} the{red} old{off} old book."


def test_colours_are_for_terminals(
    pomona: Callable[..., Any], answers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("I has it.")
    answers(lambda p: content(p).replace("has", "have"))
    assert pomona("write", "proofread", str(tmp_path / "a.txt")).out == "I have it.\n"
    monkeypatch.setattr(command, "has_colour", lambda stream: True)
    assert command.GREEN in pomona("write", "proofread", str(tmp_path / "a.txt")).out
    assert "\x1b[" in pomona("write", "rewrite", str(tmp_path / "a.txt"), "--tone", "concise").out


def test_an_answer_that_was_no_correction_is_told(
    pomona: Callable[..., Any], answers: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("I has it.")
    answers(("on and on",))
    done = pomona("write", "proofread", str(tmp_path / "a.txt"))
    assert done.out == "I has it.\n" and "1 of 1 pieces were left" in done.err
    assert "cut off" in pomona("write", "rewrite", str(tmp_path / "a.txt")).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("summarize", "FILE", "--tone", "friendly"), "--tone: is an option of rewrite"),
        (("proofread", "FILE", "--style", "one line"), "--style: is an option of summarize"),
        (("proofread", "FILE", "--schema", "x.json"), "--schema: is an option of extract"),
        (("rewrite", "FILE", "--tone", "rude"), "style = rude: must be one of friendly"),
        (("summarize", "NONE"), "cannot be read"),
        (("summarize", "EMPTY"), "is empty; give a text"),
        (("translate", "FILE"), "translate"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    pomona: Callable[..., Any], answers: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    answers("x")
    for name, text in (("FILE", "Hello."), ("EMPTY", " \n")):
        (tmp_path / name).write_text(text)
    given = [str(tmp_path / one) if one in ("FILE", "NONE", "EMPTY") else one for one in arguments]
    done = pomona("write", *given)
    assert done.code == 2 and message in done.err
