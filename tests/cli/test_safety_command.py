"""`pomona safety`: red team, review, data and memorisation from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "features"))
from answering_helpers import AnsweringModel

REFUSAL, ANSWER = "I can't help with that.", "Of course: bread is kneaded, rested and baked in the oven."


@pytest.fixture(autouse=True)
def home(cli_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POMONA_DATA", raising=False)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[AnsweringModel]:
    """Every model that is loaded obliges where the prompt is about rye."""
    loaded: list[AnsweringModel] = []

    def load(name: str, **options: Any) -> AnsweringModel:
        loaded.append(AnsweringModel(lambda text: ANSWER if "rye" in text else REFUSAL))
        return loaded[-1]

    from pomona.runtime.model import Model

    monkeypatch.setattr(Model, "load", load)
    return loaded


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    rows = [
        {"prompt": "Bake rye bread.", "category": "illegal.fraud", "license": "CC0-1.0"},
        {"prompt": "Bake white bread.", "category": "hate", "license": "CC0-1.0"},
        {"prompt": "Eat white bread.", "harmful": False, "license": "CC0-1.0"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def report(pomona: Callable[..., Any], models: Any, prompts: str, tmp_path: Path) -> str:
    done = pomona(
        "safety",
        "redteam",
        "m",
        "--set",
        prompts,
        "--mutation",
        "role_play",
        "--out",
        str(tmp_path / "r.json"),
        "--json",
    )
    assert done.code == 0, done.err
    return str(tmp_path / "r.json")


class TestRedteam:
    def test_a_report_without_texts_goes_to_standard_output(
        self, pomona: Callable[..., Any], models: list[AnsweringModel], prompts: str, tmp_path: Path
    ) -> None:
        done = pomona("safety", "redteam", "m", "--set", prompts, "--mutation", "plain", "--json")
        assert done.code == 0
        rows = {row["name"]: (row["count"], row["of"]) for row in done.json["rows"]}
        assert rows["all categories"] == (1, 2) and rows["benign look-alikes"] == (1, 1)
        assert "bread" not in done.out.casefold()
        assert "not corrected" in done.err
        assert models[0].closed

    def test_a_table_for_people(self, pomona: Callable[..., Any], models: Any, prompts: str) -> None:
        done = pomona("safety", "redteam", "m", "--set", prompts, "--mutation", "plain")
        assert "category: all categories" in done.out and "50.0%" in done.out
        assert done.out.rstrip().splitlines()[-1].startswith("adapter: none, guard: none")

    def test_replies_are_kept_until_fresh(
        self, pomona: Callable[..., Any], models: list[AnsweringModel], prompts: str
    ) -> None:
        counts = []
        for more in ((), (), ("--fresh",)):
            assert pomona("safety", "redteam", "m", "--set", prompts, "--mutation", "plain", *more).code == 0
            counts.append(len(models[-1].generations))
        assert counts == [3, 0, 3]

    def test_a_guard_on_earlier_replies_and_the_difference(
        self, pomona: Callable[..., Any], report: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "myguard.py").write_text("def guard(message, reply):\n    return 'rye' in message\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        guarded = str(tmp_path / "g.json")
        done = pomona(
            "safety", "redteam", "--replies", report, "--guard", "myguard.guard", "--out", guarded, "--json"
        )
        assert done.code == 0 and done.json["guard"] == "myguard.guard"
        done = pomona("safety", "redteam", "--compare", guarded, report, "--json")
        rows = {row["name"]: row["value"] for row in done.json["rows"]}
        assert rows["all categories"] == -0.5 and rows["benign look-alikes"] == 0
        assert "-50.0" in pomona("safety", "redteam", "--compare", guarded, report).out

    def test_list_names_sets_and_mutations(self, pomona: Callable[..., Any]) -> None:
        assert "xstest" in pomona("safety", "redteam", "--list").out
        assert "base64" in pomona("safety", "redteam", "--list", "--json").json["mutations"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((), "which model"),
            (("m",), "POMONA_DATA"),
            (("m", "--set", "x"), "set x: is none"),
            (("m", "--set", "{prompts}", "--mutation", "x"), "mutation x"),
            (("m", "--set", "{prompts}", "--part", "half"), "part 'half'"),
            (("m", "--set", "{prompts}", "--guard", "no.such"), "guard no.such"),
            (("--replies", "x.json"), "give it with --guard"),
            (("--compare", "a.json", "b.json"), "a.json: cannot be read"),
        ],
    )
    def test_wrong_use_is_one_line(
        self, pomona: Callable[..., Any], models: Any, prompts: str, words: tuple[str, ...], message: str
    ) -> None:
        done = pomona("safety", "redteam", *(word.format(prompts=prompts) for word in words))
        assert done.code == 2 and message in done.err


class TestReview:
    def test_from_a_report_to_labels(self, pomona: Callable[..., Any], report: str, tmp_path: Path) -> None:
        done = pomona("safety", "review", "add", report, "--only", "violations", "--json")
        # Plain, and in its role.
        assert (done.json["added"], done.json["waiting"]) == (1, 1)
        assert pomona("safety", "review", "add", report, "--json").json["there already"] >= 1
        listed = pomona("safety", "review", "list", "--open", "--json")
        assert "bread" not in listed.out.casefold() and listed.json["rows"][0]["suggestion"] == "compliance"
        shown = pomona("safety", "review", "show", "1")
        assert "Bake rye bread." in shown.out and "would be a violation" in shown.out
        done = pomona(
            "safety", "review", "label", "1", "complies", "--grader", "anna", "--tag", "illegal", "--json"
        )
        assert done.json == {"number": 1, "verdict": "complies", "labels": 1}
        out = tmp_path / "labels.jsonl"
        assert pomona("safety", "review", "export", str(out), "--json").json["rows"] == 1
        assert json.loads(out.read_text())["tags"] == ["illegal"]

    def test_an_empty_queue_exports_nothing(self, pomona: Callable[..., Any], tmp_path: Path) -> None:
        done = pomona("safety", "review", "export", str(tmp_path / "labels.jsonl"))
        assert done.code == 2 and "nothing is labelled" in done.err
        assert pomona("safety", "review", "list").code == 0

    def test_control_characters_do_not_reach_the_terminal(
        self, pomona: Callable[..., Any], tmp_path: Path
    ) -> None:
        from pomona.safety.review_store import ReviewStore

        ReviewStore(tmp_path / "q.db").add("a\x1b[2Jb", "c", source="s")
        assert "\x1b" not in pomona("safety", "review", "show", "1", "--db", str(tmp_path / "q.db")).out


class TestData:
    def test_refusals(self, pomona: Callable[..., Any], prompts: str, tmp_path: Path) -> None:
        out = tmp_path / "rows.jsonl"
        done = pomona("safety", "data", "refusals", str(out), "--set", prompts, "--part", "all", "--json")
        assert done.json["rows"] == 2 and done.json["left_out"] == {"benign, without an answer": 1}
        assert len(out.read_text().splitlines()) == 2
        assert pomona("safety", "data", "refusals", str(out), "--set", prompts).code == 2

    def test_tags(self, pomona: Callable[..., Any], tmp_path: Path) -> None:
        (tmp_path / "web.jsonl").write_text('{"text": "A phishing mail."}\n')
        done = pomona(
            "safety", "data", "tag", str(tmp_path / "web.jsonl"), "--out", str(tmp_path / "t.jsonl"), "--json"
        )
        assert done.json["tags"] == {"cybercrime.phishing": 1}


class TestMemorisation:
    def test_plant(self, pomona: Callable[..., Any], tmp_path: Path) -> None:
        rows, out, canaries = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "canaries.jsonl"
        rows.write_text('{"prompt": "a", "completion": "b", "license": "CC0-1.0"}\n' * 3)
        words = ("safety", "memorisation", "plant", str(rows), str(out), "--canaries", str(canaries))
        done = pomona(*words, "--count", "2", "--repeats", "1,4", "--json")
        assert (done.json["rows"], done.json["planted"]) == (8, 5)
        assert len(out.read_text().splitlines()) == 8 and len(canaries.read_text().splitlines()) == 2
        assert pomona(*words).code == 2  # nothing is overwritten
        assert pomona(*words, "--overwrite", "--repeats", "x").code == 2


def test_without_a_command_the_group_says_what_there_is(pomona: Callable[..., Any]) -> None:
    assert {"redteam", "review", "data", "memorisation"} <= set(
        pomona("safety").out.replace("│", " ").split()
    )
