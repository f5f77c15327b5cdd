"""Which inputs matter: mean squares of every linear layer's inputs, column by column.

The weight of column k in the palettes is E[x_k^2], the diagonal of the input's second moment: the error that
a wrong weight makes in the output grows with it. Without a text of the user's own, the model answers the
built-in prompts and is watched while it does so, so that no data set is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pomona.data.builtin_text import calibration_prompts
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import Progress
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.sampling import Sampling

ANSWER_TOKENS = 96
BATCH = 16  # sequences that answer together
TEXT_TOKENS = 16_384  # of a user's file; more changes nothing any more
WINDOW = 1024
MIN_TOKENS = 64

# Layers that share their input with the one whose name carries its statistics.
_SOURCE = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


def calibrate(
    engine: Engine, tokenizer: Tokenizer, text: str | Path = "self", *, progress: Progress | None = None
) -> dict[str, NDArray[np.float32]]:
    """Linear module -> importance [K], mean 1. `text`: "self", or a UTF-8 file. The head is `lm_head`."""
    engine.native.collect_moments(True)
    try:
        if text == "self":
            _answer_prompts(engine, tokenizer, progress)
        else:
            _read_text(engine, tokenizer, Path(text), progress)
        moments = engine.native.moments()
    finally:
        engine.native.collect_moments(False)
    importance = {name: _normalised(squares / max(rows, 1)) for name, (squares, rows) in moments.items()}
    return {module: importance[_source(module)] for module in [*engine.config.linear_shapes(), "lm_head"]}


def uniform(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Every column counts the same: plain k-means."""
    columns = {module: shape[1] for module, shape in config.linear_shapes().items()}
    columns["lm_head"] = config.hidden_size
    return {module: np.ones(count, np.float32) for module, count in columns.items()}


def _source(module: str) -> str:
    head, _, last = module.rpartition(".")
    return f"{head}.{_SOURCE.get(last, last)}" if head else module


def _normalised(mean_square: NDArray[np.float64]) -> NDArray[np.float32]:
    mean = float(mean_square.mean())
    if not np.isfinite(mean_square).all():
        raise PomonaError(
            "calibration met activations that are not finite; the checkpoint is damaged, pull it again"
        )
    if mean <= 0.0:
        return np.ones(len(mean_square), np.float32)
    # A column that calibration never saw keeps a little weight: other texts may use it.
    return np.maximum(mean_square / mean, 1e-6).astype(np.float32)


def _answer_prompts(engine: Engine, tokenizer: Tokenizer, progress: Progress | None) -> None:
    template = tokenizer.chat_template
    prompts = calibration_prompts()
    texts = [
        template.render(p.messages, add_generation_prompt=True) if template else p.user + "\n"
        for p in prompts
    ]
    total, done = len(texts) * ANSWER_TOKENS, 0
    for start in range(0, len(texts), BATCH):
        room = max(engine.config.max_position_embeddings - ANSWER_TOKENS, 1)  # of a very short context
        group = [tokenizer.encode(text)[:room] for text in texts[start : start + BATCH]]
        for step in _answer_together(engine, group, start, tokenizer.eos_token_ids):
            done += step
            if progress is not None:
                progress("calibrate", min(done, total), total)
    if progress is not None:
        progress("calibrate", total, total)


def _answer_together(
    engine: Engine, prompts: list[list[int]], seed: int, stop: Sequence[int]
) -> Iterator[int]:
    """Yields, after every step, how many tokens it was at the most."""
    sequences = [engine.new_sequence() for _ in prompts]
    try:
        pending = dict(enumerate(prompts))
        limit = engine.config.max_position_embeddings - max(map(len, prompts)) + 1
        for _ in range(min(ANSWER_TOKENS, limit)):
            inputs = [
                StepInput(sequences[i], tokens, Sampling(temperature=1.0, top_p=0.95, seed=seed + i))
                for i, tokens in pending.items()
            ]
            sampled = engine.step(inputs)
            yield len(prompts)
            pending = {i: [token] for i, token in zip(pending, sampled, strict=True) if token not in stop}
            if not pending:
                return
    finally:
        for sequence in sequences:
            sequence.close()


def _read_text(engine: Engine, tokenizer: Tokenizer, path: Path, progress: Progress | None) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PomonaError(
            f"{path}: cannot be read as UTF-8 text ({error}); give a plain text file"
        ) from error
    ids = tokenizer.encode(text)[:TEXT_TOKENS]
    if len(ids) < MIN_TOKENS:
        raise PomonaError(
            f"{path}: {len(ids)} tokens are too few to calibrate on; give at least {MIN_TOKENS}"
        )
    window = min(WINDOW, engine.config.max_position_embeddings)
    for start in range(0, len(ids), window):
        if progress is not None:
            progress("calibrate", start, len(ids))
        engine.score(ids[start : start + window])
    if progress is not None:
        progress("calibrate", len(ids), len(ids))
