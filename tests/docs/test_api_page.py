"""docs/api.md tells the truth: its examples run, and its tables name what there is."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pomona
from pomona.runtime import reply as replies
from pomona.runtime.backend import LanguageModel
from pomona.runtime.model import Model
from pomona.runtime.remote import RemoteModel
from pomona.runtime.turn import TurnOptions

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = [block.split("```")[0] for block in PAGE.split("```python\n")[1:]]


@pytest.fixture
def server() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "tests" / "runtime"))
    from openai_server import completion, serving

    with serving() as server:
        server.will(completion("Apples in the cellar"))
        yield server


def test_the_ten_examples_run(
    smollm2_4bit_dir: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """They go on from each other; the server of the last one is a local one that answers by rote."""
    assert len(EXAMPLES) == 10
    names: dict[str, Any] = {"__name__": "docs.api"}
    printed = []
    for number, example in enumerate(EXAMPLES, 1):
        source = example.replace("http://127.0.0.1:8000/v1", server.url)
        exec(compile(source, f"docs/api.md, example {number}", "exec", dont_inherit=True), names)
        printed.append(capsys.readouterr().out)
    assert [number for number, out in enumerate(printed, 1) if not out] == [6], "all but one print"
    assert re.search(r"(bug|wish) title=", printed[2])
    assert printed[3].splitlines()[0] in ("spam", "work", "private")
    assert printed[4].startswith("get_weather {'city': '")
    assert printed[6].startswith("2 turns; Answer in one short sentence.")
    assert "the context holds 8,192" in printed[7]
    assert printed[9].endswith("Apples in the cellar\n")
    names["model"].close()


def test_the_tables_name_every_option() -> None:
    named = set(re.findall(r"`\"?(\w+)\"?", PAGE)) | set(re.findall(r"(\w+)=", PAGE))
    wanted = set(TurnOptions.__annotations__) | {"schema"}
    for function in (LanguageModel.session, RemoteModel.__init__, Model.load):
        wanted |= set(inspect.signature(function).parameters) - {"self", "cls", "name", "model", "base_url"}
    for kind in (replies.Reply, replies.Usage, replies.ToolUse):
        wanted |= {field.name for field in dataclasses.fields(kind)}
    assert wanted - named == set()


def test_its_public_names_exist() -> None:
    for name in re.findall(r"from pomona import ([\w, ]+)", PAGE):
        for one in name.split(", "):
            assert one in pomona.__all__
    for name in ("ContextOverflowError", "AnswerError", "ToolError"):
        assert name in PAGE and issubclass(getattr(replies, name), pomona.PomonaError)
