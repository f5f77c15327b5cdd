"""lm-eval's tasks on local files: its prompts and metrics, the rows of the folder that POMONA_DATA names.

    specs = local_tasks(("piqa", "arc_challenge"), data, folder)     # paths that lm-eval takes as tasks

lm-eval's packaged tasks name data sets of the hub. Here each set is written as JSONL in the hub's columns,
and beside it a task file of a few lines that includes lm-eval's own and changes nothing but where the rows
come from. A task keeps lm-eval's name, prompt, few-shot rule, metrics and version.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from pomona.data.public_sets import json_lines, read
from pomona.errors import PomonaError
from pomona.models.model_directory import parse_json_object

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class LocalSet:
    """include: lm-eval's task file below its tasks/. splits: name -> reader of the data folder."""

    include: str
    splits: dict[str, Callable[[Path], Rows]]


def _jsonl(folder: Path, name: str) -> Rows:
    return json_lines(folder / name, read(folder / name))


def _piqa(folder: Path) -> Rows:
    labels = read(folder / "piqa/valid-labels.lst").split()
    rows = list(_jsonl(folder, "piqa/valid.jsonl"))
    if len(rows) != len(labels) or not set(labels) <= {"0", "1"}:
        raise PomonaError(f"{folder / 'piqa'}: labels and questions do not fit each other; get the set again")
    for row, label in zip(rows, labels, strict=True):
        yield {**{key: _text(row, key) for key in ("goal", "sol1", "sol2")}, "label": int(label)}


def _arc_challenge(folder: Path) -> Rows:
    for row in _jsonl(folder, "arc_challenge/arc_challenge_test.jsonl"):
        options = [(_text(one, "label"), _text(one, "text")) for one in row.get("options") or ()]
        if _text(row, "answer") not in dict(options):
            raise PomonaError(
                f"{folder / 'arc_challenge'}: {row.get('id')}: its answer is none of its options"
            )
        yield {
            "id": _text(row, "id"),
            "question": _text(row, "question"),
            "choices": {"label": [label for label, _ in options], "text": [text for _, text in options]},
            "answerKey": row["answer"],
        }


def _gsm8k(split: str) -> Callable[[Path], Rows]:
    def rows(folder: Path) -> Rows:
        for row in _jsonl(folder, f"gsm8k/{split}.jsonl"):
            yield {"question": _text(row, "question"), "answer": _text(row, "answer")}

    return rows


def _mmlu(subject: str, split: str) -> Callable[[Path], Rows]:
    def rows(folder: Path) -> Rows:
        path = folder / "mmlu" / split / f"{subject}_{split}.csv"
        for number, line in enumerate(csv.reader(StringIO(read(path))), start=1):
            if len(line) != 6 or line[5] not in "ABCD" or not line[5]:
                raise PomonaError(f"{path}: row {number} is no question with four choices and an answer")
            yield {
                "question": line[0],
                "subject": subject,
                "choices": line[1:5],
                "answer": "ABCD".index(line[5]),
            }

    return rows


_SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security
conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts
high_school_biology high_school_chemistry high_school_computer_science high_school_european_history
high_school_geography high_school_government_and_politics high_school_macroeconomics
high_school_mathematics high_school_microeconomics high_school_physics high_school_psychology
high_school_statistics high_school_us_history high_school_world_history human_aging human_sexuality
international_law jurisprudence logical_fallacies machine_learning management marketing medical_genetics
miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
professional_law professional_medicine professional_psychology public_relations security_studies
sociology us_foreign_policy virology world_religions
"""
MMLU = tuple(f"mmlu_{subject}" for subject in _SUBJECTS.split())

# lm-eval's name of a subject of MATH -> its folder in the set as Hendrycks et al. publish it.
_MATH = {
    "algebra": "algebra",
    "counting_and_prob": "counting_and_probability",
    "geometry": "geometry",
    "intermediate_algebra": "intermediate_algebra",
    "num_theory": "number_theory",
    "prealgebra": "prealgebra",
    "precalc": "precalculus",
}
MATH = tuple(f"hendrycks_math_{subject}" for subject in _MATH)


def _math(subject: str, split: str) -> Callable[[Path], Rows]:
    def rows(folder: Path) -> Rows:
        place = folder / "math" / split / _MATH[subject]
        for path in sorted(place.glob("*.json"), key=lambda path: (len(path.name), path.name)):
            row = parse_json_object(read(path).encode(), str(path))
            yield {key: _text(row, key) for key in ("problem", "level", "type", "solution")}

    return rows


SETS: dict[str, LocalSet] = (
    {
        "piqa": LocalSet("piqa/piqa.yaml", {"validation": _piqa}),
        "arc_challenge": LocalSet("arc/arc_challenge.yaml", {"test": _arc_challenge}),
        "gsm8k": LocalSet("gsm8k/gsm8k.yaml", {"train": _gsm8k("train"), "test": _gsm8k("test")}),
    }
    | {
        name: LocalSet(
            f"mmlu/default/{name}.yaml",
            {split: _mmlu(name.removeprefix("mmlu_"), split) for split in ("dev", "test")},
        )
        for name in MMLU
    }
    | {
        name: LocalSet(
            f"hendrycks_math/{name}.yaml",
            {split: _math(name.removeprefix("hendrycks_math_"), split) for split in ("train", "test")},
        )
        for name in MATH
    }
)


def files_of(name: str) -> tuple[str, ...]:
    """What a set that may be missing consists of, below the data folder."""
    if name not in MATH:
        return ()
    folder = _MATH[name.removeprefix("hendrycks_math_")]
    return tuple(f"math/{split}/{folder}" for split in ("train", "test"))


def local_tasks(names: tuple[str, ...], data: Path, folder: Path) -> list[str]:
    """Writes rows and task files into `folder`; the task files' paths, for lm-eval.

    PomonaError for a name without a local set, a missing file, a row that is none.
    """
    if unknown := [name for name in names if name not in SETS]:
        raise PomonaError(
            f"{', '.join(unknown)}: no local set; there are piqa, arc_challenge, gsm8k, mmlu_SUBJECT and "
            "hendrycks_math_SUBJECT. Others come from the hub: give them with --hub"
        )
    return [str(_write(name, SETS[name], data, folder)) for name in names]


def _write(name: str, one: LocalSet, data: Path, folder: Path) -> Path:
    import yaml

    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, reader in one.splits.items():
        path = place / f"{split}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) for row in reader(data)]
        if not lines:
            raise PomonaError(f"{data}: {name} has no rows; get the set again")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[split] = str(path)
    task: dict[str, Any] = {
        "include": str(_tasks_folder() / one.include),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
    }
    # A split that the folder does not have is none: lm-eval would ask the loader for it.
    for key, split in (
        ("training_split", "train"),
        ("validation_split", "validation"),
        ("test_split", "test"),
    ):
        if split not in files:
            task[key] = None
    if "train" not in files and "dev" not in files:
        task["fewshot_split"] = next(iter(files))
    target = place / f"{name}.yaml"
    target.write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    return target


def _tasks_folder() -> Path:
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise PomonaError("evaluation needs lm-evaluation-harness; install it: pip install 'pomona[eval]'")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise PomonaError(f"a row of a data set has no text {key!r}; get the set again")
    return value
