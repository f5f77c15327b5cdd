"""HumanEval: programs run behind walls, pass@k as the paper estimates it."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from statistics import fmean

import pytest

from pomona.data.public_sets import data_folder
from pomona.errors import PomonaError
from pomona.evaluation.generation_task import Setting
from pomona.evaluation.humaneval import HUMANEVAL, pass_at_k

ROW = {
    "task_id": "Test/0",
    "prompt": 'import math\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "humaneval").mkdir()
    write(tmp_path, ROW)
    return tmp_path


def write(data: Path, row: dict[str, str]) -> None:
    (data / "humaneval/HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))


@pytest.mark.parametrize(("answers", "right"), [(1, 0), (1, 1), (4, 1), (6, 3), (7, 7)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(answers: int, right: int) -> None:
    results = [True] * right + [False] * (answers - right)
    for k in range(1, answers + 1):
        share = fmean(any(draw) for draw in itertools.combinations(results, k))
        assert pass_at_k(answers, right, k) == pytest.approx(share)


@pytest.mark.parametrize(("answers", "right", "k"), [(3, 4, 1), (3, 1, 4), (3, 1, 0), (3, -1, 1)])
def test_what_cannot_be_drawn_is_refused(answers: int, right: int, k: int) -> None:
    with pytest.raises(PomonaError, match="pass@"):
        pass_at_k(answers, right, k)


def test_answers_are_run_with_their_tests(data: Path) -> None:
    [question] = HUMANEVAL.questions(Setting(data, samples=5))
    assert question.samples == 5 and question.prompt == ROW["prompt"]
    answers = [
        "    return 2 * x\n",
        "    return x + 2\n",  # right for 2 alone
        "    raise SystemExit(0)\n",  # ends before its tests
        "    return (\n",  # no Python
        "    import os; os._exit(0)\n",
    ]
    [score] = HUMANEVAL.score([question], [answers])
    assert list(score) == ["pass@1"] and score["pass@1"] == (pytest.approx(1 / 5), 1.0)


def test_a_whole_function_out_of_a_chat_keeps_the_prompts_imports(data: Path) -> None:
    [question] = HUMANEVAL.questions(Setting(data, template=True))
    assert question.opening and "```python" in question.prompt[0]["content"]  # type: ignore[index]
    whole = "def double(x):\n    return int(math.fsum([x, x]))\n"
    [score] = HUMANEVAL.score([question], [[whole]])
    assert score["pass@1"] == (1.0, 1.0)


@pytest.mark.parametrize("change", [{"entry_point": "x); import os; (x"}, {"test": ""}, {"prompt": 3}])
def test_a_row_that_is_none_is_refused(data: Path, change: dict[str, str]) -> None:
    write(data, {**ROW, **change})
    with pytest.raises(PomonaError, match="HumanEval"):
        HUMANEVAL.questions(Setting(data))


@pytest.mark.data
def test_the_sets_own_solutions_pass_and_empty_ones_do_not() -> None:
    folder = data_folder()
    raw = gzip.decompress((folder / "humaneval/HumanEval.jsonl.gz").read_bytes()).decode()
    solutions = [json.loads(line)["canonical_solution"] for line in raw.splitlines()]
    questions = HUMANEVAL.questions(Setting(folder))
    chosen = range(0, len(questions), 16)
    some = [questions[n] for n in chosen]
    passed = HUMANEVAL.score(some, [[solutions[n]] for n in chosen])
    assert [one["pass@1"][0] for one in passed] == [1.0] * len(some)
    failed = HUMANEVAL.score(some[:3], [["    return None\n"]] * 3)
    assert [one["pass@1"][0] for one in failed] == [0.0] * 3
