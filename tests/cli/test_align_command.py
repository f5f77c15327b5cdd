"""`pomona align`: what the commands pass on, print and refuse. Training itself is tested in posttraining/."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pomona.cli.align import COMMANDS
from tests.adapters.adapt_samples import chat, colours, tiny_model, write_rows

TINY = ("--threads", "1", "--rank", "4", "--batch", "8", "--steps", "2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("align") / "model")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no", "level": "better"} for i in range(12)]
    return write_rows(tmp_path / "pairs.jsonl", rows)


def test_the_group_lists_its_commands(pomona: Callable[..., Any]) -> None:
    done = pomona("align")
    assert done.code == 0
    names = {module.__name__.rpartition("align_")[2] for module in COMMANDS}
    assert {"sft", "reward", "dpo", "ipo", "mixture", "synth"} <= names
    assert all(name in done.out for name in names)


def test_sft_then_dpo_from_its_adapter(
    pomona: Callable[..., Any], base: Path, pairs: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "chats.jsonl", colours(4))
    work = ("--work", str(tmp_path / "work"))
    done = pomona(
        "align", "sft", str(base), str(data), "--out", str(tmp_path / "sft"), *TINY, *work, "--json"
    )
    assert done.code == 0, done.err
    assert done.json["run"]["steps"] == 2 and done.json["data"]["good"] == 12
    assert "rows that can be used" in done.err
    places = (str(base), str(pairs), "--out", str(tmp_path / "dpo"), "--start", str(tmp_path / "sft"))
    done = pomona("align", "dpo", *places, "--validation", "0.25", *TINY, *work)
    assert done.code == 0, done.err
    assert "held-out pairs  accuracy" in done.out
    recipe = json.loads((tmp_path / "dpo" / "pomona.json").read_text())["recipe"]
    assert (recipe["start"], recipe["rank"], recipe["max_steps"]) == ("sft", 4, 2)
    again = pomona("align", "ipo", str(base), str(pairs), "--out", str(tmp_path / "dpo"), *TINY, *work)
    assert again.code == 2 and "is there already" in again.err


def test_reward_trains_judges_and_draws_the_best_of_n_curve(
    pomona: Callable[..., Any], base: Path, pairs: Path, tmp_path: Path
) -> None:
    model = tmp_path / "reward"
    done = pomona(
        "align", "reward", str(base), str(pairs), "--out", str(model), "--validation", "0.25",
        "--work", str(tmp_path / "work"), *TINY,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "all pairs" in done.out and "calibration error" in done.out
    done = pomona("align", "reward", str(model), str(pairs), "--evaluate", "--threads", "1", "--json")
    assert done.code == 0 and done.json["pairs"] == 12 and "better" in done.json["by_level"]
    rows = write_rows(
        tmp_path / "r.jsonl", [{"prompt": "q", "responses": ["yes", "no", ""], "gold": [1, 0, 0]}]
    )
    done = pomona("align", "reward", str(model), str(rows), "--best-of", "--threads", "1", "--json")
    assert [point["n"] for point in done.json["points"]] == [1, 2, 3]
    assert done.json["points"][0]["gold"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("reward", "BASE", "PAIRS"), "--out: say where"),
        (("reward", "BASE", "nothing.jsonl", "--out", "x"), "nothing.jsonl: cannot be read"),
        (("reward", "BASE", "BAD", "--out", "x"), "1 of 2 rows cannot be used (line 2"),
        (("dpo", "BASE", "PAIRS", "--out", "x", "--resume", "--restart"), "give one"),
        (("sft", "BASE", "PAIRS", "--out", "x", "--recipe", "BAD"), "no readable YAML"),
        (("sft", "BASE", "PAIRS", "--out", "x", "--threads", "1"), "12 of 12 rows cannot be trained on"),
        (("mixture", "BASE", "none.yaml", "--benchmark", "PAIRS", "--out", "y"), "no readable YAML"),
        (("synth", "code", "--out", "x", "--writer", "missing"), "missing: "),
    ],
)
def test_what_is_the_users_to_mend_is_one_line_and_exit_2(
    pomona: Callable[..., Any], base: Path, pairs: Path, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}, "[]"])
    places = {"BASE": str(base), "PAIRS": str(pairs), "BAD": str(bad)}
    done = pomona("align", *(places.get(word, word) for word in words))
    assert done.code == 2, done.err
    assert says in done.err.splitlines()[-1]
    assert not Path("x").exists()


def test_mixture_writes_a_file_that_sft_reads(pomona: Callable[..., Any], base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", colours(3))
    write_rows(tmp_path / "b.jsonl", [chat(f"x{i}", "zzz") for i in range(9)])
    held = write_rows(tmp_path / "c.jsonl", colours(5)[-6:])
    (tmp_path / "m.yaml").write_text(
        "components:\n- {name: a, file: a.jsonl}\n- {name: b, file: b.jsonl, weight: 0}\n"
    )
    (tmp_path / "r.yaml").write_text(
        "technique: mixture\noptions: {rounds: 1, drop_below: 0, rows: 16, "
        "sft: {rank: 2, lr: 0.01, max_steps: 2, batch: 8, precision: float32, validation: 0}}"
    )
    done = pomona(
        "align", "mixture", str(base), str(tmp_path / "m.yaml"), "--benchmark", str(held), "--out",
        str(tmp_path / "n.yaml"), "--recipe", str(tmp_path / "r.yaml"), "--work", str(tmp_path / "w"),
        "--threads", "1", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert [trial["what"] for trial in done.json["trials"]] == ["start", "round 1"]
    assert done.json["trials"][0]["score"] == done.json["trials"][1]["score"]  # made once
    from pomona.posttraining.mixture import read_sft_data

    rows, _ = read_sft_data(tmp_path / "n.yaml", seed=0)
    assert len(rows) == 9
