"""Running a recipe in a folder: from nothing, or on from where it stopped.

A folder belongs to one recipe and one list of input files (the executor may change). Tasks that are finished
are not run again; one that was interrupted writes its files anew.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pomona.data.classifier import WEIGHTS, TextClassifier
from pomona.data.pipeline.decontamination import BenchmarkIndex
from pomona.data.pipeline.executors import build_executors, run_executors
from pomona.data.pipeline.funnel import Funnel, read_funnel
from pomona.data.pipeline.reading import InputFile, list_inputs
from pomona.data.pipeline.recipe import Executor, Recipe, first_difference, resolve
from pomona.data.pipeline.safety import read_list
from pomona.data.pipeline.stages import BENCHMARKS, Stage, compile_stages
from pomona.errors import PomonaError
from pomona.models.locking import locked_folder
from pomona.models.model_directory import Progress, read_json_object, write_json

RUN_FILE = "run.json"
_OURS = ("documents", "removed", "work", "logs", RUN_FILE)


def run_recipe(
    recipe: Recipe,
    base: Path,
    folder: Path,
    *,
    restart: bool = False,
    executor: Executor | None = None,
    progress: Progress = lambda label, done, total: None,
) -> Funnel | None:
    """Run `recipe`, whose paths start from `base`, in `folder`; None where a cluster does the work later.

    PomonaError: inputs that are not there, a folder that holds something else or another recipe's run (use
    `restart`), or a task that failed.
    """
    executor = executor or recipe.executor
    files, uses = list_inputs(recipe, base), _uses(recipe, base)
    stages = compile_stages(recipe, files, base, folder)
    with locked_folder(folder):
        if restart:
            _remove_run(folder)
        _begin_or_go_on(recipe, files, uses, stages, folder)
        _index_benchmarks(recipe, base, folder)
        executors = build_executors(stages, executor, folder)
        run_executors(executors, stages, executor.kind, progress)
        return read_funnel(folder) if executor.kind == "local" else None


def _uses(recipe: Recipe, base: Path) -> dict[str, str]:
    """Sums of the classifiers and word lists that the steps read; they belong to what a run is."""
    found = {}
    for step in recipe.steps:
        if step.name == "classifier":
            TextClassifier.load(resolve(step.settings.model, base))  # says what is wrong before any work
            found[step.settings.model] = _sha256(resolve(step.settings.model, base) / WEIGHTS)
        if step.name == "safety":
            for path in step.settings.lists:
                read_list(resolve(path, base))
                found[path] = _sha256(resolve(path, base))
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _begin_or_go_on(
    recipe: Recipe,
    files: Sequence[InputFile],
    uses: dict[str, str],
    stages: Sequence[Stage],
    folder: Path,
) -> None:
    now: dict[str, Any] = {
        "recipe": recipe.identity(),
        "fingerprint": recipe.fingerprint(),
        "inputs": [file.to_json() for file in files],
        "uses": uses,
        "stages": [{"name": stage.name, "tasks": stage.tasks} for stage in stages],
    }
    path = folder / RUN_FILE
    if not path.is_file():
        if strangers := sorted({one.name for one in folder.iterdir()} - {"run.json.part"}):
            raise PomonaError(f"{folder}: holds {strangers[0]} and no run; choose an empty or a new folder")
        partial = folder / "run.json.part"
        write_json(partial, now)
        partial.replace(path)
        return
    before = read_json_object(path)
    if (change := first_difference(before.get("recipe"), now["recipe"])) is not None:
        raise PomonaError(
            f"{folder}: was begun with another recipe ({change}); "
            "use another folder, or --restart for a new run"
        )
    if (change := first_difference(before.get("inputs"), now["inputs"])) is not None:
        raise PomonaError(
            f"{folder}: its inputs have changed since it was begun (inputs{change}); "
            "use another folder, or --restart for a new run"
        )
    if (change := first_difference(before.get("uses"), now["uses"])) is not None:
        raise PomonaError(
            f"{folder}: what a step reads has changed since it was begun ({change.partition(':')[0]}); "
            "use another folder, or --restart for a new run"
        )


def _index_benchmarks(recipe: Recipe, base: Path, folder: Path) -> None:
    """The n-grams of benchmarks, made once, before the tasks."""
    for number, step in enumerate(recipe.steps, start=1):
        if step.name == "decontaminate":
            path = folder / "work" / f"{number:02d}-{step.name}" / BENCHMARKS
            if not path.is_file():
                index = BenchmarkIndex.build(step.settings, base)
                partial = path.with_name("partial.npz")
                index.save(partial)
                partial.with_suffix(".json").replace(path.with_suffix(".json"))
                partial.replace(path)


def _remove_run(folder: Path) -> None:
    """Only what a run makes; anything else in the folder is the user's."""
    if not (folder / RUN_FILE).is_file():
        return
    for name in _OURS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
