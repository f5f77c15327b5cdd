"""The native engine with a model in it: sequences, steps, logits, scores (DESIGN: the runtime).

    engine = Engine.load(Path("smollm2-135m-4bit"))
    with engine.new_sequence() as sequence:
        first = engine.step([StepInput(sequence, prompt_ids)])[0]
        second = engine.step([StepInput(sequence, [first])])[0]

A step takes any mix of prompts and single tokens of many sequences. What it computes for a sequence does not
depend on the others, on the chunking, or on the number of threads.

Shape letters: T tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pomona import _native
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import CONFIG_FILE, read_json_object
from pomona.models.palettized import fingerprint, read_quantization_config
from pomona.models.safetensors_file import Checkpoint
from pomona.runtime.lookup import StepCosts
from pomona.runtime.sampling import Sampling

if TYPE_CHECKING:
    from pomona.runtime.adapters import LoadedAdapter

BATCH_TOKENS = 512  # of one native step; longer prompts go through in chunks
MIN_KV_TOKENS = 8192
MAX_KV_TOKENS = 32768
MAX_THREADS = 1024
KvPrecision = Literal["bf16", "int8"]  # of cached keys and values

_PACKED_TYPES = {"|u1": "U8", "|i1": "I8", "<f2": "F16"}  # of the parts of a packed weight

Mask = NDArray[np.int32] | _native.LateMask


class Sequence:
    """Tokens and their keys and values in the engine's cache. A context manager; close() frees the memory."""

    def __init__(self, engine: Engine, handle: int, adapter: LoadedAdapter | None = None) -> None:
        self._engine = engine
        self._handle = handle
        self.adapter = adapter

    @property
    def length(self) -> int:
        return self._engine.native.length(self.handle)

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def handle(self) -> int:
        if self._handle < 0:
            raise ValueError("the sequence is closed")
        return self._handle

    @property
    def reused_tokens(self) -> int:
        """How many of its tokens were found in the prefix cache."""
        return self._engine.native.reused_tokens(self.handle)

    @property
    def closed(self) -> bool:
        return self._handle < 0

    def truncate(self, length: int) -> None:
        """Forgets the tokens from position `length` on.

        PomonaError, and no change, when the cache has no page for a copy of one that another sequence shares.
        """
        self._engine._call(self._engine.native.truncate, self.handle, length)

    def close(self) -> None:
        if self._handle >= 0:
            self._engine.native.free_sequence(self._handle)
            self._handle = -1
            self.adapter = None

    def __enter__(self) -> Sequence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class StepInput:
    """The tokens that a sequence brings to a step (a prompt, or the last sample), and how to sample.

    drafts: a guess at what follows `tokens`, for `Engine.step_with_drafts`. mask: one bit per token that may
    come next, 32 to a word; None: all may. With drafts it has a row for every place: [1 + drafts, words], the
    first for the place after `tokens`. A LateMask need not be computed yet: sampling waits for it.
    answer_start: how many tokens of the sequence are the prompt's; penalties count those after it. logprobs:
    is filled with the log probabilities of the tokens that the step gives.
    """

    sequence: Sequence
    tokens: Seq[int]
    sampling: Sampling = Sampling()
    mask: Mask | None = None
    drafts: Seq[int] = ()
    answer_start: int = 0
    logprobs: _native.Logprobs | None = None


class Engine:
    """One model on this machine's CPU. Calls may come from several threads; they take turns."""

    def __init__(
        self, directory: Path, config: ModelConfig, native: _native.Engine, checkpoint: Checkpoint
    ) -> None:
        self.directory = directory
        self.config = config
        self.native = native
        self._checkpoint = checkpoint  # the mapping that the native engine reads from

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        threads: int | None = None,
        isa: str = "auto",
        kv_tokens: int | None = None,
        huge_pages: bool = True,
        prefix_cache: bool = False,
        partial_pages: bool = False,
        kv_cache: KvPrecision = "bf16",
        replaced: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Engine:
        """Maps the weights of a model directory.

        threads: default all cores that this process may use. isa: auto, avx512, avx2, neon_dot, neon or
        scalar, which all compute the same bits; or avx512_bf16, which rounds the inputs of 16-bit weights to
        16 bits, too. kv_tokens: room for the tokens of all sequences together. huge_pages: copy packed
        weights into 2 MB pages, which reads them faster and needs their size in memory once more than the
        page cache holds. prefix_cache: keep full pages for later sequences that begin with the same tokens
        under the same adapter version. partial_pages: with it, copy what pages have in common that only begin
        alike; not for servers, for whoever sees how long an answer takes could guess the prompts of others
        token by token.
        kv_cache: bf16, or int8, which takes little more than half of the memory and rounds keys and values.
        replaced: module -> the parts of its packed weight by tensor name (palettized.py), which stand in for
        what the directory holds of it; for measuring what a change would do. checkpoint: of this very
        directory, if it is mapped already: a second mapping would count in memory once more.
        Raises PomonaError that names the file when anything does not fit.
        """
        directory = Path(directory)
        threads = threads or len(os.sched_getaffinity(0))
        _check_options(threads, isa, kv_tokens, kv_cache)
        raw = read_json_object(directory / CONFIG_FILE)
        config = ModelConfig.from_hf(raw, str(directory / CONFIG_FILE))
        read_quantization_config(raw, str(directory / CONFIG_FILE))
        checkpoint = checkpoint or Checkpoint(directory)
        tensors = {
            name: (info.dtype, native_array(checkpoint.array(name)))
            for name, info in checkpoint.tensors.items()
        }
        if config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        for module, parts in (replaced or {}).items():
            for name in [name for name in tensors if name.startswith(f"{module}.weight")]:
                del tensors[name]
            tensors |= {
                name: (_PACKED_TYPES[part.dtype.str], native_array(part)) for name, part in parts.items()
            }
        try:
            native = _native.Engine(
                _shape(config),
                tensors,
                threads,
                isa,
                kv_tokens or min(max(config.max_position_embeddings, MIN_KV_TOKENS), MAX_KV_TOKENS),
                BATCH_TOKENS,
                huge_pages,
                prefix_cache,
                partial_pages,
                kv_cache,
            )
        except ValueError as error:
            raise PomonaError(f"{directory}: {error}; pull or compress the model again") from error
        return cls(directory, config, native, checkpoint)

    def changed(self, replaced: Mapping[str, Mapping[str, NDArray[Any]]], kv_tokens: int) -> Engine:
        """Another engine over the same mapped weights, with modules `replaced` as in load(). What it takes of
        memory is those modules and its cache."""
        return Engine.load(
            self.directory,
            threads=self.threads,
            isa=self.isa,
            kv_tokens=kv_tokens,
            huge_pages=False,
            replaced=replaced,
            checkpoint=self._checkpoint,
        )

    @property
    def threads(self) -> int:
        return self.native.threads

    @property
    def isa(self) -> str:
        return self.native.isa

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads."""
        return self.native.bytes_per_token

    @property
    def native_shape(self) -> dict[str, Any]:
        """The sizes as the native core takes them."""
        return _shape(self.config)

    @cached_property
    def step_costs(self) -> StepCosts:
        """What steps of this engine take, as far as they were observed; shared by all who make drafts."""
        return StepCosts()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the base weights; an adapter belongs to exactly one."""
        raw = read_json_object(self.directory / CONFIG_FILE)
        quantization = read_quantization_config(raw, str(self.directory / CONFIG_FILE))
        return quantization.base_fingerprint if quantization else fingerprint(self._checkpoint)

    def new_sequence(self, adapter: LoadedAdapter | None = None) -> Sequence:
        """An empty sequence, which runs with `adapter` from its first token to its last."""
        native = None if adapter is None else adapter.native
        return Sequence(self, self.native.new_sequence(native), adapter)

    def step(self, inputs: Seq[StepInput]) -> list[int]:
        """Appends every input's tokens and gives one sampled next token for each.

        Raises PomonaError when the cache or the context is full or a token is none of the vocabulary; then no
        sequence has changed.
        """
        self._check_inputs(inputs)
        if any(len(i.drafts) for i in inputs):
            raise PomonaError("drafts give several tokens at once; call step_with_drafts()")
        if sum(len(i.tokens) for i in inputs) <= BATCH_TOKENS:
            return self._native_step([(i, i.tokens) for i in inputs])
        before = [i.sequence.length for i in inputs]
        sampled = [0] * len(inputs)
        pending = {index: list(i.tokens) for index, i in enumerate(inputs)}
        try:
            while pending:
                room, batch = BATCH_TOKENS, []
                for index, tokens in pending.items():
                    batch.append((index, tokens[:room]))
                    room -= len(batch[-1][1])
                    if room == 0:
                        break
                tokens_out = self._native_step([(inputs[index], part) for index, part in batch])
                for (index, part), token in zip(batch, tokens_out, strict=True):
                    pending[index] = pending[index][len(part) :]
                    if not pending[index]:
                        del pending[index]
                        sampled[index] = token
        except BaseException:
            for i, length in zip(inputs, before, strict=True):
                i.sequence.truncate(min(length, i.sequence.length))
            raise
        return sampled

    def step_with_drafts(self, inputs: Seq[StepInput]) -> list[list[int]]:
        """As step(); gives for every input the drafts that were right, from the first on, and one token more.

        A draft is right when it is the very token that sampling gives at its place: the tokens are those of
        steps without drafts, whatever was guessed, and in the sequence are `tokens` and the right drafts. All
        tokens and drafts together fit one native step, BATCH_TOKENS. Where the cache has no room for drafts,
        the step goes without them. Errors as in step().
        """
        self._check_inputs(inputs)
        count = sum(len(i.tokens) + len(i.drafts) for i in inputs)
        if count > BATCH_TOKENS:
            raise PomonaError(
                f"{count:,} tokens and drafts; a step with drafts takes {BATCH_TOKENS}, bring fewer"
            )
        try:
            result: list[list[int]] = self.native.step([_native_input(i, i.tokens, i.drafts) for i in inputs])
        except MemoryError:
            return [[token] for token in self._native_step([(i, i.tokens) for i in inputs])]
        except ValueError as error:
            raise PomonaError(f"{self.directory.name}: {error}") from error
        return result

    def logits(self, token_ids: Seq[int]) -> NDArray[np.float32]:
        """[T, V]: logits after each token of a fresh sequence."""
        ids = self._ids(token_ids)
        out = np.empty((len(ids), self.config.vocab_size), np.float32)
        with self.new_sequence() as sequence:
            for start in range(0, len(ids), BATCH_TOKENS):
                part = ids[start : start + BATCH_TOKENS]
                self._call(self.native.logits, sequence.handle, part, out[start : start + len(part)])
        return out

    def score(self, token_ids: Seq[int], adapter: LoadedAdapter | None = None) -> NDArray[np.float32]:
        """[T - 1]: log p(token i + 1 | tokens 0 .. i) of a fresh sequence, natural logarithm."""
        ids = self._ids(token_ids)
        targets = np.append(ids[1:], np.int32(-1))
        parts = []
        with self.new_sequence(adapter) as sequence:
            for start in range(0, len(ids), BATCH_TOKENS):
                end = start + BATCH_TOKENS
                parts.append(
                    self._call(self.native.score, sequence.handle, ids[start:end], targets[start:end])
                )
        return np.concatenate(parts)[:-1]

    def reuse(self, sequence: Sequence, tokens: Seq[int]) -> int:
        """Takes what the prefix cache has of an empty sequence's coming tokens; gives how many that is. At
        least one is left to be brought."""
        length: int = self._call(self.native.reuse, sequence.handle, self._ids(tokens))
        return length

    def score_places(
        self, inputs: Seq[StepInput], targets: Seq[Seq[tuple[int, int]]]
    ) -> list[list[tuple[float, bool]]]:
        """Appends every input's tokens and drafts, all of them, and says of its targets how likely they are.

        A target (place, token): place 0 is after `tokens`, place i after draft i. Gives log p, natural
        logarithm, and whether the token is the likeliest one. All together fit BATCH_TOKENS. Errors as in
        step().
        """
        self._check_inputs(inputs)
        native = [_native_input(i, i.tokens, i.drafts) for i in inputs]
        scored: list[list[tuple[float, bool]]] = self._call(self.native.score_places, native, targets)
        return scored

    def run_layers(self, token_ids: Seq[int], first: int, last: int, residual: NDArray[np.float32]) -> None:
        """Runs a fresh text [T] through the layers [first, last) alone, for calibration.

        residual [T, hidden]: what enters layer `first` (not read when it is 0), then what leaves the last.
        `last` one above the number of layers: the final norm runs too, and the head's input is observed.
        """
        self._call(self.native.run_layers, self._ids(token_ids), first, last, residual)

    def distributions(
        self, token_ids: Seq[int], first: int = 0, residual: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint16]:
        """[T, V]: -log p of every next token of a fresh text, in units of 1/2048 nat (down to p = e^-32).

        For `divergences` of other engines. residual [T, hidden]: what enters layer `first`, as run_layers()
        leaves it; layers before it are then not run. It is not read when `first` is 0.
        """
        result: NDArray[np.uint16] = self._call(
            self.native.distributions, self._ids(token_ids), first, residual
        )
        return result

    def divergences(
        self,
        token_ids: Seq[int],
        reference: NDArray[np.uint16],
        first: int = 0,
        residual: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float64]:
        """[T]: KL in nats of this model's next-token distributions from `reference`, another's
        `distributions` of the same text; first and residual as there."""
        result: NDArray[np.float64] = self._call(
            self.native.divergences, self._ids(token_ids), reference, first, residual
        )
        return result

    def profile(self, on: bool) -> None:
        """From now on steps note where their time goes (about 20 ns a product); off: no longer."""
        self.native.profile(on)

    def take_profile(self) -> dict[str, float]:
        """Nanoseconds per module, and of "attention", of all steps since the last call.

        Each is the mean over the threads of the time that they worked on it, so that the sum is at most the
        time of the steps; waiting is in none of them. Empty when no profile is on.
        """
        return self.native.take_profile()

    def _native_step(self, batch: Seq[tuple[StepInput, Seq[int]]]) -> list[int]:
        """One native step: of every input the given part of its tokens."""
        inputs = [_native_input(i, tokens) for i, tokens in batch]
        result: list[list[int]] = self._call(self.native.step, inputs)
        return [tokens[0] for tokens in result]

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except MemoryError as error:
            raise PomonaError(
                f"{error}; close sequences, shorten the prompt, or load with a larger kv_tokens"
            ) from error
        except ValueError as error:
            raise PomonaError(f"{self.directory.name}: {error}") from error

    def _check_inputs(self, inputs: Seq[StepInput]) -> None:
        """Refuses what would otherwise be noticed after a part of a long step was done."""
        seen: set[int] = set()
        for i in inputs:
            if i.sequence.engine is not self:
                raise PomonaError("a sequence of another engine; make it with this engine's new_sequence()")
            if i.sequence.handle in seen:
                raise PomonaError("a sequence appears twice in one step; give each once")
            seen.add(i.sequence.handle)
            if len(i.tokens) == 0:
                raise PomonaError("an input without tokens; give at least one")
            self._check_range(min(i.tokens), max(i.tokens))
            if len(i.drafts) > 0:
                self._check_range(min(i.drafts), max(i.drafts))

    def _check_range(self, low: int, high: int) -> None:
        if low < 0 or high >= self.config.vocab_size:
            wrong = str(low if low < 0 else high)[:40]
            raise PomonaError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size:,}")

    def _ids(self, token_ids: Seq[int]) -> NDArray[np.int32]:
        ids = np.asarray(token_ids)
        if ids.size == 0:
            raise PomonaError("no tokens; give a text of at least one token")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise PomonaError("token ids must be a flat list of whole numbers; encode the text first")
        self._check_range(int(ids.min()), int(ids.max()))
        return np.ascontiguousarray(ids, np.int32)


def _native_input(i: StepInput, tokens: Seq[int], drafts: Seq[int] = ()) -> _native.StepInput:
    mask = i.mask
    handle, sampling = i.sequence.handle, i.sampling.native(i.answer_start)
    if isinstance(mask, _native.LateMask):
        return _native.StepInput(handle, list(tokens), sampling, None, list(drafts), mask, i.logprobs)
    if mask is not None and mask.ndim == 2:  # a row for every place, those of the drafts last
        mask = np.ascontiguousarray(mask[: 1 + len(drafts)]).reshape(-1)
    return _native.StepInput(handle, list(tokens), sampling, mask, list(drafts), None, i.logprobs)


def _check_options(threads: int, isa: str, kv_tokens: int | None, kv_cache: str) -> None:
    if not 1 <= threads <= MAX_THREADS:
        raise PomonaError(f"threads = {threads}: must lie in 1 .. {MAX_THREADS}")
    if kv_tokens is not None and not 1 <= kv_tokens < 1 << 31:
        raise PomonaError(f"kv_tokens = {kv_tokens}: must lie in 1 .. {(1 << 31) - 1}")
    if kv_cache not in get_args(KvPrecision):
        raise PomonaError(f"kv_cache = {kv_cache!r}: is no precision of the cache; choose bf16 or int8")
    available = f"{_native.available_isas()} {_native.rounding_isas()}".strip()
    if isa not in ("auto", *available.split()):
        raise PomonaError(
            f"instruction set {isa!r} is not available here; choose auto or one of: {available}"
        )


def native_array(array: NDArray[Any]) -> NDArray[Any]:
    """The array as the native core takes it: aligned, and half floats as plain 16-bit words."""
    if array.dtype == np.float16:
        array = array.view(np.uint16)
    return np.require(array, requirements=["C", "A"])


def _shape(config: ModelConfig) -> dict[str, Any]:
    rope = config.rope_scaling
    return {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "ffn": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_positions": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_factor": rope.factor if rope else 0.0,
        "rope_low_freq": rope.low_freq_factor if rope else 1.0,
        "rope_high_freq": rope.high_freq_factor if rope else 4.0,
        "rope_original_positions": float(rope.original_max_position_embeddings if rope else 8192),
        "qk_norm": config.qk_norm,
        "qkv_bias": config.qkv_bias,
        "tied": config.tie_word_embeddings,
    }
