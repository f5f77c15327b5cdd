"""A palettised matrix whose tables and row scales are trained while its indices stay.

    weight[r][k] = table[r / 16][k / C][index[r][k]] * row_scale[r]

The forward pass sees what would be stored: int8 entries with a float16 scale per table, float16 row scales.
The gradient passes through the rounding as if it were not there (straight through), so what is measured is
what is written.

Shape letters: N rows, K columns, G = N / 16 groups, T tables per group, C = K / T columns of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pomona.models.config import ModelConfig
from pomona.models.palettized import GROUP_ROWS, unpack_indices
from pomona.models.safetensors_file import Checkpoint


@dataclass(frozen=True)
class Palette:
    """A palettised matrix: index uint8 [G, T, 16 C], tables (entry * scale) [G, T, 2^b], row scales [N]."""

    index_GTE: Tensor
    tables_GTE: Tensor
    row_scales_N: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        groups, tables, entries = self.index_GTE.shape
        return groups * GROUP_ROWS, tables * entries // GROUP_ROWS


class TrainedTables:
    """`change_GTE` is added to the tables, and row scales are multiplied by 1 + `stretch_N`."""

    def __init__(self, palette: Palette, values: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor]) -> None:
        """values, grads: (change_GTE, stretch_N) and their gradients, views of the trainer's vectors."""
        self.palette = palette
        self.change_GTE, self.stretch_N = values
        self._change_grad, self._stretch_grad = grads

    def stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """(entries int8 [G, T, 2^b], table scales float16 [G, T], row scales float16 [N])"""
        tables = self.palette.tables_GTE + self.change_GTE
        # float16 has no scale below 6e-8; a table of zeros takes any
        scales = (tables.abs().amax(-1) / 127).clamp_(min=6e-8).to(torch.float16)
        entries = (tables / scales.float()[..., None]).round_().clamp_(-127, 127).to(torch.int8)
        rows = (self.palette.row_scales_N * (1 + self.stretch_N)).to(torch.float16)
        return entries, scales, rows

    def weight(self) -> Tensor:
        """[N, K] float32 as it would be stored."""
        entries, scales, rows = self.stored()
        normal_NK = self._spread(entries.float() * scales.float()[..., None])
        return normal_NK * rows.float()[:, None]

    def add_gradient(self, grad_NK: Tensor) -> None:
        """grad_NK: of the weight."""
        palette = self.palette
        normal_NK = self._spread(palette.tables_GTE + self.change_GTE)
        self._stretch_grad.add_((grad_NK * normal_NK).sum(1).mul_(palette.row_scales_N))
        groups, tables, entries = palette.index_GTE.shape
        scaled = grad_NK * (palette.row_scales_N * (1 + self.stretch_N))[:, None]
        by_table = scaled.view(groups, GROUP_ROWS, tables, -1).transpose(1, 2).reshape(-1, entries)
        index = palette.index_GTE.view(-1, entries).long()
        self._change_grad.view(len(index), -1).scatter_add_(1, index, by_table)

    def _spread(self, tables_GTE: Tensor) -> Tensor:
        """[N, K]: for every weight its table's entry."""
        index = self.palette.index_GTE
        groups, tables, entries = index.shape
        flat = tables_GTE.reshape(groups * tables, -1).gather(1, index.view(-1, entries).long())
        blocks = flat.view(groups, tables, GROUP_ROWS, -1).transpose(1, 2)
        return blocks.reshape(groups * GROUP_ROWS, -1)


def read_palettes(directory: Path | str) -> dict[str, Palette]:
    """module -> its palette, for all palettised projections of a model directory."""
    config = ModelConfig.from_directory(directory)
    found = {}
    with Checkpoint(directory) as checkpoint:
        for module in config.linear_shapes():
            if f"{module}.weight_indices" not in checkpoint.tensors:
                continue
            part = {
                name: checkpoint.array(f"{module}.weight_{name}")
                for name in ("indices", "tables", "table_scales", "row_scales")
            }
            found[module] = _palette(part)
    return found


def _palette(part: dict[str, NDArray[Any]]) -> Palette:
    groups, tables, size = part["tables"].shape
    index_NK = unpack_indices(part["indices"], size.bit_length() - 1)
    blocks = index_NK.reshape(groups, GROUP_ROWS, tables, -1).transpose(0, 2, 1, 3)
    values = part["tables"].astype(np.float32) * part["table_scales"].astype(np.float32)[..., None]
    return Palette(
        torch.from_numpy(np.ascontiguousarray(blocks).reshape(groups, tables, -1)),
        torch.from_numpy(values),
        torch.from_numpy(part["row_scales"].astype(np.float32)),
    )
