"""`pomona align prompts`, `mdloo` and `itec`: files, reports, refusals, and the recipes that they read."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pomona.posttraining.itec import ItecOptions
from pomona.posttraining.mdloo_options import MdlooOptions
from pomona.posttraining.options import read_recipe
from pomona.posttraining.prompts import read_prompts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "adapters"))
from adapt_samples import tiny_model

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "post"
SMALL = ("--prompts", "2", "--samples", "2", "--max-new-tokens", "6", "--rank", "2", "--threads", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}"}], "verify": [{"check": "no_comma"}]}
        for n in range(6)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_are_written_and_compared_where_ifeval_is_at_hand(
    pomona: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POMONA_DATA", raising=False)
    out = tmp_path / "out.jsonl"
    done = pomona("align", "prompts", str(out), "--rows", "30", "--conditions", "1", "--kind", "no_comma")
    assert done.code == 0 and "were not compared" in done.err
    found = read_prompts(out, verifiable=True)
    assert len(found) == 30 and all(prompt.verify == ({"check": "no_comma"},) for prompt in found)
    assert pomona("align", "prompts", str(out)).code == 2
    (tmp_path / "data" / "ifeval").mkdir(parents=True)
    taken = found[0].messages[0]["content"]
    (tmp_path / "data" / "ifeval" / "input_data.jsonl").write_text(json.dumps({"prompt": taken}) + "\n")
    done = pomona(
        "align", "prompts", str(out), "--rows", "30", "--conditions", "1", "--kind", "no_comma",
        "--data", str(tmp_path / "data"), "--overwrite", "--json",
    )  # fmt: skip
    assert done.json["compared_with_ifeval"] is True
    assert taken not in {prompt.messages[0]["content"] for prompt in read_prompts(out)}


def test_mdloo_trains_and_reports(
    pomona: Callable[..., Any], base: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapters" / "polite"
    command = ("align", "mdloo", str(base), str(prompts), "--out", str(out), "--work", str(tmp_path / "work"))
    done = pomona(*command, *SMALL, "--iterations", "2", "--inner-steps", "1", "--json")
    assert done.code == 0, done.err
    assert len(done.json["iterations"]) == 2 and done.json["name"] == "polite"
    assert "iteration 2, reward" in done.err and (out / "adapter_model.safetensors").is_file()
    assert pomona(*command, *SMALL).code == 2  # it is there
    done = pomona(*command, *SMALL, "--overwrite", "--method", "rloo", "--iterations", "1")
    assert done.code == 0 and "written" in done.out
    assert json.loads((out / "pomona.json").read_text())["recipe"]["method"] == "rloo"


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--reward", "kindness"), "reward"),
        (("--reward", "model:nowhere"), "reward model"),
        (("--resume",), "no run to resume"),
        (("--resume", "--restart"), "give one"),
        (("--method", "rs", "--samples", "1"), "samples"),
    ],
)
def test_what_makes_no_sense_is_refused(
    pomona: Callable[..., Any], base: Path, prompts: Path, tmp_path: Path, more: tuple[str, ...], part: str
) -> None:
    done = pomona(
        "align", "mdloo", str(base), str(prompts), "--out", str(tmp_path / "a"),
        "--work", str(tmp_path / "w"),
        "--threads", "1", *more,
    )  # fmt: skip
    assert done.code == 2 and part in done.err


def test_prompts_without_checks_need_another_reward(
    pomona: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    done = pomona("align", "mdloo", str(base), str(path), "--out", str(tmp_path / "a"))
    assert done.code == 2 and "verify" in done.err


def test_itec_runs_a_round_and_says_who_sits_in_the_committee(
    pomona: Callable[..., Any], base: Path, prompts: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "technique: itec\n"
        "options: {max_new_tokens: 6, mdloo: {iterations: 1, prompts: 1, samples: 2, rank: 2}}\n"
    )
    command = (
        "align", "itec", str(base), str(prompts), "--work", str(tmp_path / "work"), "--held-out", "2",
        "--technique", "mdloo", "--recipe", str(recipe), "--threads", "1",
    )  # fmt: skip
    done = pomona(*command)
    assert done.code == 0, done.err
    assert "mdloo-1" in done.out and "report.html" in done.out and "round 1, sample" in done.err
    done = pomona(*command, "--wait", "--json")
    assert done.code == 0 and done.json["waits_for_preferences"].endswith("to_judge.jsonl")
    assert pomona(*command, "--member", "nonsense").code == 2


@pytest.mark.parametrize(
    "name", ["mdloo-laptop", "mdloo-report", "rloo-laptop", "itec-laptop", "itec-report"]
)
def test_recipes_can_be_read_and_say_something(name: str) -> None:
    kinds: dict[str, Any] = {"mdloo": MdlooOptions, "itec": ItecOptions}
    path = RECIPES / f"{name}.yaml"
    technique = path.read_text().split("\n", 1)[0].removeprefix("technique: ")
    assert read_recipe(path, technique, kinds[technique]) != kinds[technique]()
