"""Constraint files: patterns resolved, the last word counts, everything that cannot be meant is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pomona.compression.constraints import read_constraints
from pomona.errors import PomonaError

MODULES = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_patterns_fit_modules_and_the_last_one_counts(tmp_path: Path) -> None:
    pins = {"*.down_proj": 4, "model.layers.1.*": 8}
    found = read_constraints(write(tmp_path / "c.json", {"version": 1, "pins": pins}), MODULES)
    assert found == {"model.layers.0.mlp.down_proj": 4, "model.layers.1.mlp.down_proj": 8}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pins": {}}, "version"),
        ({"version": 2, "pins": {}}, "version"),
        ({"version": 1, "pins": {}, "more": 1}, "nothing else"),
        ({"version": 1, "pins": []}, "nothing else"),
        ({"version": 1, "pins": {"*.q_proj": 4}}, "fits no module"),
        ({"version": 1, "pins": {"*": 5}}, "5 bits; choose from 8, 4, 3, 2"),
        ({"version": 1, "pins": {"*": True}}, "True bits"),
        ({"version": 1, "pins": {"*": "4"}}, "'4' bits"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(PomonaError, match=message):
        read_constraints(write(tmp_path / "c.json", content), MODULES)


def test_yaml_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("version: 1\npins:\n  '*.down_proj': 4\n  model.layers.1.*: 8\n")
    assert read_constraints(path, MODULES) == {
        "model.layers.0.mlp.down_proj": 4,
        "model.layers.1.mlp.down_proj": 8,
    }


@pytest.mark.parametrize(
    "content", ["", "- 1\n", "a: [", "version: 1\npins:\n  4: 4\n", "!!python/object:x {}"]
)
def test_yaml_that_says_nothing_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.yml"
    path.write_text(content)
    with pytest.raises(PomonaError, match=r"c\.yml") as caught:
        read_constraints(path, MODULES)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match=r"none\.json"):
        read_constraints(tmp_path / "none.json", MODULES)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(PomonaError, match=r"broken\.json"):
        read_constraints(tmp_path / "broken.json", MODULES)
