"""Suites on our runtime: lm-evaluation-harness and our own tasks, its figures, resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pomona.data.public_sets import data_folder
from pomona.errors import PomonaError
from pomona.evaluation.generation_task import GenerationTask, Question, Setting, each
from pomona.evaluation.harness import RunOptions, run_suite
from pomona.evaluation.lm_eval_model import Answers, lm_eval_model
from pomona.evaluation.suites import Suite, SuiteTask, suite_of
from pomona.runtime.model import Model

SUITE = Suite("one", "", (SuiteTask("piqa", 1, "acc,none"),))


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
    options = RunOptions(limit=6)
    first = run_suite(model, SUITE, data=data, work=tmp_path, options=options)
    assert len(first.tasks[0].items) == 6 and first.tasks[0].shots == 1
    calls: list[str] = []
    again = run_suite(
        model, SUITE, data=data, work=tmp_path, options=options, progress=lambda what, *_: calls.append(what)
    )
    assert again.tasks == first.tasks
    assert "score answers" not in calls  # nothing was computed again


# --- tasks in which the model writes


def counting(data_read: list[int] | None = None) -> GenerationTask:
    """Whether the model goes on counting; the second metric counts the digits that it writes."""

    def questions(setting: Setting) -> list[Question]:
        if data_read is not None:
            data_read.append(1)
        return [
            Question(f"from {n}", f"{n}, {n + 1}, {n + 2},", 6, stops=("\n",), expected=str(n + 3))
            for n in (1, 5, 10)
        ]

    score = each(
        lambda question, answer: {
            "next": (float(answer.split(",")[0].strip() == question.expected), 1.0),
            "digits": (float(sum(letter.isdigit() for letter in answer)), float(len(answer) or 1)),
        }
    )
    return GenerationTask("counting", "7", 0, ("next", "digits"), questions, score)


def test_our_own_tasks_give_a_result_for_every_metric_and_go_on_where_they_stopped(
    model: Model, tmp_path: Path
) -> None:
    suite = Suite("mine", "", (counting(),))
    first = run_suite(model, suite, data=tmp_path, work=tmp_path / "work")
    main, digits = first.tasks
    assert main.items == {"from 1": 1.0, "from 5": 1.0, "from 10": 1.0}
    assert (main.main, digits.main, main.version) == (True, False, "7")
    assert set(main.answers) == set(main.items) and not digits.answers
    assert [name for name, _ in first.rows()] == ["counting", "counting digits"]
    assert first.average == 1.0 and first.lm_eval == ""
    calls: list[str] = []
    fewer = RunOptions(limit=2)
    again = run_suite(
        model,
        suite,
        data=tmp_path,
        work=tmp_path / "work",
        options=fewer,
        progress=lambda what, *_: calls.append(what),
    )
    assert again.tasks[0].items == {"from 1": 1.0, "from 5": 1.0}
    [store] = (tmp_path / "work").glob("*.answers.jsonl")
    assert len(store.read_text().splitlines()) == 3  # nothing was asked again


def test_an_optional_task_without_data_is_left_out_and_said(model: Model, tmp_path: Path) -> None:
    absent = GenerationTask(
        "absent", "1", 0, ("x",), lambda _: [], each(lambda q, a: {}), ("absent.json",), optional=True
    )
    suite = Suite("mine", "", (counting(), absent))
    result = run_suite(model, suite, data=tmp_path, work=tmp_path / "work", options=RunOptions(limit=1))
    assert result.left_out == ("absent",) and len(result.tasks) == 2
    with pytest.raises(PomonaError, match="none of its data"):
        run_suite(model, Suite("mine", "", (absent,)), data=tmp_path, work=tmp_path / "work")


def test_answers_that_would_all_be_the_same_are_refused() -> None:
    with pytest.raises(PomonaError, match="--temperature"):
        RunOptions(samples=4)


def test_the_hub_gives_lm_eval_its_own_names(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network: what lm-eval is asked for, and that nothing keeps it from asking the hub."""
    lm_eval = pytest.importorskip("lm_eval")
    tasks = pytest.importorskip("lm_eval.tasks")
    asked: dict[str, object] = {}

    def evaluate(**options: object) -> dict[str, object]:
        asked.update(options)
        samples = [{"doc_id": 0, "acc": 1.0, "filter": "none"}]
        return {"samples": {"piqa": samples}, "versions": {"piqa": 1.0}}

    monkeypatch.setattr(lm_eval, "simple_evaluate", evaluate)
    monkeypatch.setattr(tasks, "TaskManager", lambda include_defaults: include_defaults)
    result = run_suite(model, SUITE, data=None, work=tmp_path, options=RunOptions(hub=True, limit=1))
    assert asked["tasks"] == ["piqa"] and asked["task_manager"] is True
    assert result.source == "hub" and result.tasks[0].items == {"0": 1.0}


@pytest.mark.data
def test_every_suite_of_our_own_reads_its_data(model: Model) -> None:
    """Counts of the sets as they are published."""
    from pomona.evaluation.harness import setting_of

    data = data_folder()
    setting = setting_of(model, data, RunOptions())
    counts = {
        task.name: len(task.questions(setting))
        for name in ("instruct", "code", "tools")
        for task in suite_of(name).tasks
        if isinstance(task, GenerationTask) and setting.has(*task.needs)
    }
    assert counts == {
        "ifeval": 541,
        "humaneval": 164,
        "bfcl_simple": 400,
        "bfcl_multiple": 200,
        "bfcl_parallel": 200,
        "bfcl_live_simple": 258,
        "bfcl_irrelevance": 240,
    }


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


def test_a_model_without_an_end_token_is_refused() -> None:
    tokenizer = SimpleNamespace(eos_token_ids=(), bos_token_id=None)
    engine = SimpleNamespace(directory="m")
    model = SimpleNamespace(tokenizer=tokenizer, engine=engine, adapter_for=lambda name: None)
    with pytest.raises(PomonaError, match="no end token"):
        Answers(model, None, None)  # type: ignore[arg-type]
