"""An adapter for a new base: the old base with its adapter teaches the new one, on the task's own prompts.

    rebase("summarize", old, new, data=Path("prompts.jsonl"))

An adapter belongs to one base, so a base that changes (compressed anew, trained on) leaves its adapters
behind. Here the old pair writes the answers to the prompts on our engine, and the new adapter is distilled
from the old pair's distributions over these answers; it begins with the old one's values where the shapes are
the same. Needed are the same tokenizer and prompts of the task; the data of the first training are not.
This is our own procedure; the AFM report trains its adapters again for every base.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.adapters import store
from pomona.adapters.metadata import AdapterRecord, read_record
from pomona.compression.training.options import LoopOptions, Point
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.fence import Fence
from pomona.models.model_directory import Progress, parse_json_object
from pomona.models.palettized import describe
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.adapter_file import WEIGHTS_FILE, AdapterFile, read_adapter
from pomona.runtime.adapter_writer import write_adapter
from pomona.runtime.adapters import LoadedAdapter, load_adapter
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.model import ADAPTERS_FOLDER, RECOVERY
from pomona.runtime.sampling import Sampling

WRITTEN_TOGETHER = 16  # answers in one step of the engine
MAX_DATA_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 20
_ROLES = ("system", "user", "assistant")

OnPoint = Callable[[Point, float | None], None]


@dataclass(frozen=True)
class RebaseOptions:
    """answer_tokens: of one answer at most. temperature: at which the old pair writes; 0: its likeliest
    answer. held_out: the share of the prompts that judge. Our own choices, like those of the loop."""

    answer_tokens: int = 256
    temperature: float = 0.7
    held_out: float = 0.1
    passes: int = 3
    lr: float = 5e-4
    batch: int = 8  # prompts of one optimizer step
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.answer_tokens <= 8192:
            raise PomonaError(f"answer_tokens {self.answer_tokens}: must lie in 1 .. 8192")
        if not 0 <= self.temperature <= 5:
            raise PomonaError(f"temperature {self.temperature}: must lie in 0 .. 5")
        if not 0 < self.held_out < 1:
            raise PomonaError(f"held_out {self.held_out}: must lie between 0 and 1")

    def loop(self, rank: int, alpha: float) -> LoopOptions:
        return LoopOptions(
            rank=rank,
            alpha=alpha,
            lr=self.lr,
            batch=self.batch,
            accumulate=1,
            passes=self.passes,
            minutes=self.minutes,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Conversation:
    """ids: a prompt of `prompt` tokens and the old pair's answer to it, its end token included."""

    ids: NDArray[np.int32]
    prompt: int

    @property
    def tokens(self) -> int:
        """That a network reads: all but the last."""
        return len(self.ids) - 1

    @property
    def places(self) -> slice:
        """Of the tokens read, those whose state foretells a token of the answer."""
        return slice(self.prompt - 1, self.tokens)


@dataclass(frozen=True)
class RebaseReport:
    """KL in nats per token of the answers to held-out prompts, from the old pair to the new base: alone, with
    the old adapter's values as they are (None: the shapes differ), with the new adapter. `directory`: None if
    nothing was better than the base alone and nothing was written."""

    directory: Path | None
    old_fingerprint: str
    new_fingerprint: str
    base_kl: float
    carried_kl: float | None
    kl: float
    same_top: float
    prompts: int
    held_out: int
    answer_tokens: int
    seconds: float
    stopped: str
    curve: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self)}


def rebase(
    adapter: str,
    old: Path | str,
    new: Path | str,
    *,
    data: Path | str,
    name: str | None = None,
    work: Path | str | None = None,
    options: RebaseOptions | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    on_point: OnPoint | None = None,
) -> RebaseReport:
    """Trains NEW/adapters/NAME to answer as `adapter` of the model `old` does. name: by default the same.

    data: JSONL; of each line `messages` up to the last turn of the user, or `prompt`. The task's instructions
    (from the adapter's record) go before a conversation that has no system message.
    work: a folder for the run's curve and checkpoint, by default one that is deleted.
    Raises PomonaError: no torch, no such adapter, another tokenizer, the same base, prompts that cannot be
    used, an adapter that is there already, values that are not finite.
    """
    if importlib.util.find_spec("torch") is None:
        raise PomonaError("rebase: needs torch, which is not installed; run: pip install 'pomona[train]'")
    old, new, data, options = Path(old), Path(new), Path(data), options or RebaseOptions()
    directory = store.find(old, adapter)
    target = new / ADAPTERS_FOLDER / store.check_name(name or adapter)
    if target.name == RECOVERY:
        raise PomonaError(f"{RECOVERY}: is trained against the 16-bit model; use pomona recover")
    if target.exists() and not overwrite:
        raise PomonaError(f"{target}: is there already; ask to overwrite it, or choose another name")
    marks = describe(old).fingerprint, describe(new).fingerprint
    _check_bases(old, new, marks)
    file = read_adapter(directory, ModelConfig.from_directory(old), marks[0])
    store.check_values(file)
    record = read_record(directory) or AdapterRecord()
    prompts = read_prompts(data, record.prompt.instructions if record.prompt else None)

    import torch

    from pomona.adapters.training.rebase_trainer import distil

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    conversations = write_answers(old, directory, prompts, options, threads=threads, progress=progress)
    train, held_out = _split(conversations, options.held_out)
    alpha = file.rank * next(iter(file.scales.values()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if work is None else Path(work)
        folder.mkdir(parents=True, exist_ok=True)
        result = distil(
            old,
            file,
            new,
            (train, held_out),
            options.loop(file.rank, alpha),
            folder,
            progress=progress,
            on_point=on_point,
        )
    outcome, best = result.outcome, result.outcome.best
    written = None
    if outcome.improved:
        made = _record(record, marks, file, data, (len(train), len(held_out)), options, outcome.points)
        written = write_adapter(
            target, result.pairs, scale=alpha / file.rank, record=made.to_json(), overwrite=overwrite
        )
    return RebaseReport(
        written,
        *marks,
        outcome.start.held_out_kl,
        outcome.points[1].held_out_kl if result.carried else None,
        best.held_out_kl,
        best.same_top,
        len(train),
        len(held_out),
        sum(len(c.ids) - c.prompt for c in conversations),
        result.seconds,
        outcome.stopped,
        outcome.points,
    )


def _check_bases(old: Path, new: Path, marks: tuple[str, str]) -> None:
    if marks[0] == marks[1]:
        raise PomonaError(
            f"{new}: is the base of the adapter already ({marks[0]}); copy it with pomona adapters add"
        )
    vocabularies = []
    for path in (old, new):
        try:
            vocabularies.append((path / "tokenizer.json").read_bytes())
        except OSError as error:
            raise PomonaError(f"{path}: has no tokenizer.json; pull the model again") from error
    sizes = [ModelConfig.from_directory(path).vocab_size for path in (old, new)]
    if vocabularies[0] != vocabularies[1] or sizes[0] != sizes[1]:
        raise PomonaError(
            f"{new}: has another tokenizer than {old}, so the two cannot be compared token by token; "
            "train the adapter anew on its data"
        )


# --- prompts and answers


def read_prompts(path: Path, instructions: str | None) -> list[list[dict[str, str]]]:
    """The conversations of a JSONL file, each up to the last turn of the user. PomonaError names the line."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_DATA_BYTES + 1)
    except OSError as error:
        raise PomonaError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if len(raw) > MAX_DATA_BYTES:
        raise PomonaError(
            f"{path}: is larger than {MAX_DATA_BYTES >> 30} GiB; a few thousand prompts will do"
        )
    found = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            found.append(_prompt(line, f"{path}, line {number}", instructions))
    if len(found) < 2:
        raise PomonaError(f"{path}: holds {len(found)} prompts; two are needed, and hundreds are good")
    return found


def _prompt(line: bytes, source: str, instructions: str | None) -> list[dict[str, str]]:
    if len(line) > MAX_LINE_BYTES:
        raise PomonaError(f"{source}: is longer than {MAX_LINE_BYTES >> 20} MiB; give it in parts")
    row = parse_json_object(line, source)
    messages = row.get("messages", row.get("prompt"))
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    sound = isinstance(messages, list) and all(
        isinstance(m, dict) and m.get("role") in _ROLES and isinstance(m.get("content"), str)
        for m in messages
    )
    if not sound:
        raise PomonaError(f'{source}: has neither "messages" of role and content nor a "prompt"; give one')
    assert isinstance(messages, list)
    taken = [{"role": m["role"], "content": m["content"]} for m in messages]
    while taken and taken[-1]["role"] == "assistant":
        taken.pop()
    if not taken or taken[-1]["role"] != "user":
        raise PomonaError(f"{source}: has no turn of the user to answer; leave the line out")
    if instructions and taken[0]["role"] != "system":
        taken.insert(0, {"role": "system", "content": instructions})
    return taken


def write_answers(
    old: Path,
    adapter: Path,
    prompts: Sequence[Sequence[dict[str, str]]],
    options: RebaseOptions,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Conversation]:
    """What the old base says with its adapter. An answer depends on the number of its prompt and the seed."""
    tokenizer = Tokenizer.from_directory(old)
    opened = [_opened(tokenizer, messages, old) for messages in prompts]
    context = ModelConfig.from_directory(old).max_position_embeddings
    longest = max(map(len, opened)) + options.answer_tokens
    if longest > context:
        number = 1 + max(range(len(opened)), key=lambda i: len(opened[i]))
        raise PomonaError(
            f"prompt {number}: has {longest - options.answer_tokens:,} tokens, and with "
            f"{options.answer_tokens:,} of the answer does not fit the context of {context:,}; shorten it"
        )
    engine = Engine.load(old, threads=threads, kv_tokens=WRITTEN_TOGETHER * (longest + 64))
    loaded = load_adapter(engine, adapter)
    written: list[Conversation] = []
    for start in range(0, len(opened), WRITTEN_TOGETHER):
        if progress is not None:
            progress("old pair writes", start, len(opened))
        part = opened[start : start + WRITTEN_TOGETHER]
        written += _written(
            engine, loaded, part, (options.seed << 32) + start, set(tokenizer.eos_token_ids), options
        )
    if progress is not None:
        progress("old pair writes", len(opened), len(opened))
    return written


def _opened(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], model: Path) -> list[int]:
    """Token ids up to the opened answer, as the runtime makes them."""
    if tokenizer.chat_template is None:
        raise PomonaError(f"{model}: has no chat template; rebase the adapter of a chat model")
    fence = Fence(tokenizer)
    text = tokenizer.chat_template.render(
        fence.guarded(list(messages)), add_generation_prompt=True, tools=None
    )
    return fence.encode(text)


def _written(
    engine: Engine,
    adapter: LoadedAdapter,
    prompts: Sequence[list[int]],
    seed: int,
    ends: Collection[int],
    options: RebaseOptions,
) -> list[Conversation]:
    """The answers to some prompts, written in common steps."""
    samplings = [Sampling(temperature=options.temperature, seed=seed + n) for n in range(len(prompts))]
    sequences = [engine.new_sequence(adapter) for _ in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    pending = dict(enumerate(prompts))
    try:
        for _ in range(options.answer_tokens):
            inputs = [StepInput(sequences[i], tokens, samplings[i]) for i, tokens in pending.items()]
            for i, token in zip(pending, engine.step(inputs), strict=True):
                answers[i].append(token)
            pending = {i: answers[i][-1:] for i in pending if answers[i][-1] not in ends}
            if not pending:
                break
    finally:
        for sequence in sequences:
            sequence.close()
    return [
        Conversation(np.array([*prompt, *answer], np.int32), len(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _split(found: Sequence[Conversation], share: float) -> tuple[list[Conversation], list[Conversation]]:
    """Training and held-out conversations: every n-th judges, at least one of each."""
    every = max(min(round(1 / share), len(found)), 2)
    held_out = list(found[every - 1 :: every])
    return [c for number, c in enumerate(found) if number % every != every - 1], held_out


def _record(
    old: AdapterRecord,
    marks: tuple[str, str],
    file: AdapterFile,
    data: Path,
    rows: tuple[int, int],
    options: RebaseOptions,
    points: Sequence[Point],
) -> AdapterRecord:
    """The new adapter's pomona.json: the task's part of the old one, and how it was carried over."""
    best = min(points, key=lambda point: point.held_out_kl)
    kept = {key: getattr(old, key) for key in ("task", "license", "license_note", "prompt")}
    history = {key: getattr(old, key) for key in ("recipe", "data", "metrics", "result", "rebased_from")}
    return AdapterRecord().with_changes(
        **{key: value for key, value in kept.items() if value is not None},
        base_fingerprint=marks[1],
        teacher_fingerprint=marks[0],
        data=[
            {
                "file": data.name,
                "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
                "rows": rows[0],
                "held_out_rows": rows[1],
                "answers": "written by the old base with its adapter",
            }
        ],
        recipe={"loss": "full-vocabulary forward KL to the old base with its adapter", **asdict(options)},
        metrics={
            "held_out_kl": {"before": points[0].held_out_kl, "after": best.held_out_kl},
            "same_top": {"before": points[0].same_top, "after": best.same_top},
            "curve": [[point.tokens, round(point.held_out_kl, 5)] for point in points],
        },
        rebased_from={
            "base_fingerprint": marks[0],
            "adapter": file.directory.name,
            "sha256": store.file_hashes(file.directory)[WEIGHTS_FILE],
            **{key: value for key, value in history.items() if value is not None},
        },
    )
