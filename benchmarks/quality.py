"""Loss against bytes: our compressed models and llama.cpp's quantisations of the same 16-bit checkpoint.

    python -m benchmarks.quality                                   # the models in the cache, 16 windows
    python -m benchmarks.quality --model smollm2-135m-3.5bit --peer-type Q4_K_M --quick
    python -m benchmarks.quality --full --plot loss.svg --json quality.json
    python -m benchmarks.quality --ablation                        # what each step of ours is worth

One protocol for all: the same tokens in the same windows of WikiText-2 raw test, each with an empty past, and
every contender's distributions against those of the 16-bit model in our engine: perplexity, mean KL, share of
tokens where both think the same one likeliest. Then PIQA and ARC-challenge, the first 200 questions. A model
of ours that has a recovery adapter is measured with and without it.

What has been measured is kept (`--folder`), so an interrupted run goes on and further models only add to it.
The reference's distributions lie in a temporary file of at most 2 GB while a few windows are worked on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import quality_ablation
from benchmarks.choices import TASKS, Question, accuracy, items, read_questions
from benchmarks.common import BenchmarkError, Report, emit, machine_facts, usable_cores
from benchmarks.distributions import ReferenceFile
from benchmarks.peer import ROOT, FarEnd
from benchmarks.quality_ours import ADAPTER_WEIGHTS, OurModel, importance, recovery_adapter
from benchmarks.quality_peer import (
    RECIPES,
    SIXTEEN,
    PeerFile,
    PeerModel,
    Recipe,
    fallback,
    peer_files,
)
from benchmarks.quality_report import Found, Kind, goals, notes, plot, rows
from benchmarks.quality_store import Record, Store, digest_of, key_of

REFERENCE = "smollm2-135m"
MODELS = ("smollm2-135m-4bit", "smollm2-135m-3.5bit", "smollm2-135m-3bit")  # where they are in the cache
QUICK_PEERS = ("Q4_K_M", "Q4_0 pure", "IQ4_NL", "Q3_K_M")
CONTEXT, WINDOWS, QUICK_WINDOWS = 1024, 16, 4
QUESTIONS, QUICK_QUESTIONS = 200, 40
REFERENCE_BYTES = 2 << 30  # of the temporary file
SAVE_EVERY = 20  # questions
TEXT = Path("wikitext2raw") / "wiki.test.raw"


@dataclass(frozen=True)
class Protocol:
    """What everyone is asked."""

    windows: Sequence[Sequence[int]]
    questions: Mapping[str, Sequence[Question]]
    encode: Callable[[str], list[int]]
    context: int
    whole: bool  # the windows are the whole text

    def __str__(self) -> str:
        tokens = sum(len(window) - 1 for window in self.windows)
        text = "all" if self.whole else "the first"
        tasks = ", ".join(f"{len(rows)} of {task}" for task, rows in self.questions.items())
        return (
            f"WikiText-2 raw test, {text} {tokens:,} scored tokens in {len(self.windows)} windows of "
            f"{self.context}" + (f"; questions: {tasks}, log-likelihood per character" if tasks else "")
        )


@dataclass(frozen=True)
class Contender:
    """Someone who is measured. `about` is all that its figures depend on; `open` gives it, ready to run."""

    name: str
    kind: Kind
    open: Callable[[], OurModel | PeerModel]
    about: Mapping[str, Any]
    file_bytes: int
    weights: int
    projection_bits: float
    adapter_bytes: int = 0
    base: str | None = None
    types: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return key_of(self.about)


def run(options: argparse.Namespace) -> Report:
    """Measures everything that `options` asks for and that was not measured before."""
    from pomona.models.store import resolve

    machine = machine_facts()
    reference = resolve(options.reference)
    protocol = read_protocol(reference, options)
    text_mark = key_of({"windows": [list(window) for window in protocol.windows]})
    mark = {"reference": digest_of(weight_files(reference)), "context": protocol.context}
    contenders = [
        our_contender(reference, None, options.threads, mark, name=f"16 bit ({reference.name})"),
        *our_contenders([resolve(name) for name in model_names(options)], options.threads, mark),
    ]
    fallbacks: dict[str, str] = {}
    refused: dict[str, str] = {}
    if not options.no_peer:
        files, refused = make_peer_files(reference, options)
        contenders += peer_contenders(files, options, mark)
        by_name = {recipe.name: recipe for recipe in RECIPES}
        shown = {name: fallback(by_name[name], file.types) for name, file in files.items() if name in by_name}
        fallbacks = {name: text for name, text in shown.items() if text is not None}
    store = Store(options.folder, fresh=options.fresh)
    records = measure(contenders, protocol, store, options.threads)
    found = [found_of(one, records[one.name], protocol) for one in contenders]
    about = f"{protocol} (tokens {text_mark[:8]})"
    if options.plot is not None:
        options.plot.write_text(plot(found, found[0], str(protocol)), encoding="utf-8")
    return Report(
        benchmark="quality",
        machine=machine,
        results={
            "protocol": about,
            "rows": rows(found, found[0]),
            "notes": notes(found, found[0], str(protocol), fallbacks, refused),
            "contenders": [one.to_json(found[0]) for one in found],
            "refused": refused,
        },
        goals=goals(found, found[0]),
    )


# --- what is asked ---------------------------------------------------------------------------------------


def read_protocol(reference: Path, options: argparse.Namespace) -> Protocol:
    """Windows and questions, as tokens of the reference's tokenizer."""
    from pomona.cli.perplexity import leading_bos
    from pomona.models.tokenizer import Tokenizer

    data = data_folder(options)
    path = data / TEXT
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(
            f"{path}: cannot be read; set POMONA_DATA to the folder of the data sets"
        ) from error
    tokenizer = Tokenizer.from_directory(reference)
    bos = leading_bos(tokenizer)
    cut = split(tokenizer.encode(text, parse_special=False), options.context, bos)
    count = len(cut) if options.full else options.windows or (QUICK_WINDOWS if options.quick else WINDOWS)
    if count > len(cut):
        raise BenchmarkError(
            f"--windows {count}: the text has {len(cut)} of {options.context} tokens; ask for fewer"
        )
    questions = 0 if options.no_tasks else QUICK_QUESTIONS if options.quick else QUESTIONS

    def encode(words: str) -> list[int]:
        ids = tokenizer.encode(words, parse_special=False)
        return ids if bos is None else [bos, *ids]

    return Protocol(
        cut[:count],
        {task: read_questions(task, data, questions) for task in TASKS} if questions else {},
        encode,
        options.context,
        count == len(cut),
    )


def split(ids: Sequence[int], context: int, bos: int | None = None) -> list[list[int]]:
    """Windows of `context` tokens without overlap, a shorter one at the end if it can be scored; `bos` stands
    in the place of the first token of each (as in `pomona perplexity`)."""
    windows = [list(ids[start : start + context]) for start in range(0, len(ids), context)]
    if windows and len(windows[-1]) < 2:
        windows.pop()
    return windows if bos is None else [[bos, *window[1:]] for window in windows]


def data_folder(options: argparse.Namespace) -> Path:
    if options.data is None:
        raise BenchmarkError(
            "no data: set POMONA_DATA to the folder that holds wikitext2raw, piqa and arc_challenge"
        )
    return Path(options.data)


# --- who takes part --------------------------------------------------------------------------------------


def model_names(options: argparse.Namespace) -> list[str]:
    from pomona.models.store import cached_models

    names = options.model or [name for name in MODELS if name in cached_models()]
    if not names and options.no_peer:
        raise BenchmarkError(f"none of {', '.join(MODELS)} is in the cache; make one with `pomona compress`")
    return list(names)


def our_contenders(directories: Sequence[Path], threads: int, mark: Mapping[str, Any]) -> list[Contender]:
    """Every model, and once more with its recovery adapter where it has one."""
    result = []
    for directory in directories:
        result.append(our_contender(directory, None, threads, mark))
        if (adapter := recovery_adapter(directory)) is not None:
            result.append(our_contender(directory, adapter, threads, mark))
    names = [one.name for one in result]
    if len(set(names)) < len(names):
        raise BenchmarkError("two models of one name; give each --model once, in a folder of its own name")
    return result


def our_contender(
    directory: Path,
    adapter: Path | None,
    threads: int,
    mark: Mapping[str, Any],
    *,
    name: str | None = None,
    label: str | None = None,
) -> Contender:
    """name: makes it the reference, so called. label: what else than the directory it is called."""
    import pomona
    from pomona.models.palettized import describe

    description = describe(directory)
    files = weight_files(directory)
    if adapter is not None:
        files += [adapter / "adapter_config.json", adapter / ADAPTER_WEIGHTS]
    own = name or directory.name
    return Contender(
        label or (own if adapter is None else f"{own} + adapter"),
        "reference" if name is not None else "ours",
        lambda: OurModel(directory, adapter, threads),
        {**mark, "files": digest_of(files), "engine": f"pomona {pomona.__version__}"},
        description.file_bytes,
        weight_count(description.tensors),
        description.projection_bits_per_weight,
        0 if adapter is None else (adapter / ADAPTER_WEIGHTS).stat().st_size,
        None if adapter is None else own,
    )


def weight_files(directory: Path) -> list[Path]:
    """What a model's figures depend on."""
    return [directory / "config.json", *sorted(directory.glob("*.safetensors"))]


def weight_count(tensors: Sequence[Any]) -> int:
    import math

    return sum(math.prod(tensor.shape) for tensor in tensors)


def make_peer_files(
    reference: Path, options: argparse.Namespace
) -> tuple[dict[str, PeerFile], dict[str, str]]:
    """llama.cpp's files of this checkpoint, in a folder of their own."""
    from benchmarks.gguf_writer import write_checkpoint

    wanted = options.peer_type or (QUICK_PEERS if options.quick else [one.name for one in RECIPES])
    by_name = {one.name: one for one in RECIPES}
    if unknown := [name for name in wanted if name not in by_name]:
        raise BenchmarkError(f"--peer-type {unknown[0]}: is none of {', '.join(by_name)}")
    recipes: list[Recipe] = [by_name[name] for name in wanted]
    folder = options.folder / "gguf" / digest_of(weight_files(reference))[:12]
    return peer_files(
        folder,
        Path(options.peer),
        recipes,
        lambda path: write_checkpoint(reference, path, _progress),
        lambda: importance(reference, options.threads),
        _progress,
    )


def peer_contenders(
    files: Mapping[str, PeerFile], options: argparse.Namespace, mark: Mapping[str, Any]
) -> list[Contender]:
    python, threads = Path(options.peer), options.threads
    with FarEnd(python, "benchmarks.quality_peer") as far:
        version = far.ask({"do": "about"})["version"]

    def opener(file: PeerFile) -> Callable[[], PeerModel]:
        return lambda: PeerModel(python, file.path, threads, options.context)

    return [
        Contender(
            f"llama.cpp {name}",
            "llama.cpp 16" if name == SIXTEEN else "llama.cpp",
            opener(file),
            {**mark, "files": digest_of([file.path]), "engine": f"llama.cpp {version}"},
            file.path.stat().st_size,
            file.weights,
            file.projection_bits,
            types=file.types,
        )
        for name, file in files.items()
    ]


# --- measuring -------------------------------------------------------------------------------------------


def measure(
    contenders: Sequence[Contender], protocol: Protocol, store: Store, threads: int
) -> dict[str, Record]:
    """What the store lacks, window by window; the first contender is the reference and runs in our engine."""
    records = {one.name: store.load(one.key) for one in contenders}
    vocabulary = _vocabulary(contenders[0])
    per_window = 4 * protocol.context * vocabulary
    chunk = max(1, REFERENCE_BYTES // per_window)
    count = len(protocol.windows)
    with tempfile.TemporaryDirectory(prefix="pomona-quality-") as folder:
        for start in range(0, count, chunk):
            indices = range(start, min(start + chunk, count))
            late = [one for one in contenders if records[one.name].missing_windows(indices)]
            if late:
                _check_room(Path(folder), len(indices) * per_window)
                _chunk(indices, contenders[0], late, records, protocol, store, Path(folder), vocabulary)
    for one in contenders:
        answer_questions(one, records[one.name], protocol, store)
    return records


def _chunk(
    indices: range,
    reference: Contender,
    late: Sequence[Contender],
    records: Mapping[str, Record],
    protocol: Protocol,
    store: Store,
    folder: Path,
    vocabulary: int,
) -> None:
    """A few windows: the reference's distributions into a file, then everyone who lacks some of them."""
    windows = [protocol.windows[index] for index in indices]
    file = ReferenceFile.create(folder / "reference.f32", [len(one) - 1 for one in windows], vocabulary)
    with reference.open() as model:
        assert isinstance(model, OurModel)
        for place, index in enumerate(indices):
            _progress(f"{reference.name}: window {index + 1}", place, len(indices))
            records[reference.name].windows[index] = model.fill(windows[place], file, place)
    store.save(reference.key, records[reference.name], reference.about)
    for one in late:
        missing = records[one.name].missing_windows(indices)
        if not missing:  # the reference itself
            continue
        with one.open() as contender:
            for done, index in enumerate(missing):
                _progress(f"{one.name}: windows {indices[0] + 1} to {indices[-1] + 1}", done, len(missing))
                place = index - indices[0]
                records[one.name].windows[index] = contender.compare(windows[place], file, place)
                store.save(one.key, records[one.name], one.about)
        _progress(f"{one.name}: windows", len(missing), len(missing))


def answer_questions(one: Contender, record: Record, protocol: Protocol, store: Store) -> None:
    missing = {
        task: record.missing_questions(task, len(questions)) for task, questions in protocol.questions.items()
    }
    if not any(missing.values()):
        return
    with one.open() as model:
        for task, indices in missing.items():
            rows = record.tasks.setdefault(task, {})
            for done, index in enumerate(indices):
                question = protocol.questions[task][index]
                rows[index] = model.log_likelihoods(items(question, protocol.encode))
                if done % SAVE_EVERY == 0:
                    _progress(f"{one.name}: {task}", done, len(indices))
                    store.save(one.key, record, one.about)
            store.save(one.key, record, one.about)
            _progress(f"{one.name}: {task}", len(indices), len(indices))


def found_of(one: Contender, record: Record, protocol: Protocol) -> Found:
    answers = {
        task: accuracy(questions, [record.tasks[task][index] for index in range(len(questions))])
        for task, questions in protocol.questions.items()
    }
    return Found(
        one.name,
        one.kind,
        one.file_bytes,
        one.weights,
        one.projection_bits,
        record.sums(len(protocol.windows)),
        one.adapter_bytes,
        one.base,
        answers,
        one.types,
    )


def _vocabulary(reference: Contender) -> int:
    with reference.open() as model:
        assert isinstance(model, OurModel)
        return model.engine.config.vocab_size


def _check_room(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise BenchmarkError(
            f"{folder}: needs {need / 1e9:.1f} GB for a while, and {free / 1e9:.1f} GB are free; set TMPDIR"
        )


def _progress(label: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r\033[K{label}: {done}/{total}", end=end, file=sys.stderr, flush=True)
    elif done == total:
        print(f"{label}: done", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    from pomona.models.store import cache_dir

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"{QUICK_WINDOWS} windows, {QUICK_QUESTIONS} questions, 4 peers")
    add("--full", action="store_true", help="the whole text: hours for all, and it can be interrupted")
    add(
        "--model",
        action="append",
        help=f"one of ours, by name or directory; may be given several times (default: {', '.join(MODELS)}, "
        "those that are there)",
    )
    add(
        "--reference",
        default=REFERENCE,
        help="the 16-bit model of all (default: %(default)s)",
    )
    add(
        "--peer-type",
        action="append",
        metavar="TYPE",
        help="a quantisation of llama.cpp; may be given several times (default: all of "
        + ", ".join(one.name for one in RECIPES)
        + ")",
    )
    add("--no-peer", action="store_true", help="ours alone")
    add("--no-tasks", action="store_true", help="no PIQA, no ARC: distributions only")
    add("--windows", type=int, help=f"of the text (default: {WINDOWS})")
    add("--context", type=int, default=CONTEXT, help="tokens per window (default: %(default)s)")
    add("--threads", type=int, default=min(2, usable_cores()), help="of everyone (default: %(default)s)")
    add("--plot", type=Path, metavar="FILE", help="draw KL against bytes into this SVG file")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    add(
        "--folder",
        type=Path,
        default=cache_dir() / "benchmarks" / "quality",
        help="where figures and llama.cpp's files are kept (default: in the cache of models)",
    )
    add("--ablation", action="store_true", help="what each step of our compression is worth, instead")
    add("--ablation-folder", type=Path, metavar="DIR", help="where its models lie (default: in --folder)")
    add("--train", action="store_true", help="with --ablation: train what is missing too (hours)")
    add("--no-build", action="store_true", help="with --ablation: measure what is there")
    add("--fresh", action="store_true", help="measure again what has been measured")
    add(
        "--data",
        default=os.environ.get("POMONA_DATA"),
        help="the data sets (default: $POMONA_DATA)",
    )
    add("--peer", default=str(ROOT / ".peer/bin/python"), help="llama.cpp's Python (default: that of .peer)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    from pomona.errors import PomonaError

    options = parser().parse_args(argv)
    if options.threads < 1 or options.context < 2 or (options.windows is not None and options.windows < 1):
        parser().error("--threads and --windows are at least 1, --context at least 2")
    if options.full and (options.quick or options.windows):
        parser().error("--full takes the whole text; leave --quick and --windows out")
    if not options.ablation and (options.train or options.no_build or options.ablation_folder):
        parser().error("--train, --no-build and --ablation-folder belong to --ablation")
    try:
        emit(quality_ablation.run(options) if options.ablation else run(options), options.json)
    except (BenchmarkError, PomonaError) as error:
        print(f"benchmarks.quality: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
