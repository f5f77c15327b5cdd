"""The loss that a recipe asks for in a stage: next-token cross-entropy, masks to learn, or a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pomona.data.mixture import PackedMixture
from pomona.models.config import ModelConfig
from pomona.models.model_directory import Progress
from pomona.pretraining.recipe import Recipe, StageSettings
from pomona.pretraining.training.distillation import DistillationLoss
from pomona.pretraining.training.loss import LossFunction
from pomona.pretraining.training.pruning import PruningLoss
from pomona.pretraining.training.stage import Processes
from pomona.pretraining.training.teacher import teach


def recipe_loss(
    recipe: Recipe,
    stage: StageSettings,
    config: ModelConfig,
    windows: PackedMixture,
    out: Path,
    *,
    processes: Processes,
    progress: Progress = lambda label, done, total: None,
) -> tuple[LossFunction | None, dict[str, Any]]:
    """The loss, None for the ordinary one, and what of it a checkpoint of the stage belongs to.

    With a teacher its missing tokens are computed here, before the stage begins. PomonaError as `teach`.
    """
    if stage.prune is not None:
        return PruningLoss(config, stage, stage.prune, recipe.z_loss), {}
    if stage.distill is None:
        return None, {}
    d = stage.distill
    teacher, fingerprint = teach(
        windows,
        recipe.place(d.teacher),
        out / "teacher" if d.cache is None else recipe.place(d.cache),
        precision=recipe.precision,
        batch=d.batch,
        processes=processes,
        progress=progress,
    )
    loss = DistillationLoss(teacher, weight=d.weight, z_weight=recipe.z_loss)
    return loss, {"teacher": fingerprint}
