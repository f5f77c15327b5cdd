"""The text that says which inputs matter: the model's own answers, or a file of the user's (AFM report 6.2).

Without a text of the user's own, the model answers the built-in prompts, so that no data set is needed. A
part is held out: what is fitted to the rest can be judged on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pomona.data.builtin_text import calibration_prompts
from pomona.errors import PomonaError
from pomona.models.model_directory import Progress
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.sampling import Sampling

CALIBRATION_TOKENS = 16_384
ANSWER_TOKENS = 192  # of one answer at the most
BATCH = 16  # sequences that answer together
WINDOW = 1024  # tokens of a file that are read together
MIN_TOKENS = 64
HELD_OUT = 8  # one prompt in eight, or the last eighth of a file

Windows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CalibrationText:
    """Token sequences, each of which begins a context. `source`: "self", or the path of the file."""

    windows: Windows
    held_out: Windows
    source: str

    @property
    def tokens(self) -> int:
        return sum(map(len, self.windows)) + sum(map(len, self.held_out))

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "source": self.source,
            "windows": [list(w) for w in self.windows],
            "held_out": [list(w) for w in self.held_out],
        }

    @classmethod
    def from_json(cls, raw: object, where: str = "calibration") -> CalibrationText:
        """PomonaError that begins with `where` for anything that to_json() does not write."""
        if (
            not isinstance(raw, dict)
            or set(raw) != {"version", "source", "windows", "held_out"}
            or raw["version"] != 1
            or not isinstance(raw["source"], str)
            or not all(_are_windows(raw[key]) for key in ("windows", "held_out"))
            or not raw["windows"]
        ):
            raise PomonaError(f"{where}: is no calibration text of this version; delete it and start again")
        windows, held_out = (tuple(map(tuple, raw[key])) for key in ("windows", "held_out"))
        return cls(windows, held_out, raw["source"])


def _are_windows(raw: object) -> bool:
    return isinstance(raw, list) and all(
        isinstance(window, list)
        and window
        and all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in window)
        for window in raw
    )


def calibration_text(
    engine: Engine,
    tokenizer: Tokenizer,
    text: str | Path = "self",
    *,
    tokens: int = CALIBRATION_TOKENS,
    progress: Progress | None = None,
) -> CalibrationText:
    """About `tokens` tokens (a file gives at most so many), held-out ones counted.

    text: "self", the built-in prompts and the engine's own answers, sampled with fixed seeds (fewer tokens
    where answers end by themselves); or a UTF-8 file.
    The same engine and text give the same tokens for any number of threads. Raises PomonaError: a file that
    cannot be read or is shorter than 64 tokens, a tokenizer that is not the model's.
    """
    if tokens < MIN_TOKENS:
        raise PomonaError(f"{tokens} calibration tokens are too few; ask for at least {MIN_TOKENS}")
    if text == "self":
        return _own_answers(engine, tokenizer, tokens, progress)
    return _from_file(engine, tokenizer, Path(text), tokens)


def first_tokens(windows: Windows, tokens: int) -> Windows:
    """The first windows, so many that they have about `tokens` tokens; at least one."""
    total, kept = 0, 0
    while kept < len(windows) and total < tokens:
        total += len(windows[kept])
        kept += 1
    return windows[:kept]


def content_stamp(calibration: str) -> str:
    """What tells one calibration text from another: "self", "none", or the hash of a file."""
    if calibration in ("self", "none"):
        return calibration
    try:
        return hashlib.sha256(Path(calibration).read_bytes()).hexdigest()
    except OSError as error:
        raise PomonaError(
            f"{calibration}: cannot be read as UTF-8 text ({error}); give a plain text file"
        ) from error


def _own_answers(
    engine: Engine, tokenizer: Tokenizer, tokens: int, progress: Progress | None
) -> CalibrationText:
    template = tokenizer.chat_template
    texts = [
        template.render(p.messages, add_generation_prompt=True) if template else p.user + "\n"
        for p in calibration_prompts()
    ]
    room = max(engine.config.max_position_embeddings - ANSWER_TOKENS, 1)  # of a very short context
    prompts = [tokenizer.encode(text)[:room] for text in texts]
    asked = sum(map(len, prompts))
    rounds = -(-tokens // (asked + ANSWER_TOKENS * len(prompts)))
    length = min(max((tokens // rounds - asked) // len(prompts), 2), ANSWER_TOKENS)
    windows: list[tuple[int, ...]] = []
    held_out: list[tuple[int, ...]] = []
    total, done = rounds * length * len(prompts), 0
    for number in range(rounds * len(prompts)):
        if number % BATCH:
            continue
        group = [prompts[i % len(prompts)] for i in range(number, min(number + BATCH, rounds * len(prompts)))]
        sequences = [list(prompt) for prompt in group]
        for step in _answer_together(engine, sequences, length, number, tokenizer.eos_token_ids):
            done += step
            if progress is not None:
                progress("answer", min(done, total), total)
        for index, sequence in enumerate(sequences, number):
            held = index % len(prompts) % HELD_OUT == HELD_OUT - 1
            (held_out if held else windows).append(tuple(sequence))
    if progress is not None:
        progress("answer", total, total)
    return CalibrationText(tuple(windows), tuple(held_out), "self")


def _answer_together(
    engine: Engine, texts: list[list[int]], length: int, seed: int, stop: Sequence[int]
) -> Iterator[int]:
    """Appends an answer to every text; yields, after every step, how many tokens it was at the most."""
    sequences = [engine.new_sequence() for _ in texts]
    try:
        pending = {i: list(text) for i, text in enumerate(texts)}
        limit = engine.config.max_position_embeddings - max(map(len, texts)) + 1
        for _ in range(min(length, limit)):
            inputs = [
                StepInput(sequences[i], tokens, Sampling(temperature=1.0, top_p=0.95, seed=seed + i))
                for i, tokens in pending.items()
            ]
            sampled = engine.step(inputs)
            yield len(texts)
            pending = {i: [token] for i, token in zip(pending, sampled, strict=True) if token not in stop}
            for i, (token,) in pending.items():
                texts[i].append(token)
            if not pending:
                return
    finally:
        for sequence in sequences:
            sequence.close()


def _from_file(engine: Engine, tokenizer: Tokenizer, path: Path, tokens: int) -> CalibrationText:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PomonaError(
            f"{path}: cannot be read as UTF-8 text ({error}); give a plain text file"
        ) from error
    # No tokenizer makes a token of so many characters on average; the rest of a large file is not looked at.
    ids = tokenizer.encode(text[: 64 * tokens])[:tokens]
    if len(ids) < MIN_TOKENS:
        raise PomonaError(
            f"{path}: {len(ids)} tokens are too few to calibrate on; give at least {MIN_TOKENS}"
        )
    if max(ids) >= engine.config.vocab_size:
        raise PomonaError(
            f"{path}: token id {max(ids)} is outside the vocabulary of {engine.config.vocab_size:,}; "
            "the tokenizer is not this model's"
        )
    window = min(WINDOW, engine.config.max_position_embeddings)
    cut = len(ids) - len(ids) // HELD_OUT
    windows, held_out = (
        tuple(tuple(part[start : start + window]) for start in range(0, len(part), window))
        for part in (ids[:cut], ids[cut:])
    )
    return CalibrationText(windows, held_out, str(path))
