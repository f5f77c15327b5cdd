"""The text that recovery trains on: what the 16-bit model writes itself, and the user's own files.

Every window has the same number of tokens and is full. Three kinds are written by the model, sampled at
temperature 1 without any filter, because that is the distribution to be kept:

    free      from the token that begins a document: text like that of pre-training
    invented  from an opened user turn: the model asks, answers, and asks again
    answers   from the built-in requests of calibration: its answers, and what it takes to come next

The model is never stopped: after the end of a document or a turn it goes on, so that windows are packed as in
pre-training. A file is cut into windows one after the other. What is sampled depends on the kind and the
number of a window alone, so an interrupted run goes on where it was, and ends with the same bytes.

A store is a folder: `manifest.json`, `train.i32` and `held_out.i32`, both [windows, window] little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pomona.data.builtin_text import calibration_prompts
from pomona.errors import PomonaError
from pomona.models.model_directory import Progress, parse_json_object, read_json_object, write_json
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.sampling import Sampling

BATCH = 32  # windows that are written together
MIN_WINDOW, MAX_WINDOW = 16, 4096
VERSION = 1
MANIFEST = "manifest.json"

_SHARES = {"free": 0.5, "invented": 0.25, "answers": 0.25}  # of the written tokens; our own choice
_SEED = {"free": 1 << 48, "invented": 2 << 48, "answers": 3 << 48}
_HELD_OUT_SEED = 1 << 40
_DOCUMENT_START = "<|endoftext|>"  # where the tokenizer knows it; else bos, else eos
_MARK = "\x1e"  # stands for a user's words in a template

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class TextOptions:
    """tokens: what the model writes for training; files come on top, whole. held_out: windows of each source
    that are kept for judging (of a file its last ones, a tenth at the most)."""

    tokens: int = 400_000
    window: int = 512
    files: tuple[Path, ...] = ()
    held_out: int = 8

    def __post_init__(self) -> None:
        if not MIN_WINDOW <= self.window <= MAX_WINDOW:
            raise PomonaError(f"window {self.window}: must lie in {MIN_WINDOW} .. {MAX_WINDOW} tokens")
        if self.tokens < 0 or (self.tokens == 0 and not self.files):
            raise PomonaError(
                f"tokens {self.tokens}: no text at all; let the model write some, or give a file"
            )
        if self.held_out < 1:
            raise PomonaError(f"held_out {self.held_out}: at least one window must be kept for judging")


@dataclass(frozen=True)
class Source:
    """Where windows came from: `free`, `invented`, `answers`, or a file's name with the hash of its bytes."""

    name: str
    windows: int
    held_out: int
    sha256: str | None = None


@dataclass(frozen=True)
class RecoveryText:
    """train, held_out: [windows, window] token ids, mapped from the store."""

    folder: Path
    train: Ids
    held_out: Ids
    sources: tuple[Source, ...]
    sha256: str  # of both arrays


class TextPlan:
    """What the text will be made of. Reads the files at once: what is wrong with them is said early."""

    def __init__(self, model: Path | str, options: TextOptions) -> None:
        """Raises PomonaError: a file that is empty, too short or no UTF-8; fewer tokens than a window."""
        self.model, self.options = Path(model), options
        self.tokenizer = Tokenizer.from_directory(self.model)
        files = [_read_file(path, self.tokenizer, options) for path in options.files]
        self._files = {source.name: windows for source, windows in files}
        if len(self._files) < len(files):
            raise PomonaError("two text files have the same name and content; give each once")
        self.sources = [source for source, _ in files]
        for kind, windows in _written(self.tokenizer, options).items():
            self.sources.append(Source(kind, windows, options.held_out))
        self.manifest = {
            "version": VERSION,
            "model": describe(self.model).fingerprint,
            "window": options.window,
            "sources": [asdict(source) for source in self.sources],
        }

    @property
    def key(self) -> str:
        """A short name: equal text, equal name."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:12]

    def prepare(
        self, folder: Path, *, threads: int | None = None, progress: Progress | None = None
    ) -> RecoveryText:
        """The text in `folder`: made, completed, or only read. PomonaError if that holds another text."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / MANIFEST
        if path.exists():
            if read_json_object(path) != self.manifest:
                raise PomonaError(f"{folder}: holds another text; choose another work folder")
        else:
            write_json(path, self.manifest)
        writer: _Writer | None = None
        total = sum(source.windows + source.held_out for source in self.sources)
        done = 0
        for name in ("held_out", "train"):
            with _Store(folder / f"{name}.i32", self.options.window) as store:
                end = 0
                for source in self.sources:
                    begin, end = end, end + (source.windows if name == "train" else source.held_out)
                    while len(store) < end:
                        numbers = range(len(store) - begin, min(len(store) - begin + BATCH, end - begin))
                        if source.name in self._files:
                            at = numbers.start + (0 if name == "train" else source.windows)
                            store.append(self._files[source.name][at : at + len(numbers)])
                        else:
                            writer = writer or _Writer(self.model, self.tokenizer, self.options, threads)
                            store.append(writer.write(source.name, numbers, held_out=name == "held_out"))
                        if progress is not None:
                            progress("write text", done + len(store), total)
                done += len(store)
        return self._opened(folder)

    def _opened(self, folder: Path) -> RecoveryText:
        digest = hashlib.sha256()
        arrays = []
        for name in ("train", "held_out"):
            array = np.memmap(folder / f"{name}.i32", "<i4", "r").reshape(-1, self.options.window)
            digest.update(array.data)
            arrays.append(array)
        return RecoveryText(folder, arrays[0], arrays[1], tuple(self.sources), digest.hexdigest())


class _Store:
    """A file of whole windows that grows at its end; half a window that an interruption left is cut off."""

    def __init__(self, path: Path, window: int) -> None:
        self._file = path.open("ab")
        self._bytes = 4 * window
        self._count = self._file.tell() // self._bytes
        self._file.truncate(self._count * self._bytes)

    def __len__(self) -> int:
        return self._count

    def append(self, windows: Ids) -> None:
        self._file.write(np.ascontiguousarray(windows, "<i4").data)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._count += len(windows)

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


# --- what the model writes


def _written(tokenizer: Tokenizer, options: TextOptions) -> dict[str, int]:
    """kind -> windows for training. Without a chat template all is free."""
    shares = _SHARES if _opened_user_turn(tokenizer) is not None else {"free": 1.0}
    counts = {kind: round(options.tokens * share / options.window) for kind, share in shares.items()}
    if options.tokens and not any(counts.values()):
        raise PomonaError(f"tokens {options.tokens}: do not fill a window of {options.window}; ask for more")
    return {kind: count for kind, count in counts.items() if count}


def _opened_user_turn(tokenizer: Tokenizer) -> str | None:
    """The template's text up to the place where the user's words begin."""
    if tokenizer.chat_template is None:
        return None
    text = tokenizer.chat_template.render([{"role": "user", "content": _MARK}], add_generation_prompt=True)
    return text.partition(_MARK)[0] if text.count(_MARK) == 1 else None


def document_start(tokenizer: Tokenizer) -> int | None:
    """The token that stands before a document, if there is one."""
    ends = tokenizer.eos_token_ids
    known = tokenizer.token_to_id(_DOCUMENT_START)
    return next((t for t in (known, tokenizer.bos_token_id, *ends[:1]) if t is not None), None)


class _Writer:
    def __init__(self, model: Path, tokenizer: Tokenizer, options: TextOptions, threads: int | None) -> None:
        self._window = options.window
        self._engine = Engine.load(model, threads=threads, kv_tokens=BATCH * (options.window + 64))
        context = self._engine.config.max_position_embeddings
        if options.window > context:
            raise PomonaError(
                f"window {options.window}: the model's context has {context} tokens; choose less"
            )
        start = document_start(tokenizer)
        self._start = [] if start is None else [start]
        invented = _opened_user_turn(tokenizer)
        self._invented = [] if invented is None else tokenizer.encode(invented)
        template = tokenizer.chat_template
        prompts = [] if template is None else calibration_prompts()
        self._answers = [
            tokenizer.encode(template.render(prompt.messages, add_generation_prompt=True))
            for prompt in prompts
            if template is not None
        ]

    def write(self, kind: str, numbers: range, *, held_out: bool) -> Ids:
        """[numbers, window]: these windows of a kind."""
        base = _SEED[kind] + (_HELD_OUT_SEED if held_out else 0)
        opened = [self._opening(kind, number, base + number) for number in numbers]
        sequences = [self._engine.new_sequence() for _ in numbers]
        windows = [list(tokens[: self._window]) for tokens in opened]
        try:
            pending = {i: tokens for i, tokens in enumerate(windows) if len(tokens) < self._window}
            while pending:
                inputs = [
                    StepInput(sequences[i], tokens, Sampling(temperature=1.0, seed=base + numbers[i]))
                    for i, tokens in pending.items()
                ]
                sampled = self._engine.step(inputs)
                for i, token in zip(pending, sampled, strict=True):
                    windows[i].append(token)
                pending = {i: windows[i][-1:] for i in pending if len(windows[i]) < self._window}
        finally:
            for sequence in sequences:
                sequence.close()
        return np.array(windows, np.int32)

    def _opening(self, kind: str, number: int, seed: int) -> list[int]:
        if kind == "invented":
            return self._invented
        if kind == "answers":
            return self._answers[number % len(self._answers)]
        if self._start:
            return self._start
        # A tokenizer without any such token: documents begin with a word drawn at random.
        return [int(np.random.default_rng(seed).integers(self._engine.config.vocab_size))]


# --- the user's files


def _read_file(path: Path, tokenizer: Tokenizer, options: TextOptions) -> tuple[Source, Ids]:
    """The windows of a file, those for judging at the end."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PomonaError(
            f"{path}: cannot be read as UTF-8 text ({error}); give a plain text file"
        ) from error
    start = document_start(tokenizer)
    ids: list[int] = []
    for document in _documents(path, text, tokenizer):
        ids += [] if start is None else [start]
        ids += document
    count = len(ids) // options.window
    if count < 2:
        raise PomonaError(
            f"{path}: {len(ids)} tokens; a file needs two windows of {options.window} at the least"
        )
    held_out = min(options.held_out, max(count // 10, 1))
    windows = np.array(ids[: count * options.window], np.int32).reshape(count, options.window)
    digest = hashlib.sha256(raw).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", path.name) + "#" + digest[:8]
    return Source(name, count - held_out, held_out, digest), windows


def _documents(path: Path, text: str, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Token ids of each document: of a .jsonl each line's "text" or "messages", else the whole file."""
    if path.suffix != ".jsonl":
        if text.strip():
            yield tokenizer.encode(text, parse_special=False)
        return
    template = tokenizer.chat_template
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        record = parse_json_object(line.encode(), f"{path}, line {number}")
        if isinstance(record.get("text"), str):
            yield tokenizer.encode(record["text"], parse_special=False)
        elif isinstance(record.get("messages"), list) and template is not None:
            yield tokenizer.encode(template.render(record["messages"], add_generation_prompt=False))
        else:
            raise PomonaError(
                f'{path}, line {number}: has neither "text" nor "messages" that the model\'s chat template '
                "can show; give one of them"
            )
