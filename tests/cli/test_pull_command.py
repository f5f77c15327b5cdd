"""`pomona pull`: hands its options to the store and says where the model is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pomona.errors import PomonaError
from pomona.models import store

Command = Callable[..., Any]


@pytest.fixture
def pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What store.pull was asked; it gives a directory of 1,500 bytes."""
    calls: list[tuple[str, dict[str, Any]]] = []
    target = tmp_path / "smol"
    target.mkdir()
    (target / "model.safetensors").write_bytes(bytes(1500))

    def pull(source: str, *, progress: Callable[[str, int, int], None], **options: Any) -> Path:
        if source == "nonsense":
            raise PomonaError("nonsense: is no model; check the spelling")
        progress("download", 1, 2)
        calls.append((source, options))
        return target

    monkeypatch.setattr(store, "pull", pull)
    return calls


def test_it_says_where_the_model_is_and_how_large(pomona: Command, pulled: list[Any], tmp_path: Path) -> None:
    outcome = pomona("pull", "smollm2-135m")
    assert outcome.code == 0
    assert outcome.out == f"smol: 1.5 kB in {tmp_path / 'smol'}\nTry: pomona run smol\n"
    assert outcome.err == "download ...\n"
    assert pulled == [("smollm2-135m", {"name": None, "overwrite": False})]


def test_name_and_overwrite_reach_the_store(pomona: Command, pulled: list[Any]) -> None:
    assert pomona("pull", "x.gguf", "--name", "mine", "--overwrite").code == 0
    assert pulled == [("x.gguf", {"name": "mine", "overwrite": True})]


def test_json(pomona: Command, pulled: list[Any], tmp_path: Path) -> None:
    assert pomona("pull", "x", "--json").json == {
        "name": "smol",
        "directory": str(tmp_path / "smol"),
        "bytes": 1500,
    }


def test_an_unknown_source_is_one_line(pomona: Command, pulled: list[Any]) -> None:
    outcome = pomona("pull", "nonsense", "--json")
    assert outcome.code == 2
    assert outcome.json["error"] == "nonsense: is no model; check the spelling"
    assert pulled == []
