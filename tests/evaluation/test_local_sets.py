"""lm-eval's tasks on local files: the hub's columns, lm-eval's own prompts, wrong rows refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.evaluation.local_sets import MATH, MMLU, SETS, local_tasks
from pomona.evaluation.suites import OWN, SUITES, SuiteTask, suite_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("piqa", "arc_challenge", "gsm8k", "mmlu/dev", "mmlu/test"):
        (folder / name).mkdir(parents=True)
    goal = {"goal": "Open a jar", "sol1": "twist the lid", "sol2": "eat the lid"}
    (folder / "piqa/valid.jsonl").write_text(f"{json.dumps(goal)}\n{json.dumps(goal)}\n")
    (folder / "piqa/valid-labels.lst").write_text("0\n1\n")
    options = [{"label": label, "text": f"option {label}"} for label in "ABC"]
    row = {"id": "x1", "question": "Which?", "options": options, "answer": "C"}
    (folder / "arc_challenge/arc_challenge_test.jsonl").write_text(json.dumps(row) + "\n")
    sums = {"question": "1 + 1?", "answer": "It is 2.\n#### 2"}
    for split in ("train", "test"):
        (folder / f"gsm8k/{split}.jsonl").write_text(json.dumps(sums) + "\n")
        (folder / f"mmlu/{'dev' if split == 'train' else 'test'}").mkdir(exist_ok=True)
    for split in ("dev", "test"):
        (folder / f"mmlu/{split}/anatomy_{split}.csv").write_text('"Where, exactly?",a,b,c,d,B\n')
    return folder


def rows_of(path: str, split: str) -> list[dict[str, object]]:
    file = Path(path).parent / f"{split}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_are_in_the_hubs_columns(data: Path, tmp_path: Path) -> None:
    names = ("piqa", "arc_challenge", "gsm8k", "mmlu_anatomy")
    piqa, arc, gsm8k, mmlu = local_tasks(names, data, tmp_path / "out")
    assert [row["label"] for row in rows_of(piqa, "validation")] == [0, 1]
    [question] = rows_of(arc, "test")
    assert question["choices"] == {"label": ["A", "B", "C"], "text": ["option A", "option B", "option C"]}
    assert question["answerKey"] == "C"
    assert rows_of(gsm8k, "train") == rows_of(gsm8k, "test")
    [anatomy] = rows_of(mmlu, "test")
    assert anatomy == {
        "question": "Where, exactly?",
        "subject": "anatomy",
        "choices": ["a", "b", "c", "d"],
        "answer": 1,
    }


def test_lm_eval_builds_its_own_prompts_of_them(data: Path, tmp_path: Path) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    paths = local_tasks(("piqa", "mmlu_anatomy"), data, tmp_path / "out")
    loaded = tasks.TaskManager(include_defaults=False).load(paths)["tasks"]
    assert set(loaded) == {"piqa", "mmlu_anatomy"}
    piqa = loaded["piqa"]
    [first, _] = list(piqa.validation_docs())
    assert piqa.doc_to_text(first) == "Question: Open a jar\nAnswer:"
    assert piqa.doc_to_choice(first) == ["twist the lid", "eat the lid"]
    assert "about anatomy" in loaded["mmlu_anatomy"].config.description


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("piqa/valid-labels.lst", "0\n", "do not fit"),
        ("piqa/valid-labels.lst", "0\n2\n", "do not fit"),
        ("piqa/valid.jsonl", '{"goal": 3}\n{"goal": 4}\n', "no text 'goal'"),
        ("arc_challenge/arc_challenge_test.jsonl", "[1]\n", "line 1"),
        ("arc_challenge/arc_challenge_test.jsonl", '{"answer": "D", "options": []}\n', "none of its options"),
        ("mmlu/test/anatomy_test.csv", "a,b,c\n", "row 1"),
        ("mmlu/test/anatomy_test.csv", "q,a,b,c,d,E\n", "row 1"),
        ("gsm8k/test.jsonl", "", "no rows"),
    ],
)
def test_what_is_no_row_is_refused(data: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    (data / file).write_text(text)
    with pytest.raises(PomonaError, match=message):
        local_tasks(("piqa", "arc_challenge", "gsm8k", "mmlu_anatomy"), data, tmp_path / "out")


def test_a_missing_set_and_an_unknown_one_are_said(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="piqa"):
        local_tasks(("piqa",), tmp_path, tmp_path / "out")
    with pytest.raises(PomonaError, match="no local set"):
        local_tasks(("hellaswag",), tmp_path, tmp_path / "out")


def test_every_task_of_a_suite_has_a_local_set() -> None:
    assert len(MMLU) == 57 and len(MATH) == 7
    for suite in SUITES.values():
        names = {task.name for task in suite.tasks if isinstance(task, SuiteTask)}
        assert names <= SETS.keys()
        assert {task.name for task in suite.tasks} - names <= OWN.keys()
    with pytest.raises(PomonaError, match="choose of core"):
        suite_of("cor")


def test_tasks_of_a_suite_are_chosen_by_how_they_begin() -> None:
    chosen = suite_of("long").only(["long_niah_single", "long_common_words_1024"])
    assert [task.name for task in chosen.tasks] == [
        "long_niah_single_1024",
        "long_common_words_1024",
        "long_niah_single_2048",
        "long_niah_single_4096",
        "long_niah_single_8192",
    ]
    with pytest.raises(PomonaError, match="--task hotpot"):
        suite_of("long").only(["hotpot"])


def test_math_is_read_as_it_is_published(tmp_path: Path) -> None:
    """One file per problem, in folders by subject; the numbers in their names are in order."""
    for split in ("train", "test"):
        folder = tmp_path / "math" / split / "number_theory"
        folder.mkdir(parents=True)
        for number in (10, 2):
            row = {
                "problem": f"problem {number}",
                "level": "Level 1",
                "type": "Number Theory",
                "solution": r"It is $\boxed{3}$.",
            }
            (folder / f"{number}.json").write_text(json.dumps(row))
    [path] = local_tasks(("hendrycks_math_num_theory",), tmp_path, tmp_path / "out")
    assert [row["problem"] for row in rows_of(path, "test")] == ["problem 2", "problem 10"]
    tasks = pytest.importorskip("lm_eval.tasks")
    loaded = tasks.TaskManager(include_defaults=False).load([path])["tasks"]["hendrycks_math_num_theory"]
    [first, _] = list(loaded.test_docs())
    assert first["answer"] == "3"
