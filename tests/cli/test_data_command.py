"""`pomona data`: from a recipe to packed tokens by commands alone; reports for people and as JSON."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from pipeline_samples import prose, write_rows

Pomona = Callable[..., Any]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workshop")
    rng = random.Random(1)
    write_rows(root / "in.jsonl", [*(prose(rng) for _ in range(40)), "short"])
    write_rows(root / "bad.jsonl", ["buy now " * 20 + str(i) for i in range(40)])
    (root / "r.yaml").write_text(
        "name: test\ninputs:\n  - {name: texts, path: in.jsonl, kind: jsonl}\n"
        "steps:\n  - length: {min_characters: 30}\n  - pii\n"
    )
    return root


def test_the_whole_way_by_commands(pomona: Pomona, workshop: Path) -> None:
    out = workshop / "run"
    done = pomona("data", "run", str(workshop / "r.yaml"), "--out", str(out))
    assert done.code == 0 and "01-length removed: too_short 1" in done.out and "stage 00-to-02" in done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert ["01-length", "41", "40", "97.6%"] in [row[:4] for row in rows]

    done = pomona(
        "data", "tokenizer", str(out / "documents"), "--out", str(workshop / "tok"), "--vocab", "400"
    )
    assert done.code == 0 and "400" in done.out
    done = pomona(
        "data",
        "pack",
        str(out / "documents"),
        "--out",
        str(workshop / "p"),
        "--tokenizer",
        str(workshop / "tok"),
        "--json",
    )
    assert done.code == 0 and done.json["documents"] == 40 and done.json["dtype"] == "uint16"
    tokens = done.json["tokens"]
    done = pomona("data", "verify", str(workshop / "p"))
    assert done.code == 0 and f"{tokens:,} tokens of 40 documents, all as written" in done.out


def test_a_report_also_as_json_and_as_a_page(pomona: Pomona, workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = pomona("data", "run", str(workshop / "r.yaml"), "--out", str(out), "--workers", "1", "--json")
    assert made.code == 0 and made.json["rows"][1]["removed"] == {"too_short": 1}
    page = tmp_path / "page.html"
    done = pomona("data", "report", str(out), "--html", str(page), "--json")
    assert done.code == 0 and done.json["rows"] == made.json["rows"] and done.json["complete"] is True
    assert "01-length" in page.read_text(encoding="utf-8")
    assert "01-length" in pomona("data", "report", str(out)).out


def test_a_classifier_is_trained_and_used(pomona: Pomona, workshop: Path, tmp_path: Path) -> None:
    words = ("--good", str(workshop / "in.jsonl"), "--bad", str(workshop / "bad.jsonl"))
    done = pomona("data", "classifier", *words, "--out", str(tmp_path / "quality"), "--json")
    assert done.code == 0 and done.json["good"] == 41 and done.json["bad"] == 40
    write_rows(tmp_path / "in.jsonl", [prose(random.Random(9)), "buy now " * 30])
    (tmp_path / "r.yaml").write_text(
        "name: t\ninputs: [{name: a, path: in.jsonl, kind: jsonl}]\nsteps: [{classifier: {model: quality}}]\n"
    )
    done = pomona("data", "run", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run"), "--json")
    assert done.json["rows"][1]["removed"] == {"score_low": 1}


def test_what_was_skipped_is_told(pomona: Pomona, workshop: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((workshop / "in.jsonl").read_bytes() + b'{"text": "\xff"}\n' * 7)
    done = pomona("data", "tokenizer", str(path), "--out", str(tmp_path / "t"), "--vocab", "400")
    assert done.code == 0 and done.err.count("is not UTF-8") == 5 and "and 2 more were skipped" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "none.yaml", "--out", "OUT"), "cannot be read"),
        (("run", "RECIPE", "--out", "OUT", "--executor", "slurm"), "says nothing about Slurm"),
        (("run", "RECIPE", "--out", "OUT", "--executor", "mars"), "--executor"),
        (("report", "OUT"), "no recipe was run there"),
        (("pack", "none", "--out", "OUT", "--tokenizer", "OUT"), "there is no such file or folder"),
        (("tokenizer", "RECIPE", "--out", "OUT"), "is of no kind"),
        (("tokenizer", "IN", "--out", "OUT", "--max-size", "much"), "is no size"),
        (("verify", "OUT"), "holds no packed tokens"),
        (("fly",), "fly"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    pomona: Pomona, workshop: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    places = {"OUT": tmp_path / "o", "RECIPE": workshop / "r.yaml", "IN": workshop / "in.jsonl"}
    done = pomona("data", *(str(places.get(one, one)) for one in arguments))
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) <= 2
    assert not (tmp_path / "o").exists()
    assert json.dumps(done.out) == '""'
