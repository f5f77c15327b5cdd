"""A recipe as stages: pipelines that run one after the other, each cut into tasks.

Steps that look at one document at a time run in a row within a stage. De-duplication and decontamination
look at all: they end a stage, have some of their own, and begin the next.

    FOLDER/work/...        documents between stages, signatures, counts
    FOLDER/removed/LABEL/  what a step removed, with `filter_reason`
    FOLDER/documents/      what is left, a folder per input
    FOLDER/logs/STAGE/     datatrove's logs, statistics and marks of finished tasks
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.pipeline import deduplication, heuristics
from pomona.data.pipeline.blocks import StageReader, labelled, removed_writer, stage_writer
from pomona.data.pipeline.code_license import KeepLicensed
from pomona.data.pipeline.decontamination import CountNgrams, DropContaminated, MergeCounts
from pomona.data.pipeline.extraction import ExtractContent
from pomona.data.pipeline.language import KeepLanguages
from pomona.data.pipeline.mathematics import KeepMathematics
from pomona.data.pipeline.pii import RemovePii
from pomona.data.pipeline.reading import DocumentReader, InputFile
from pomona.data.pipeline.recipe import Deduplicate, Recipe, Step, resolve
from pomona.data.pipeline.repetition import DropRepetitive
from pomona.data.pipeline.safety import DropUnsafe
from pomona.data.pipeline.scoring import KeepByScore

READ = "00-read"
BENCHMARKS = "benchmarks.npz"


@dataclass(frozen=True)
class Stage:
    """A pipeline and the number of tasks that it is cut into."""

    name: str
    pipeline: list[PipelineStep]
    tasks: int


def compile_stages(recipe: Recipe, files: Sequence[InputFile], base: Path, folder: Path) -> list[Stage]:
    """The stages of a recipe that lies in `base`, for a run in `folder`, in order."""
    stages: list[Stage] = []
    current: list[PipelineStep] = [
        labelled(DocumentReader(files, removed_writer(folder, READ)), READ),
    ]
    first = 0

    def end_stage(last: int) -> None:
        stages.append(Stage(f"{first:02d}-to-{last:02d}", current, recipe.tasks))

    for number, step in enumerate(recipe.steps, start=1):
        label = f"{number:02d}-{step.name}"
        writer = removed_writer(folder, label)
        if step.name not in ("deduplicate", "decontaminate"):
            current.append(labelled(_block(step, base, writer), label))
            continue
        work = folder / "work" / label
        current.append(stage_writer(work / "documents"))
        end_stage(number - 1)
        own, drop = _global(step, work, recipe.tasks, writer)
        stages += [Stage(f"{label}-{name}", pipeline, tasks) for name, pipeline, tasks in own]
        current, first = [StageReader(work / "documents"), labelled(drop, label)], number
    current.append(JsonlWriter(str(folder / "documents"), output_filename="${source}/${rank}.jsonl.gz"))
    end_stage(len(recipe.steps))
    return stages


def _block(step: Step, base: Path, writer: JsonlWriter) -> PipelineStep:
    settings = step.settings
    simple: dict[str, Callable[[Any, JsonlWriter], PipelineStep]] = {
        "extract": ExtractContent,
        "language": KeepLanguages,
        "length": heuristics.KeepLength,
        "gopher_quality": heuristics.gopher_quality,
        "gopher_repetition": DropRepetitive,
        "c4": heuristics.c4,
        "fineweb": heuristics.fineweb,
        "pii": RemovePii,
        "code_license": KeepLicensed,
        "mathematics": KeepMathematics,
    }
    if step.name == "classifier":
        return KeepByScore(settings, resolve(settings.model, base), writer)
    if step.name == "safety":
        return DropUnsafe(settings, [resolve(path, base) for path in settings.lists], writer)
    return simple[step.name](settings, writer)


def _global(
    step: Step, work: Path, tasks: int, writer: JsonlWriter
) -> tuple[list[tuple[str, list[PipelineStep], int]], PipelineStep]:
    """The stages (name, pipeline, tasks) of a step that looks at all documents, and the filter after them."""
    settings, read = step.settings, StageReader(work / "documents")
    if isinstance(settings, Deduplicate):
        own = [
            ("signatures", [read, deduplication.Signatures(work, settings)], tasks),
            ("pairs", [deduplication.bands_step(work, settings)], settings.bands),
            ("verify", [deduplication.VerifyPairs(work, settings)], min(tasks, settings.bands)),
            ("clusters", [deduplication.clusters_step(work, settings)], 1),
        ]
        return own, deduplication.DropDuplicates(work / "clusters", writer)
    index, counts = work / BENCHMARKS, work / "counts"
    own = [
        ("count", [read, CountNgrams(index, counts)], tasks),
        ("merge", [MergeCounts(index, counts, settings.common)], 1),
    ]
    return own, DropContaminated(index, counts, writer)
