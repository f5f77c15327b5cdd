"""GSM8K with fixed worked examples: prompts, and numbers found as lm-evaluation-harness finds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pomona.evaluation.generation_task import Setting
from pomona.evaluation.gsm8k import GSM8K, SHOTS, flexible, plain, strict

ANSWERS = [
    "She has 3 + 4 = 7 apples.\n#### 7",
    "The total is $1,234.50.",
    "#### 1,000.\nThen 5 more.",
    "-12 degrees, so #### -12",
    "no number at all",
    "It costs $18",
    "3. 4. 5.",
    "#### $5",
    "",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "gsm8k").mkdir()
    for split, count in (("train", 12), ("test", 3)):
        rows = [{"question": f"{split} {n}?", "answer": f"So {n}.\n#### {n}"} for n in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text(text)
    return tmp_path


def test_all_questions_share_the_first_worked_examples(data: Path) -> None:
    questions = GSM8K.questions(Setting(data))
    assert [one.key for one in questions] == ["0", "1", "2"]
    heads = {str(one.prompt).rpartition("Question:")[0] for one in questions}
    [head] = heads
    assert head.count("Question: train") == SHOTS and "train 7?" in head and "train 8?" not in head
    assert str(questions[1].prompt).endswith("Question: test 1?\nAnswer:")


def test_an_answer_is_right_by_its_last_number_or_by_the_marked_one(data: Path) -> None:
    questions = [GSM8K.questions(Setting(data))[2]] * 3
    scores = GSM8K.score(questions, [["It is 2."], ["#### 2\nOr 7?"], ["none"]])
    found = [(one["flexible"][0], one["strict"][0]) for one in scores]
    assert found == [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]


@pytest.mark.parametrize("answer", ANSWERS)
def test_numbers_are_found_as_lm_eval_finds_them(answer: str) -> None:
    """With lm-eval's own filter, by the patterns of its task file."""
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    yaml = pytest.importorskip("yaml")
    import lm_eval

    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    task = yaml.safe_load(path.read_text())
    ours = {"strict-match": strict, "flexible-extract": flexible}
    for one in task["filter_list"]:
        options = {key: value for key, value in one["filter"][0].items() if key != "function"}
        [[theirs]] = extraction.RegexFilter(**options).apply([[answer]], [{}])
        found = ours[one["name"]](answer)
        assert found == ("" if theirs == "[invalid]" else theirs), one["name"]


@pytest.mark.parametrize(
    ("given", "wanted"), [("1,234.", "1234"), ("$18", "18"), ("So 3.\n#### 1,000", "1000"), ("-5", "-5")]
)
def test_numbers_are_compared_without_marks(given: str, wanted: str) -> None:
    assert plain(given) == wanted
