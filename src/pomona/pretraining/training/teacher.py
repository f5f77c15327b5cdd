"""Runs the teacher over the windows of a stage and keeps its likeliest tokens (teacher_ids.py).

Only windows whose record is not in the cache yet are computed. The teacher is sharded over the job as any
model is (FSDP2), and gone before the student is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pomona.data.mixture import PackedMixture
from pomona.data.pack import tokenizer_sha256
from pomona.errors import PomonaError
from pomona.models.model_directory import Progress
from pomona.pretraining.start import ModelWeights
from pomona.pretraining.teacher_ids import MixtureTeacher, open_mixture_teacher
from pomona.pretraining.training.model import build_model, reshard, values_from
from pomona.pretraining.training.stage import Processes, device_mesh

Precision = Literal["float32", "bfloat16"]


def teach(
    windows: PackedMixture,
    directory: Path,
    cache: Path,
    *,
    precision: Precision,
    batch: int,
    processes: Processes,
    progress: Progress = lambda label, done, total: None,
) -> tuple[MixtureTeacher, str]:
    """The teacher's tokens for all windows, and the teacher's fingerprint. All processes
    must call it.

    An interrupted call loses nothing that was computed. PomonaError: the teacher's tokenizer is another one,
    the cache belongs to another teacher or other data, or a file is damaged.
    """
    if tokenizer_sha256(directory) != windows.tokenizer:
        raise PomonaError(
            f"{directory}: the teacher has another tokenizer than the packed tokens; a teacher and its "
            "student need the same one"
        )
    with ModelWeights(directory) as weights:
        mark = weights.fingerprint

        def opened(create: bool) -> MixtureTeacher:
            return open_mixture_teacher(windows, cache, teacher=mark, precision=precision, create=create)

        if processes.main:
            opened(create=True)
        processes.wait()
        teacher = opened(create=False)
        mine = teacher.missing(processes.rank, processes.world)
        processes.wait()  # none writes before all have looked
        passes = _largest(-(-len(mine) // batch), processes.world)
        if passes:
            model = _model(weights, precision, processes.world)
            for number in range(passes):
                progress("teacher", number, passes)
                own = mine[number * batch : (number + 1) * batch]
                # A process without windows left goes along all the same: sharded passes are common ones.
                rows_BS = np.stack([windows[index] for index in own or [0]])[:, :-1]
                ids_BS = likeliest(model, rows_BS, windows.vocab_size, precision)
                teacher.put(own, ids_BS[: len(own)])
            progress("teacher", passes, passes)
        processes.wait()
    return teacher, mark


def likeliest(
    model: Any, rows_BS: NDArray[np.int64], vocab_size: int, precision: Precision
) -> NDArray[np.int64]:
    """The likeliest next token at every position, int64 [B, S]. A vocabulary that was rounded up for its
    matrix has entries beyond `vocab_size`, which are no tokens."""
    device = next(model.parameters()).device
    with (
        torch.no_grad(),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        logits_BSV = model(input_ids=torch.as_tensor(rows_BS, device=device), use_cache=False).logits
    reshard(model)
    ids_BS: NDArray[np.int64] = logits_BSV[..., :vocab_size].argmax(-1).cpu().numpy()
    return ids_BS


def _model(weights: ModelWeights, precision: Precision, world: int) -> Any:
    compute = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = build_model(weights.config, values_from(weights), mesh=device_mesh(world), compute=compute)
    if world == 1 and torch.cuda.is_available():
        model.to("cuda")
    return model.eval()


def _largest(value: int, world: int) -> int:
    if world == 1:
        return value
    found = torch.tensor(value, device="cuda" if torch.cuda.is_available() else "cpu")
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)
