"""`pomona quickstart`: the whole tour on a small real model, in about two minutes on two cores.

    pomona quickstart
    python -m pomona.cli.quickstart --json

Pulls SmolLM2-135M-Instruct, compresses it to 4 bits, adds the zoo's recovery adapter, lets it answer two
questions, and measures it at every stage. Needs neither torch nor the hub. What is in the cache already is
used again, unless `--fresh` is given.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO

import typer

from pomona.cli.common import (
    JsonOption,
    ProgressReporter,
    ThreadsOption,
    directory_bytes,
    examples,
    format_bytes,
    new_app,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pomona.runtime.adapters import LoadedAdapter
    from pomona.runtime.engine import Engine
    from pomona.runtime.model import Model

SOURCE = "smollm2-135m"
COMPRESSED = f"{SOURCE}-4bit"
ADAPTER = "recovery"
HEADINGS = {"source": "16 bit", "compressed": "compressed", "recovered": "with recovery"}

ANSWER_TOKENS = 96
PREFILL_TOKENS = 512
DECODE_TOKENS = 64
REPEATS = 5
CONTEXT = 1024

app = new_app()


@app.command(epilog=examples("pomona quickstart", "pomona quickstart --fresh --threads 2"))
def quickstart(
    fresh: Annotated[bool, typer.Option("--fresh", help="Pull and compress again.")] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pull, compress, answer and measure a small model: a two-minute tour."""
    tour = Tour(threads, sys.stderr if as_json else sys.stdout)
    started = time.perf_counter()
    with tour.step("pull", f"Pull {SOURCE}"):
        source = tour.pull(fresh)
    with tour.step("compress", "Compress it to 4 bits per weight"):
        compressed = tour.compress(source, fresh)
    with tour.step("recover", "Add its recovery adapter"):
        recovered = tour.recover(compressed)
    with tour.step("answer", "Ask the compressed model"):
        answers = tour.answer(compressed)
    stages = {"source": Stage(source), "compressed": Stage(compressed)}
    if recovered:
        stages["recovered"] = Stage(compressed, ADAPTER)
    with tour.step("measure", "Measure the stages" if recovered else "Measure both"):
        results = tour.measure(stages)
    total = time.perf_counter() - started
    tour.table(results)
    tour.say(
        f"\nWhole tour: {total:.1f} s ("
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in tour.seconds.items())
        + f"); torch imported: {'yes' if 'torch' in sys.modules else 'no'}"
    )
    tour.say(f"Next: pomona run {COMPRESSED}")
    if as_json:
        print_json(
            {
                **results,
                "answers": answers,
                "seconds": {**tour.seconds, "total": total},
                "reused": tour.reused,
                "torch_imported": "torch" in sys.modules,
            }
        )


class Stage(NamedTuple):
    """What a column of the table measures: a model, alone or with one of its adapters."""

    directory: Path
    adapter: str | None = None


class Tour:
    """The steps, and what they found on the way."""

    def __init__(self, threads: int | None, out: TextIO) -> None:
        self.threads = threads
        self.out = out
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []  # models that were in the cache already

    def say(self, text: str) -> None:
        self.out.write(text + "\n")
        self.out.flush()

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        self.say(f"\n{len(self.seconds) + 1}. {title}")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def pull(self, fresh: bool) -> Path:
        from pomona.models import store

        directory = store.models_dir() / SOURCE
        if self._reuse(directory, fresh):
            return directory
        with ProgressReporter() as progress:
            return store.pull(SOURCE, progress=progress.update, overwrite=fresh)

    def compress(self, source: Path, fresh: bool) -> Path:
        target = source.with_name(COMPRESSED)
        if self._reuse(target, fresh):
            return target
        from pomona.compression.compress import compress

        with ProgressReporter() as progress:
            compress(source, target, threads=self.threads, progress=progress.update, overwrite=fresh)
        return target

    def recover(self, compressed: Path) -> bool:
        """Puts the zoo's adapter for this very model into it; whether the model has one now."""
        target = compressed / "adapters" / ADAPTER
        if (target / "adapter_config.json").is_file():
            self.say(f"   already in {target}")
            return True
        from pomona.models import zoo
        from pomona.models.palettized import describe

        mark = describe(compressed).fingerprint
        entry = zoo.find(mark, ADAPTER)
        if entry is None:
            self.say(f"   none is in the zoo for base {mark}; `pomona recover` trains one")
            return False
        from pomona.adapters import store

        store.add(compressed, f"{zoo.PREFIX}{ADAPTER}")
        self.say(f"   from the zoo: {entry.model}/{entry.name}, the model's default from now on")
        return True

    def _reuse(self, directory: Path, fresh: bool) -> bool:
        if fresh or not (directory / "config.json").is_file():
            return False
        self.say(f"   already in {directory} (--fresh makes it again)")
        self.reused.append(directory.name)
        return True

    def answer(self, directory: Path) -> list[dict[str, str]]:
        from pomona.data.builtin_text import demo_prompts
        from pomona.runtime.model import Model
        from pomona.runtime.sampling import Sampling

        model = Model.load(str(directory), threads=self.threads)
        answers = []
        for prompt in demo_prompts():
            self.say(f"\n> {prompt}")
            pieces: list[str] = []
            messages = [{"role": "user", "content": prompt}]
            for piece in model.stream(messages, sampling=Sampling(), max_new_tokens=ANSWER_TOKENS):
                pieces.append(piece)
                self.out.write(piece)
                self.out.flush()
            self.say("")
            answers.append({"prompt": prompt, "response": "".join(pieces)})
        return answers

    def measure(self, stages: dict[str, Stage]) -> dict[str, dict[str, Any]]:
        """Sizes, speeds and perplexity at every stage. Speeds are medians of runs that take turns, so that a
        busy minute on the machine falls on all stages alike."""
        from pomona.data.builtin_text import evaluation_text
        from pomona.evaluation.perplexity import perplexity
        from pomona.models.palettized import describe
        from pomona.runtime.model import Model

        # Without the prefix cache: the same prompt is read again and again.
        models = {
            key: Model.load(str(stage.directory), threads=self.threads, prefix_cache=False)
            for key, stage in stages.items()
        }
        adapters = {
            key: None if stage.adapter is None else models[key].adapters.acquire(stage.adapter)
            for key, stage in stages.items()
        }
        speeds: dict[str, list[tuple[float, float]]] = {key: [] for key in stages}
        with ProgressReporter() as progress:
            for repeat in range(REPEATS):
                progress.update("speed", repeat, REPEATS)
                for key, model in models.items():
                    speeds[key].append(measure_speed(model, adapters[key]))
            progress.update("speed", REPEATS, REPEATS)
            results: dict[str, dict[str, Any]] = {}
            for key, stage in stages.items():
                model = models[key]
                ids = model.tokenizer.encode(evaluation_text())

                def update(label: str, done: int, total: int, key: str = key) -> None:
                    progress.update(f"{label}, {HEADINGS[key]}", done, total)

                scorer = AdaptedEngine(model.engine, adapters[key])
                score = perplexity(scorer, ids, context=CONTEXT, progress=update)
                description = describe(stage.directory)
                size = description.file_bytes
                if stage.adapter is not None:
                    size += directory_bytes(stage.directory / "adapters" / stage.adapter)
                results[key] = {
                    "directory": stage.directory,
                    "adapter": stage.adapter,
                    "file_bytes": size,
                    "projection_bits_per_weight": description.projection_bits_per_weight,
                    "file_bits_per_weight": description.file_bits_per_weight * size / description.file_bytes,
                    "prefill_tokens_per_second": statistics.median(prefill for prefill, _ in speeds[key]),
                    "decode_tokens_per_second": statistics.median(decode for _, decode in speeds[key]),
                    "perplexity": score.perplexity,
                    "perplexity_tokens": score.tokens,
                    "threads": model.engine.threads,
                    "isa": model.engine.isa,
                }
        return results

    def table(self, results: dict[str, dict[str, Any]]) -> None:
        rows = []
        for label, key, form in (
            ("file", "file_bytes", format_bytes),
            ("bits per weight, projections", "projection_bits_per_weight", "{:.2f}".format),
            ("bits per weight, whole file", "file_bits_per_weight", "{:.2f}".format),
            (f"prefill of {PREFILL_TOKENS}, tokens/s", "prefill_tokens_per_second", "{:,.0f}".format),
            ("decode, tokens/s", "decode_tokens_per_second", "{:,.0f}".format),
            ("perplexity of the built-in text", "perplexity", "{:.2f}".format),
        ):
            rows.append([label, *(form(results[name][key]) for name in results)])
        self.say("")
        print_table(("", *(HEADINGS[key] for key in results)), rows, stream=self.out)
        first = next(iter(results.values()))
        self.say(
            f"{first['threads']} threads, {first['isa']}; speeds are medians of {REPEATS} runs, perplexity "
            f"is over {first['perplexity_tokens']:,} tokens in windows of {CONTEXT}"
        )


class AdaptedEngine:
    """An engine that scores texts with one adapter in use (None: the base alone), for perplexity()."""

    def __init__(self, engine: Engine, adapter: LoadedAdapter | None) -> None:
        self.config = engine.config
        self._engine = engine
        self._adapter = adapter

    def score(self, token_ids: Sequence[int], /) -> NDArray[Any]:
        return self._engine.score(token_ids, self._adapter)


def measure_speed(model: Model, adapter: LoadedAdapter | None) -> tuple[float, float]:
    """Tokens per second: reading a prompt of PREFILL_TOKENS, and writing DECODE_TOKENS after a short one."""
    from pomona.data.builtin_text import evaluation_text

    ids = model.tokenizer.encode(evaluation_text())
    first, _ = _timed_generation(model.engine, adapter, ids[:PREFILL_TOKENS], 1)
    _, rest = _timed_generation(model.engine, adapter, ids[:32], DECODE_TOKENS + 1)
    return PREFILL_TOKENS / first, DECODE_TOKENS / rest


def _timed_generation(
    engine: Engine, adapter: LoadedAdapter | None, ids: list[int], count: int
) -> tuple[float, float]:
    """Seconds until the first of `count` greedy tokens, and from the first to the last."""
    from pomona.runtime.generate import generate
    from pomona.runtime.sampling import Sampling

    with engine.new_sequence(adapter) as sequence:
        started = time.perf_counter()
        times = [
            time.perf_counter()
            for _ in generate(
                engine, ids, sampling=Sampling(), max_new_tokens=count, stop_ids=(), sequence=sequence
            )
        ]
    return times[0] - started, times[-1] - times[0]


if __name__ == "__main__":
    from pomona.cli.main import main

    sys.exit(main(["quickstart", *sys.argv[1:]]))
