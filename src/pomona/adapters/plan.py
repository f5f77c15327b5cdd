"""What an adaptation is going to do, told before it starts: rows, steps, memory, time."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pomona.adapters.options import PASS_TOKENS
from pomona.adapters.packing import Split
from pomona.compression.training.options import LoopOptions
from pomona.models.config import ModelConfig

_PROCESS_BYTES = 400 << 20  # Python with torch
_JUDGED_COST = 0.4  # about: of a token that is only read, against one that is learnt from


@dataclass(frozen=True)
class Plan:
    """start: `recovery`, `zero`, or an adapter and its hash; with start_note, the reason. *_tokens: that the
    network reads in an epoch, prompts included; answer_tokens: those of them that are learnt. seconds: None
    until a pass was timed."""

    rows: int
    held_out_rows: int
    tokens: int
    answer_tokens: int
    held_out_tokens: int
    longest: int
    window: int
    start: str
    start_note: str
    loop: LoopOptions
    memory_bytes: int
    endless_rows: int = 0  # whose answers end without an end token, so that stopping is not learnt
    seconds: float | None = None
    evaluations: int = 1

    @property
    def steps(self) -> int:
        return max(self.rows * self.loop.passes // self.loop.batch, 1)

    def timed(self, seconds_per_token: float, every: int) -> Plan:
        """With the time of the whole run, its evaluations (one per `every` steps) included. A time budget
        bounds it."""
        evaluations = 1 + math.ceil(self.steps / every)
        tokens = self.steps * self.loop.batch * self.tokens / self.rows
        seconds = seconds_per_token * (tokens + _JUDGED_COST * evaluations * self.held_out_tokens)
        if self.loop.minutes is not None:
            seconds = min(seconds, 60 * self.loop.minutes)
        return replace(self, seconds=seconds, evaluations=evaluations)

    def to_json(self) -> dict[str, Any]:
        loop = asdict(self.loop)
        return {
            **asdict(self),
            "loop": {**loop, "alpha": self.loop.scale * self.loop.rank},
            "steps": self.steps,
        }


def make_plan(
    rows: Split,
    config: ModelConfig,
    loop: LoopOptions,
    *,
    window: int,
    start: tuple[str, str],
    endless: int = 0,
) -> Plan:
    longest = max(row.tokens for row in (*rows.train, *rows.held_out))
    return Plan(
        rows=len(rows.train),
        held_out_rows=len(rows.held_out),
        tokens=sum(row.tokens for row in rows.train),
        answer_tokens=sum(row.answers for row in rows.train),
        held_out_tokens=sum(row.tokens for row in rows.held_out),
        longest=longest,
        window=window,
        start=start[0],
        start_note=start[1],
        loop=loop,
        memory_bytes=memory_bytes(config, loop.rank, longest),
        endless_rows=endless,
    )


def memory_bytes(config: ModelConfig, rank: int, longest: int) -> int:
    """About the peak of a run's resident memory, from the shapes: the larger of loading and of a pass with
    rows of the longest kind."""
    shapes = config.linear_shapes().values()
    weights = sum(rows * columns for rows, columns in shapes)
    adapter = rank * sum(rows + columns for rows, columns in shapes)
    table = config.vocab_size * config.hidden_size
    tables = table if config.tie_word_embeddings else 2 * table
    loading = 4 * (weights + tables) + 2 * weights
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    kept = 2 * (
        2 * config.hidden_size + 3 * config.intermediate_size + 3 * heads * width + 2 * groups * width
    )
    kept += 2 * heads * longest  # probabilities
    if config.qk_norm:
        kept += 4 * (heads + groups) * width
    tokens = max(PASS_TOKENS, longest)
    # The embedding in float32, the head, the base's weights and those with the adapter; values, gradients,
    # best ones and the optimizer's two moments of the adapter.
    training = 4 * table + 2 * table + 4 * weights + 20 * adapter
    training += tokens * (config.num_hidden_layers * kept + 16 * config.hidden_size)
    return _PROCESS_BYTES + max(loading, training)


def free_memory_bytes() -> int | None:
    """What a new process could have, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return 1024 * int(values["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
