"""The teacher's last states, computed once and kept on disk: 2 bytes per hidden unit and token.

With them the teacher costs one product with its head per training step. A file grows window by window, so
an interrupted run goes on where it was.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pomona.compression.training.network import Network
from pomona.models.model_directory import Progress

BATCH_TOKENS = 2048


def teacher_states(
    teacher: Network,
    windows: NDArray[np.int32],
    path: Path,
    *,
    label: str = "teacher",
    progress: Progress | None = None,
) -> NDArray[np.uint16]:
    """[windows, S, D]: bfloat16 bits of the state after every token, mapped from `path`."""
    count, length = windows.shape
    width = teacher.config.hidden_size
    size = 2 * length * width
    batch = max(BATCH_TOKENS // length, 1)
    with path.open("ab") as file:
        done = min(file.tell() // size, count)
        file.truncate(done * size)
        while done < count:
            if progress is not None:
                progress(label, done, count)
            ids = torch.from_numpy(np.array(windows[done : done + batch], np.int64))
            states, _ = teacher.forward(ids)
            file.write(states.view(torch.uint16).numpy().tobytes())
            file.flush()
            done += len(ids)
        os.fsync(file.fileno())
    if progress is not None:
        progress(label, count, count)
    return np.memmap(path, np.uint16, "r", shape=(count, length, width))
