"""lm-evaluation-harness on our runtime: its figures, results that can be held against each other, resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pomona.data.public_sets import data_folder
from pomona.errors import PomonaError
from pomona.evaluation.harness import EvalResult, TaskResult, compare, run_suite, shown, write_result
from pomona.evaluation.lm_eval_model import Answers, lm_eval_model
from pomona.evaluation.suites import Suite, SuiteTask
from pomona.runtime.model import Model

SUITE = Suite("one", "", (SuiteTask("piqa", 1, "acc,none"),))


def result(values: dict[str, list[float]], **more: object) -> EvalResult:
    tasks = tuple(
        TaskResult(name, "acc,none", 5, "1.0", {str(i): value for i, value in enumerate(items)})
        for name, items in values.items()
    )
    one = EvalResult("core", "m", "f", None, None, False, None, "0.4", "2026-01-01", 1.0, tasks)
    return replace(one, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(smollm2_dir: Path) -> Model:
    return Model.load(str(smollm2_dir), threads=2)


# --- the model, as lm-eval sees it


def test_likelihoods_are_the_engines(model: Model) -> None:
    answers = Answers(model, "base", None)
    context, more = answers.encode("The capital of France is"), answers.encode(" Paris")
    [(log_p, greedy)] = answers.likelihoods([(context, more)])
    alone = float(model.engine.score([*context, *more])[-len(more) :].sum())
    assert log_p == pytest.approx(alone, abs=1e-3) and greedy


def test_rolling_counts_every_token_once(model: Model) -> None:
    answers = Answers(model, "base", None)
    text = "Apples are picked in autumn. Pears are picked later."
    ids = [answers.prefix, *answers.encode(text)]
    assert answers.rolling(text) == pytest.approx(float(model.engine.score(ids).sum()), abs=1e-2)


def test_answers_end_before_their_stop_sequence(model: Model) -> None:
    answers = Answers(model, "base", None)
    prompt = "One, two, three, four,"
    [whole] = answers.generate([(prompt, {"max_gen_toks": 12})])
    stop = whole[4:7]
    [cut, same] = answers.generate(
        [(prompt, {"max_gen_toks": 12, "until": [stop]}), (prompt, {"max_gen_toks": 12})]
    )
    assert cut == whole[: whole.index(stop)] and same == whole


def test_options_that_are_not_known_are_refused(model: Model) -> None:
    with pytest.raises(PomonaError, match="num_beams"):
        Answers(model, "base", None).generate([("x", {"num_beams": 4})])


def test_the_chat_template_is_the_models(model: Model) -> None:
    answers = Answers(model, "base", None)
    chat = [{"role": "user", "content": "Hello"}]
    asked = answers.chat(chat, True)
    assert asked.endswith("<|im_start|>assistant\n")
    begun = answers.chat([*chat, {"role": "assistant", "content": "The answer is"}], False)
    assert begun == asked + "The answer is"


@pytest.mark.data
def test_a_suite_runs_and_goes_on_where_it_stopped(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    data = data_folder()
    first = run_suite(model, SUITE, data=data, work=tmp_path, limit=6)
    assert len(first.tasks[0].items) == 6 and first.tasks[0].shots == 1
    calls: list[str] = []
    again = run_suite(
        model, SUITE, data=data, work=tmp_path, limit=6, progress=lambda what, *_: calls.append(what)
    )
    assert again.tasks == first.tasks
    assert "score answers" not in calls  # nothing was computed again


@pytest.mark.slow
@pytest.mark.data
def test_items_are_right_and_wrong_as_with_lm_evals_own_model(smollm2_dir: Path, tmp_path: Path) -> None:
    """In float32: lm-eval's `hf` model in bfloat16 rounds its logits to steps of an eighth and more."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from pomona.evaluation.local_sets import local_tasks

    manager = TaskManager(include_defaults=False)
    paths = local_tasks(("piqa", "arc_challenge"), data_folder(), tmp_path)
    theirs = HFLM(pretrained=str(smollm2_dir), dtype="float32", batch_size=8, device="cpu")
    found = []
    with Model.load(str(smollm2_dir)) as ours:
        for harness in (lm_eval_model(ours), theirs):
            results = lm_eval.simple_evaluate(
                model=harness, tasks=paths, task_manager=manager, limit=60, num_fewshot=2, bootstrap_iters=0
            )
            found.append(
                [sample["acc"] for task in ("piqa", "arc_challenge") for sample in results["samples"][task]]
            )
    assert len(found[0]) == 120
    assert sum(a == b for a, b in zip(*found, strict=True)) >= 119


# --- results


def test_subjects_of_mmlu_are_one_row_by_items() -> None:
    found = result({"piqa": [1, 0], "mmlu_anatomy": [1, 1, 1], "mmlu_virology": [0]})
    assert found.table() == [("piqa", 0.5), ("mmlu", 0.75)]
    assert found.average == pytest.approx(0.625)


def test_two_results_are_compared_on_the_items_that_both_have() -> None:
    ours, theirs = result({"piqa": [1.0] * 30 + [0.0]}), result({"piqa": [0.0] * 30})
    [(row, gain)] = compare(ours, theirs).items()
    assert (row, gain.value, gain.low, gain.rows) == ("piqa", 1.0, 1.0, 30)
    with pytest.raises(PomonaError, match="no item in common"):
        compare(ours, result({"gsm8k": [1.0]}))
    [line] = shown([(row, gain)], "+")
    assert line.startswith("piqa  +100.00%") and "30 items" in line


def test_other_shots_are_other_items() -> None:
    ours = result({"piqa": [1.0]})
    other = replace(ours, tasks=(replace(ours.tasks[0], shots=0),))
    with pytest.raises(PomonaError, match="no item in common"):
        compare(ours, other)


def test_a_result_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(one := result({"piqa": [1.0, 0.0]}, adapter="recovery", limit=2), path)
    assert EvalResult.read(path) == one
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("tasks"),
        lambda raw: raw.update(tasks=3),
        lambda raw: raw.update(tasks=[]),
        lambda raw: raw["tasks"][0].update(items={}),
        lambda raw: raw["tasks"][0].update(items={"0": "high"}),
        lambda raw: raw["tasks"][0].pop("metric"),
        lambda raw: raw.pop("model"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, change: object) -> None:
    raw = json.loads(json.dumps(result({"piqa": [1.0]}).to_json()))
    change(raw)  # type: ignore[operator]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(PomonaError, match=r"result\.json"):
        EvalResult.read(path)


def test_a_model_without_an_end_token_is_refused() -> None:
    tokenizer = SimpleNamespace(eos_token_ids=(), bos_token_id=None)
    engine = SimpleNamespace(directory="m")
    model = SimpleNamespace(tokenizer=tokenizer, engine=engine, adapter_for=lambda name: None)
    with pytest.raises(PomonaError, match="no end token"):
        Answers(model, None, None)  # type: ignore[arg-type]
