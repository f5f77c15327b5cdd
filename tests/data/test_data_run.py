"""Runs of a recipe: the funnel adds up, every removal is told, an interrupted run goes on."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove")

from pipeline_samples import prose, recipe, rows_below, write_rows

from pomona.data.pipeline.executors import build_executors
from pomona.data.pipeline.funnel import Funnel, read_funnel, samples
from pomona.data.pipeline.funnel_page import render_funnel
from pomona.data.pipeline.reading import list_inputs
from pomona.data.pipeline.recipe import Executor, load_recipe
from pomona.data.pipeline.run import run_recipe
from pomona.data.pipeline.stages import compile_stages
from pomona.errors import PomonaError

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "data"
STEPS = [
    {"length": {"min_characters": 30}},
    "pii",
    {"deduplicate": {"bands": 8, "rows": 3}},
    {"gopher_quality": {"min_words": 20}},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files: 40 documents of prose, some with what the steps look for, and lines that are broken."""
    root = tmp_path_factory.mktemp("source")
    rng = random.Random(1)
    texts = [prose(rng) for _ in range(40)]
    rows: list[Any] = [*texts, "too short", texts[0], texts[1] + " Write to ann@mail.com.", "<b>x</b> " * 8]
    for number in range(3):
        write_rows(root / f"{number}.jsonl", rows[number::3])
    with (root / "3.jsonl").open("wb") as file:
        file.write(b'{"text": "no end\n{"text": "\xff"}\n' + json.dumps({"text": prose(rng)}).encode())
    return root


def given(source: Path, **more: Any) -> Any:
    inputs = [{"name": "all", "path": str(source), "kind": "jsonl", "license": "CC0-1.0"}]
    return recipe(inputs, STEPS, **{"tasks": 3, **more})


@pytest.fixture(scope="module")
def done(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Funnel]:
    folder = tmp_path_factory.mktemp("done") / "run"
    funnel = run_recipe(given(source), source, folder)
    assert funnel is not None
    return folder, funnel


def test_the_funnel_adds_up(done: tuple[Path, Funnel]) -> None:
    folder, funnel = done
    assert funnel.complete and (funnel.files, funnel.bytes > 5000) == (4, True)
    assert [row.label for row in funnel.rows] == [
        *("00-read", "01-length", "02-pii", "03-deduplicate", "04-gopher_quality")
    ]
    assert funnel.rows[0].documents_in == 47
    for row, following in pairwise(funnel.rows):
        assert row.documents_in - sum(row.removed.values()) == row.documents_out == following.documents_in
    kept = rows_below(folder / "documents")
    assert len(kept) == funnel.rows[-1].documents_out
    assert sum(len(row["text"]) for row in kept) == funnel.rows[-1].characters_out
    assert json.loads(json.dumps(funnel.to_json()))["complete"] is True


def test_every_removal_is_written_down_with_its_reason(done: tuple[Path, Funnel]) -> None:
    folder, funnel = done
    for row in funnel.rows:
        reasons = [one["metadata"]["filter_reason"] for one in rows_below(folder / "removed" / row.label)]
        assert {reason: reasons.count(reason) for reason in reasons} == row.removed
    assert funnel.rows[0].removed == {"no_JSON": 1, "not_UTF-8": 1}
    assert funnel.rows[1].removed == {"too_short": 1}
    assert funnel.rows[2].changed == {"email": 1}
    assert funnel.rows[3].removed == {"duplicate": 2}
    assert sum(funnel.rows[4].removed.values()) == 1
    [no_json] = [
        row for row in rows_below(folder / "removed" / "00-read") if "JSON" in row["metadata"]["detail"]
    ]
    assert "3.jsonl, line 1" in no_json["metadata"]["detail"]


def test_documents_say_where_they_come_from(done: tuple[Path, Funnel]) -> None:
    rows = rows_below(done[0] / "documents" / "all")
    assert all(re.fullmatch(r"all/\d\.jsonl/\d+", row["id"]) for row in rows)
    assert all(row["metadata"]["license"] == "CC0-1.0" for row in rows)
    assert not any("ann@mail.com" in row["text"] for row in rows)


@pytest.mark.parametrize(("tasks", "workers"), [(1, 1), (3, 2), (7, 1)])
def test_tasks_and_workers_do_not_change_what_is_kept(
    source: Path, tmp_path: Path, done: tuple[Path, Funnel], tasks: int, workers: int
) -> None:
    made = given(source, tasks=tasks, executor={"workers": workers})
    funnel = run_recipe(made, source, tmp_path / "run")
    assert funnel is not None
    assert [row.removed for row in funnel.rows] == [row.removed for row in done[1].rows]
    # Which of two duplicates stays depends on the tasks; that one stays does not.
    texts = [
        {row["text"].replace(" Write to [EMAIL].", "") for row in rows_below(one / "documents")}
        for one in (tmp_path / "run", done[0])
    ]
    assert texts[0] == texts[1]


def test_a_finished_run_is_not_done_again(source: Path, done: tuple[Path, Funnel]) -> None:
    folder, funnel = done
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl*")}
    again = run_recipe(given(source), source, folder)
    assert again is not None and again.rows == funnel.rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl*")} == files


def test_an_interrupted_run_goes_on_where_it_stopped(
    source: Path, tmp_path: Path, done: tuple[Path, Funnel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona.data.pipeline.pii import RemovePii

    original, calls = RemovePii.filter, []

    def failing(self: RemovePii, doc: Any) -> Any:
        calls.append(doc.id)
        if len(calls) == 25:
            raise OSError("the disk went away")
        return original(self, doc)

    monkeypatch.setattr(RemovePii, "filter", failing)
    with pytest.raises(PomonaError, match=r"stage 00-to-02: a task failed \(OSError: the disk went away\)"):
        run_recipe(given(source), source, tmp_path / "run")
    halfway = read_funnel(tmp_path / "run")
    assert not halfway.complete and halfway.finished == 1
    seen = len(calls)
    funnel = run_recipe(given(source), source, tmp_path / "run")
    assert funnel is not None and len(calls) - seen < 46  # the finished task was not run again
    assert [row.removed for row in funnel.rows] == [row.removed for row in done[1].rows]
    texts = [
        sorted(row["text"] for row in rows_below(one / "documents")) for one in (tmp_path / "run", done[0])
    ]
    assert texts[0] == texts[1]


def test_a_killed_run_goes_on(source: Path, tmp_path: Path, done: tuple[Path, Funnel]) -> None:
    (tmp_path / "r.yaml").write_text(
        json.dumps({"name": "test", "inputs": given(source).identity()["inputs"], "steps": STEPS, "tasks": 3})
    )
    words = [
        sys.executable,
        "-m",
        "pomona",
        "data",
        "run",
        str(tmp_path / "r.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("logs/*/completions/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    funnel = run_recipe(load_recipe(tmp_path / "r.yaml"), tmp_path, tmp_path / "run")
    assert funnel is not None and [row.removed for row in funnel.rows] == [
        row.removed for row in done[1].rows
    ]


def test_a_changed_recipe_or_input_is_refused_and_nothing_is_lost(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "in"
    own.mkdir()
    write_rows(own / "a.jsonl", ["a text of some length", "short"])
    inputs = [{"name": "all", "path": str(own), "kind": "jsonl"}]
    first = recipe(inputs, [{"length": {"min_characters": 10}}])
    run_recipe(first, tmp_path, tmp_path / "run")
    before = rows_below(tmp_path / "run" / "documents")
    changed = recipe(inputs, [{"length": {"min_characters": 3}}])
    with pytest.raises(PomonaError, match=r"steps\.0\.length\.min_characters: 10 -> 3.*--restart"):
        run_recipe(changed, tmp_path, tmp_path / "run")
    write_rows(own / "b.jsonl", ["another text of some length"])
    with pytest.raises(PomonaError, match=r"inputs have changed.*1 entries -> 2"):
        run_recipe(first, tmp_path, tmp_path / "run")
    assert rows_below(tmp_path / "run" / "documents") == before and len(before) == 1
    run_recipe(changed, tmp_path, tmp_path / "run", restart=True)
    assert len(rows_below(tmp_path / "run" / "documents")) == 3


def test_a_changed_word_list_is_refused_too(source: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("frumious\n")
    path = write_rows(tmp_path / "a.jsonl", ["a frumious text", "another"])
    made = recipe(path, [{"safety": {"lists": ["words.txt"]}}])
    run_recipe(made, tmp_path, tmp_path / "run")
    (tmp_path / "words.txt").write_text("frumious\nanother\n")
    with pytest.raises(PomonaError, match=r"what a step reads has changed.*\(words\.txt"):
        run_recipe(made, tmp_path, tmp_path / "run")
    funnel = run_recipe(made, tmp_path, tmp_path / "run", restart=True)
    assert funnel is not None and funnel.rows[1].removed == {"profanity": 2}


def test_a_folder_that_holds_something_else_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for restart in (False, True):
        with pytest.raises(PomonaError, match=r"holds mine\.txt and no run"):
            run_recipe(given(source), source, tmp_path, restart=restart)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_input_that_is_missing_is_named_unless_it_is_optional(tmp_path: Path) -> None:
    missing = {"name": "a", "path": "none", "kind": "text"}
    with pytest.raises(PomonaError, match="there is no such file or folder; correct input a"):
        list_inputs(recipe([missing], []), tmp_path)
    with pytest.raises(PomonaError, match="none of its inputs is here"):
        list_inputs(recipe([{**missing, "optional": True}], []), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PomonaError, match="holds no file for input a"):
        list_inputs(recipe([{**missing, "path": "empty"}], []), tmp_path)


def test_inputs_are_chosen_by_pattern_size_and_number(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "deep/c.txt", "deep/skip.txt", "README", "d.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text " * (1 + 10 * (name != "b.txt")))
    base = {"name": "n", "path": str(tmp_path), "kind": "text"}

    def names(**more: Any) -> list[str]:
        return [file.name for file in list_inputs(recipe([{**base, **more}], []), tmp_path)]

    assert names() == ["n/a.txt", "n/b.txt", "n/deep/c.txt", "n/deep/skip.txt"]
    assert names(exclude=["*skip*"], min_bytes=10) == ["n/a.txt", "n/deep/c.txt"]
    assert names(glob=["README", "deep/c*"]) == ["n/README", "n/deep/c.txt"]
    assert names(max_files=2) == ["n/a.txt", "n/deep/c.txt"]


def test_bad_input_is_skipped_and_written_down(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with (folder / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "' + b"x" * 100_000_000 + b'"}\n{"text": "after the long line"}\n')
    (folder / "b.jsonl").touch()
    (folder / "c.jsonl").write_bytes(b'\x80\x81\n{"text": "after invalid bytes"}\n{"no": 1}\n{"text": ""}')
    inputs = [{"name": "all", "path": str(folder), "kind": "jsonl", "max_document_bytes": 1 << 20}]
    funnel = run_recipe(recipe(inputs, [], tasks=3), tmp_path, tmp_path / "run")
    assert funnel is not None
    assert funnel.rows[0].removed == {"longer_than": 1, "not_UTF-8": 1, "no_text": 1, "empty": 1}
    texts = {row["text"] for row in rows_below(tmp_path / "run" / "documents")}
    assert texts == {"after the long line", "after invalid bytes"}


def test_foreign_metadata_decides_nothing(tmp_path: Path) -> None:
    rows = [
        {"text": "one", "metadata": {"rank": "../../evil", "source": "theirs", "is_page": True, "mine": 1}},
        {"text": "two", "number": 1 << 70},
        {"text": "three", "deep": json.loads("[" * 400 + "]" * 400)},
    ]
    path = write_rows(tmp_path / "in" / "a.jsonl", rows)
    funnel = run_recipe(recipe(path, ["extract"]), tmp_path, tmp_path / "run")
    assert funnel is not None and funnel.rows[0].removed == {"metadata": 2}
    [row] = rows_below(tmp_path / "run" / "documents" / "all")
    assert row["metadata"]["original_rank"] == "../../evil" and row["metadata"]["source"] == "all"
    assert row["metadata"]["original_source"] == "theirs" and row["metadata"]["mine"] == 1
    assert {one.name for one in tmp_path.iterdir()} == {"in", "run"}


def test_lines_of_a_text_may_be_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n\nsecond\n")
    inputs = [{"name": "n", "path": "a.txt", "kind": "text", "lines": True}]
    run_recipe(recipe(inputs, []), tmp_path, tmp_path / "run")
    rows = rows_below(tmp_path / "run" / "documents")
    assert [(row["text"], row["id"]) for row in rows] == [("first", "n/a.txt/1"), ("second", "n/a.txt/3")]


def test_the_page_shows_the_funnel_and_runs_nothing(done: tuple[Path, Funnel]) -> None:
    folder, funnel = done
    page = render_funnel(funnel, {row.label: samples(folder, row.label) for row in funnel.rows})
    assert (
        "default-src 'none'" in page
        and "<script" not in page
        and "http" not in page.replace("http-equiv", "")
    )
    for row in funnel.rows:
        assert row.label in page
        assert all(reason in page for reason in row.removed)
    assert "&lt;b&gt;x&lt;/b&gt;" in page and "<b>x</b>" not in page  # a removed page is shown as text
    assert 'aria-label="' in page and page.count("<section>") == 5


def test_slurm_gets_one_array_per_stage_each_after_the_one_before(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, log = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    sbatch = tools / "sbatch"
    sbatch.write_text(
        f"#!/bin/sh\nn=$(cat {log} 2>/dev/null | wc -l)\n"
        f'echo "$*" >> {log}\necho "Submitted batch job $((100 + n))"\n'
    )
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    slurm = {"partition": "cpu", "time": "1:00:00", "mem_per_cpu_gb": 8, "sbatch": {"account": "me"}}
    made = given(source, executor={"kind": "slurm", "workers": 2, "slurm": slurm})
    assert run_recipe(made, source, tmp_path / "run") is None
    scripts = sorted((tmp_path / "run" / "logs").glob("*/launch_script.slurm"))
    assert len(scripts) == 6
    text = (tmp_path / "run" / "logs" / "00-to-02" / "launch_script.slurm").read_text()
    for line in (
        "partition=cpu",
        "time=1:00:00",
        "mem-per-cpu=8G",
        "array=0-2%2",
        "account=me",
        "job-name=pomona-00-to-02",
    ):
        assert f"#SBATCH --{line}" in text
    assert "launch_pickled_pipeline" in text
    arrays = [line for line in log.read_text().splitlines() if "RUN_OFFSET" in line]
    assert "dependency" not in arrays[0] and all("--dependency=afterok:1" in line for line in arrays[1:])
    assert read_funnel(tmp_path / "run").finished == 0


def test_ray_gets_its_resources(source: Path, tmp_path: Path) -> None:
    made = given(source)
    stages = compile_stages(made, list_inputs(made, source), source, tmp_path)
    executor = Executor.model_validate(
        {"kind": "ray", "workers": 2, "ray": {"cpus_per_task": 3, "mem_per_cpu_gb": 5}}
    )
    built = build_executors(stages, executor, tmp_path)
    assert [type(one).__name__ for one in built] == ["RayPipelineExecutor"] * 6
    assert (built[0].tasks, built[0].workers, built[0].cpus_per_task, built[0].mem_per_cpu_gb) == (3, 2, 3, 5)
    assert built[0].depends is None and all(b.depends is a for a, b in pairwise(built))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["laptop-docs", "laptop-code", "laptop-math"])
def test_a_laptop_recipe_runs_without_any_data_set(tmp_path: Path, name: str) -> None:
    loaded = load_recipe(RECIPES / f"{name}.yaml")
    few = [one.model_copy(update={"max_files": 25}) for one in loaded.inputs]
    funnel = run_recipe(loaded.model_copy(update={"inputs": few, "tasks": 1}), RECIPES, tmp_path / "run")
    assert funnel is not None and funnel.complete
    assert 0 < funnel.rows[-1].documents_out <= funnel.rows[0].documents_in


@pytest.mark.data
@pytest.mark.slow
def test_the_web_recipe_runs_on_real_text(tmp_path: Path) -> None:
    from pipeline_samples import public_data

    public_data()
    loaded = load_recipe(RECIPES / "laptop-web.yaml")
    funnel = run_recipe(loaded, RECIPES, tmp_path / "run")
    assert funnel is not None and funnel.complete
    assert funnel.rows[0].documents_in == 340 and 200 < funnel.rows[-1].documents_out < 330
