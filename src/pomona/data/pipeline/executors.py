"""Where stages run: in processes here, as array jobs of Slurm, or on a Ray cluster. All datatrove's."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor

from pomona.data.pipeline.recipe import Executor
from pomona.data.pipeline.stages import Stage
from pomona.errors import PomonaError

OnStage = Callable[[str, int, int], None]


class LocalExecutor(LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's, with its log in files alone: the terminal is the command's."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with redirect_stderr(_Nowhere()):
            return super()._run_for_rank(rank, local_rank, node_rank)


def build_executors(stages: Sequence[Stage], settings: Executor, folder: Path) -> list[PipelineExecutor]:
    """One per stage, each depending on the one before."""
    executors: list[PipelineExecutor] = []
    for stage in stages:
        common: dict[str, Any] = {
            "pipeline": stage.pipeline,
            "tasks": stage.tasks,
            "workers": min(settings.workers, stage.tasks),
            "logging_dir": str(folder / "logs" / stage.name),
        }
        before = executors[-1] if executors else None
        if settings.kind == "local":
            executors.append(LocalExecutor(**common))
        elif settings.kind == "ray":
            ray = settings.ray
            executors.append(
                RayPipelineExecutor(
                    **common,
                    depends=before,
                    cpus_per_task=ray.cpus_per_task,
                    mem_per_cpu_gb=ray.mem_per_cpu_gb,
                    tasks_per_job=ray.tasks_per_job,
                )
            )
        else:
            slurm = settings.slurm
            assert slurm is not None  # the recipe has checked it
            executors.append(
                SlurmPipelineExecutor(
                    **common,
                    depends=before,
                    job_name=f"pomona-{stage.name}",
                    partition=slurm.partition,
                    time=slurm.time,
                    cpus_per_task=slurm.cpus_per_task,
                    mem_per_cpu_gb=slurm.mem_per_cpu_gb,
                    qos=slurm.qos,
                    venv_path=slurm.venv,
                    max_array_size=slurm.max_array_size,
                    sbatch_args=slurm.sbatch,
                )
            )
    return executors


def run_executors(
    executors: Sequence[PipelineExecutor], stages: Sequence[Stage], kind: str, on_stage: OnStage
) -> None:
    """Run all here, or hand all to the cluster. PomonaError if a task fails: what is done stays done."""
    if kind != "local":
        try:
            executors[-1].run()  # launches what it depends on first
        except (OSError, ImportError) as error:
            raise PomonaError(
                f"{kind}: cannot be reached ({error}); run this where {kind} is set up"
            ) from error
        return
    from loguru import logger

    logger.remove()
    for done, (executor, stage) in enumerate(zip(executors, stages, strict=True)):
        on_stage(stage.name, done, len(stages))
        try:
            with redirect_stderr(_Nowhere()):
                executor.run()
        except PomonaError:
            raise
        except Exception as error:
            log = executor.logging_dir.path
            raise PomonaError(
                f"stage {stage.name}: a task failed ({type(error).__name__}: {error}); finished tasks are "
                f"kept, see {log}, mend the cause and run the same command again"
            ) from error
    on_stage("done", len(stages), len(stages))


class _Nowhere(io.TextIOBase):
    """A stream that may be written to for ever: datatrove's logger keeps hold of it."""

    def write(self, text: str) -> int:
        return len(text)
