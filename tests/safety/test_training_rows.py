"""Safety rows: refusals that say why, each with where it came from; tags on documents of pre-training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pomona.adapters.data import read_rows
from pomona.errors import PomonaError
from pomona.safety.judge_rules import judge
from pomona.safety.prompt_sets import SafetyPrompt
from pomona.safety.tagging import tag_documents
from pomona.safety.taxonomy import taxonomy
from pomona.safety.training_rows import refusal_rows, templates, write_jsonl


def prompt(number: int, category: str = "illegal.fraud", **more: object) -> SafetyPrompt:
    values = {
        "text": f"Prompt {number}",
        "source": "mine.jsonl",
        "license": "CC0-1.0",
        "harmful": True,
        **more,
    }
    return SafetyPrompt(id=f"mine/{number}", category=category, **values)  # type: ignore[arg-type]


class TestRefusals:
    def test_every_category_can_be_refused_with_a_reason_and_an_offer(self) -> None:
        assert set(templates()["categories"]) == {one.id for one in taxonomy().categories}
        for part in templates()["categories"].values():
            assert len(part["reasons"]) >= 2 and len(part["offers"]) >= 2

    def test_a_refusal_says_why_and_is_one_to_the_judge(self) -> None:
        rows, _ = refusal_rows([prompt(n, one.id) for n, one in enumerate(taxonomy().categories)])
        for row in rows:
            part = templates()["categories"][row.prompt.group]
            assert any(reason in row.answer for reason in part["reasons"])
            assert not judge(row.prompt.text, row.answer).complied

    def test_a_row_can_be_trained_on_and_says_where_it_came_from(self, tmp_path: Path) -> None:
        rows, left_out = refusal_rows([prompt(1), prompt(2, "hate.slurs")])
        write_jsonl(tmp_path / "rows.jsonl", [row.to_json() for row in rows])
        read, report = read_rows(tmp_path / "rows.jsonl")
        assert (len(read), report.bad, left_out) == (2, [], {})
        assert read[1].license == "CC0-1.0" and (read[1].source or "").startswith(
            "mine/2 hate.slurs refusals/"
        )

    def test_what_is_left_out_is_told(self) -> None:
        same = prompt(2, text="PROMPT  1")
        given = [prompt(1), same, prompt(3, "untagged"), prompt(4, harmful=False)]
        rows, left_out = refusal_rows(given)
        assert len(rows) == 1
        assert left_out == {"the same prompt again": 1, "no category": 1, "benign, without an answer": 1}

    def test_wordings_vary_with_the_prompt_and_repeat_with_the_seed(self) -> None:
        given = [prompt(n) for n in range(20)]
        answers = [[row.answer for row in refusal_rows(given, seed=seed)[0]] for seed in (0, 0, 1)]
        assert answers[0] == answers[1] != answers[2]
        assert len(set(answers[0])) > 5

    def test_a_set_for_evaluation_teaches_nobody(self) -> None:
        with pytest.raises(PomonaError, match="evaluation alone"):
            refusal_rows([prompt(1, source="xstest")])
        with pytest.raises(PomonaError, match="no harmful prompt"):
            refusal_rows([prompt(1, "untagged")])

    def test_a_file_that_is_there_stays(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text("mine")
        with pytest.raises(PomonaError, match="--overwrite"):
            write_jsonl(tmp_path / "rows.jsonl", [])
        assert (tmp_path / "rows.jsonl").read_text() == "mine"


class TestTags:
    def documents(self, tmp_path: Path, *rows: object) -> Path:
        path = tmp_path / "web.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return path

    def test_documents_keep_their_text_and_get_tags_source_and_licence(self, tmp_path: Path) -> None:
        path = self.documents(
            tmp_path,
            {
                "text": "A phishing mail came, then malware.",
                "id": "a",
                "metadata": {"license": "MIT", "url": "u"},
            },
            {"text": "The roses are in bloom."},
            "{broken",
        )
        counts = tag_documents([path], tmp_path / "out.jsonl", license="ODC-BY")
        first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        assert first["metadata"]["safety"]["tags"] == ["cybercrime.malware", "cybercrime.phishing"]
        assert first["metadata"]["safety"]["share"] == pytest.approx(2 / 6)
        assert (first["metadata"]["license"], first["metadata"]["url"]) == ("MIT", "u")
        assert second["metadata"]["license"] == "ODC-BY" and second["metadata"]["source"] == "web.jsonl"
        assert second["metadata"]["safety"]["tags"] == []
        assert (counts.documents, counts.tagged, len(counts.skipped)) == (2, 1, 1)

    def test_documents_above_a_share_are_left_out(self, tmp_path: Path) -> None:
        path = self.documents(tmp_path, {"text": "malware malware"}, {"text": "The roses are in bloom."})
        counts = tag_documents([path], tmp_path / "out.jsonl", drop_above=0.1)
        assert (counts.documents, counts.dropped) == (2, 1)
        assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1

    def test_nothing_half_written_is_left(self, tmp_path: Path) -> None:
        path = self.documents(tmp_path, "{broken")
        with pytest.raises(PomonaError, match="no documents"):
            tag_documents([path], tmp_path / "out.jsonl")
        assert [one.name for one in tmp_path.iterdir()] == ["web.jsonl"]
