"""llama.cpp's side of the quality comparison: files from our 16-bit checkpoint, logits, likelihoods.

    files = peer_files(directory, folder, python, importance)      # writes what is missing
    with PeerModel(python, files["Q4_K_M"].path, threads) as model:
        sums = model.compare(windows, reference)

The 16-bit file holds the weights of our own checkpoint, and every quantisation is made from it by llama.cpp's
quantiser. Those marked "imatrix" also get llama.cpp's importance matrix, filled with the input second moments
that our own compression uses. The files have no tokenizer: everyone is given the same tokens.

`python -m benchmarks.quality_peer serve` (in the peer's environment) is what `PeerModel` talks to.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.choices import Item
from benchmarks.common import BenchmarkError
from benchmarks.distributions import ReferenceFile, Sums
from benchmarks.peer import FarEnd, answer_requests, quantise_file, quiet_api

SOURCE = "16bit.gguf"
IMPORTANCE = "importance.json"
SIXTEEN = "F16"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Recipe:
    """One quantisation: llama.cpp's file type; every matrix in that very type?; with an importance matrix?"""

    name: str
    file_type: str
    pure: bool = False
    importance: bool = False

    @property
    def file(self) -> str:
        return self.name.lower().replace(" ", "-") + ".gguf"


def _recipes() -> tuple[Recipe, ...]:
    kinds = ("Q4_K_M", "Q4_0", "IQ4_NL", "Q3_K_M", "Q3_K_S", "IQ3_S", "IQ3_XXS", "Q2_K")
    plain = [Recipe(kind, f"LLAMA_FTYPE_MOSTLY_{kind}") for kind in kinds]
    pure = [Recipe(f"{kind} pure", f"LLAMA_FTYPE_MOSTLY_{kind}", pure=True) for kind in ("Q4_0", "IQ4_NL")]
    weighted = [
        Recipe(f"{one.name} imatrix", one.file_type, one.pure, importance=True)
        for one in (*plain, *pure)
        if one.file_type.endswith(("Q4_K_M", "IQ4_NL", "Q3_K_M", "IQ3_S", "IQ3_XXS", "Q2_K"))
    ]
    return (*plain, *pure, *weighted)


RECIPES = _recipes()


@dataclass(frozen=True)
class PeerFile:
    """A GGUF file. `weight_bytes` of the tensors alone; `types` counts the matrices of each type."""

    name: str
    path: Path
    weight_bytes: int
    weights: int
    projection_bits: float
    types: Mapping[str, int]

    @property
    def bits(self) -> float:
        return 8 * self.weight_bytes / self.weights


# --- the near end: files ---------------------------------------------------------------------------------


def peer_files(
    folder: Path,
    python: Path,
    recipes: Sequence[Recipe],
    write_source: Callable[[Path], None],
    importance: Callable[[], Mapping[str, Sequence[float]]],
    progress: Progress | None = None,
) -> tuple[dict[str, PeerFile], dict[str, str]]:
    """The 16-bit file and one per recipe, written where they are missing; and why some could not be made.

    write_source: writes the 16-bit GGUF; importance: GGUF tensor name -> one number per column. Both are
    called only if a file has to be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / SOURCE
    if not source.is_file():
        write_source(source)
    missing = [one for one in recipes if not (folder / one.file).is_file()]
    refused: dict[str, str] = {}
    if missing:
        if any(one.importance for one in missing) and not (folder / IMPORTANCE).is_file():
            unfinished = folder / f"{IMPORTANCE}.part"
            values = {name: [float(v) for v in row] for name, row in importance().items()}
            unfinished.write_text(json.dumps(values), encoding="utf-8")
            unfinished.replace(folder / IMPORTANCE)
        for done, recipe in enumerate(missing):
            if progress is not None:
                progress("llama.cpp quantises", done, len(missing))
            try:  # a process for each: where llama.cpp gives up on a file it may end its process
                with FarEnd(python, "benchmarks.quality_peer") as far:
                    far.ask(_quantise_request(recipe, folder))
            except BenchmarkError as error:
                refused[recipe.name] = str(error)
        if progress is not None:
            progress("llama.cpp quantises", len(missing), len(missing))
    found = {SIXTEEN: describe_gguf(SIXTEEN, source)}
    for recipe in recipes:
        if recipe.name not in refused:
            found[recipe.name] = describe_gguf(recipe.name, folder / recipe.file)
    return found, refused


def _quantise_request(recipe: Recipe, folder: Path) -> dict[str, Any]:
    return {
        "do": "quantise",
        "source": str((folder / SOURCE).absolute()),
        "target": str((folder / recipe.file).absolute()),
        "file_type": recipe.file_type,
        "pure": recipe.pure,
        "importance": str((folder / IMPORTANCE).absolute()) if recipe.importance else None,
    }


def describe_gguf(name: str, path: Path) -> PeerFile:
    """Sizes and types out of the file's header."""
    from pomona.models.gguf_file import GgufFile

    with GgufFile(path) as file:
        tensors = list(file.tensors.values())

    def weights(chosen: Sequence[Any]) -> int:
        return sum(_product(tensor.shape) for tensor in chosen)

    def size(chosen: Sequence[Any]) -> int:
        return sum(tensor.end - tensor.start for tensor in chosen)

    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
    projections = [tensor for tensor in matrices if tensor.name.startswith("blk.")]
    return PeerFile(
        name,
        path,
        size(tensors),
        weights(tensors),
        8 * size(projections) / max(weights(projections), 1),
        dict(Counter(tensor.type_name for tensor in matrices).most_common()),
    )


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def fallback(recipe: Recipe, types: Mapping[str, int]) -> str | None:
    """Which types stand in for the wanted one, or None where nothing fell back: "90 of 211 matrices ...".

    llama.cpp's mixed types (Q4_K_M) use some wider K-types by design; counted here is only what no K- or
    I-quantisation with blocks of 256 ever chooses by itself.
    """
    wanted = recipe.file_type.removeprefix("LLAMA_FTYPE_MOSTLY_")
    blocks_of_256 = "_K" in wanted or wanted in ("IQ3_S", "IQ3_XXS")
    if not blocks_of_256:
        return None
    substitutes = {kind: count for kind, count in types.items() if kind in _SUBSTITUTES}
    if not substitutes:
        return None
    shown = ", ".join(f"{count} {kind}" for kind, count in substitutes.items())
    return f"{sum(substitutes.values())} of {sum(types.values())} matrices are {shown}"


_SUBSTITUTES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "F16")  # blocks of 32, or none


# --- the near end: a model -------------------------------------------------------------------------------


class PeerModel(FarEnd):
    """One GGUF file in llama.cpp, for logits and likelihoods."""

    def __init__(self, python: Path, model: Path, threads: int, context: int) -> None:
        """Raises BenchmarkError: no such environment, or llama.cpp refuses the file."""
        super().__init__(python, "benchmarks.quality_peer")
        request = {"do": "load", "model": str(model.absolute()), "threads": threads, "context": context}
        try:
            self.facts = self.ask(request)
        except BenchmarkError:
            self.close()
            raise

    def compare(self, window: Sequence[int], reference: ReferenceFile, index: int) -> Sums:
        """Sums of the window `index` of the reference, whose tokens are `window`."""
        request = {
            "do": "compare",
            "tokens": list(window),
            "reference": reference.to_json(),
            "index": index,
        }
        return Sums.from_json(self.ask(request)["sums"])

    def log_likelihoods(self, items: Sequence[Item]) -> list[float]:
        """Of every item's scored tokens, natural logarithm."""
        request = {"do": "score", "items": [[list(item.tokens), item.known] for item in items]}
        return [float(value) for value in self.ask(request)["values"]]


# --- the far end -----------------------------------------------------------------------------------------


class _Server:
    """One model, one sequence at a time."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.context: Any = None
        self.vocabulary = self.room = 0

    def about(self) -> dict[str, Any]:
        import llama_cpp

        return {"version": llama_cpp.__version__}

    def quantise(
        self, source: str, target: str, file_type: str, pure: bool, importance: str | None
    ) -> dict[str, Any]:
        values = json.loads(Path(importance).read_text(encoding="utf-8")) if importance else None
        try:
            quantise_file(self.api, Path(source), Path(target), file_type, pure=pure, importance=values)
        except BenchmarkError as error:
            raise RuntimeError(str(error)) from error
        return {}

    def load(self, model: str, threads: int, context: int) -> dict[str, Any]:
        import llama_cpp

        api = self.api
        handle = api.llama_model_load_from_file(model.encode(), api.llama_model_default_params())
        if not handle:
            raise RuntimeError(f"{model} cannot be loaded")
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = self.room = context
        params.n_ubatch = min(context, 512)
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = threads
        self.context = api.llama_init_from_model(handle, params)
        if not self.context:
            raise RuntimeError(f"no context of {context} tokens")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(handle))
        self.batch = api.llama_batch_init(context, 0, 1)
        return {"version": llama_cpp.__version__, "vocabulary": self.vocabulary}

    def compare(self, tokens: list[int], reference: dict[str, Any], index: int) -> dict[str, Any]:
        from benchmarks.distributions import compare

        path, lengths = Path(reference["path"]), reference["lengths"]
        window = ReferenceFile.open(path, lengths, reference["vocabulary"]).window(index)
        logits = self._logits(tokens, 0)[: len(tokens) - 1]
        return {"sums": compare(logits, window, tokens[1:]).to_json()}

    def score(self, items: list[tuple[list[int], int]]) -> dict[str, Any]:
        from benchmarks.distributions import log_likelihood

        values = []
        for tokens, known in items:
            logits = self._logits(tokens[:-1], known - 1)
            values.append(log_likelihood(logits, tokens[known:]))
        return {"values": values}

    def _logits(self, tokens: list[int], first: int) -> Any:
        """[tokens - first, V] float32, after each token from `first` on; valid until the next call."""
        import numpy as np

        if len(tokens) > self.room:
            raise RuntimeError(f"{len(tokens)} tokens do not fit the context of {self.room}")
        api, batch = self.api, self.batch
        api.llama_memory_clear(api.llama_get_memory(self.context), False)
        for position, token in enumerate(tokens):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = position >= first
        batch.n_tokens = len(tokens)
        code = api.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode gave {code}")
        values = ctypes.cast(api.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(values, (len(tokens) - first, self.vocabulary))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments != ["serve"]:
        print("usage: python -m benchmarks.quality_peer serve", file=sys.stderr)
        return 2
    answer_requests(lambda: _Server(quiet_api()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
