"""`pomona recipe`: rows in a file, a report for people and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "features"))
from answering_helpers import AnsweringModel


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POMONA_DATA", raising=False)


def test_rows_are_written_and_reported(pomona: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    done = pomona("recipe", "summarize", "--out", str(out), "--rows", "12", "--seed", "3")
    assert done.code == 0 and done.out.splitlines()[0] == f"12 rows in {out}"
    assert "only pomona's own invented texts" in done.err
    lines = out.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12 and json.loads(lines[0])["source"] == "pomona"
    again = tmp_path / "again.jsonl"
    done = pomona("recipe", "summarize", "--out", str(again), "--rows", "12", "--seed", "3", "--json")
    assert done.json["rows"] == 12 and done.json["sources"] == {"pomona": 12}
    assert again.read_bytes() == out.read_bytes()


def test_a_file_is_replaced_only_when_asked(pomona: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("precious")
    done = pomona("recipe", "reply", "--out", str(out), "--rows", "2")
    assert done.code == 2 and "--overwrite" in done.err and out.read_text() == "precious"
    assert pomona("recipe", "reply", "--out", str(out), "--rows", "2", "--overwrite").code == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_fewer_rows_than_asked_for_are_told(pomona: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "glaive_toolcall").mkdir()
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    dialogue = {
        "conversations": [
            {"from": "human", "value": "Do it."},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        ],
        "tools": json.dumps([function]),
    }
    file = tmp_path / "glaive_toolcall" / "glaive_toolcall_en_demo.json"
    file.write_text(json.dumps([dialogue]), encoding="utf-8")
    out = tmp_path / "rows.jsonl"
    done = pomona("recipe", "tools", "--out", str(out), "--data", str(tmp_path), "--rows", "9")
    assert done.code == 0 and "no more than 1 different rows" in done.err and "Apache-2.0" in done.out
    [row] = out.read_text(encoding="utf-8").splitlines()
    assert json.loads(row)["messages"][-1]["content"].startswith('<tool_call>[{"name": "f"')


def test_a_server_writes_summaries_of_real_mails(
    pomona: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pomona.runtime.remote as remote

    mail = "Hello Ben, the pump in the cellar is broken again and the water is rising. " * 5 + "Anna"
    (tmp_path / "email_zapier").mkdir()
    (tmp_path / "email_zapier" / "a.txt").write_text(mail)
    (tmp_path / "qmsum").mkdir()
    (tmp_path / "qmsum" / "val.jsonl").write_text("\n")
    asked: list[tuple[str, str]] = []
    model = AnsweringModel(lambda _: "Anna tells Ben that the pump is broken again.")

    def make(url: str, name: str) -> AnsweringModel:
        asked.append((url, name))
        return model

    monkeypatch.setattr(remote, "RemoteModel", make)
    out = tmp_path / "rows.jsonl"
    words = ("--endpoint", "http://127.0.0.1:1/v1", "--writer", "big", "--data", str(tmp_path))
    done = pomona("recipe", "summarize", "--out", str(out), "--rows", "80", *words)
    assert done.code == 0 and asked == [("http://127.0.0.1:1/v1", "big")] and model.closed
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    mine = [row for row in written if row["source"] == "email_zapier"]
    assert len(mine) == 2 and mine[0]["license"] == "MIT; answers by big"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("translate", "--out", "OUT"), "there is none of that name"),
        (("tools", "--out", "OUT"), "POMONA_DATA"),
        (("summarize", "--out", "OUT", "--endpoint", "http://x/v1"), "--writer"),
        (("reply", "--out", "OUT", "--writer", "m"), "for `summarize` alone"),
        (("summarize", "--out", "OUT", "--data", "NONE"), "is no folder"),
        (("summarize", "--out", "NOWHERE"), "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    pomona: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    places = {"OUT": tmp_path / "o.jsonl", "NONE": tmp_path / "none", "NOWHERE": tmp_path / "no" / "o.jsonl"}
    done = pomona("recipe", *(str(places.get(one, one)) for one in arguments))
    assert done.code == 2 and message in done.err
    assert list(tmp_path.iterdir()) == []
