"""The parts of the adapters benchmark, one method each: decode, batch, peers, swap, memory."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.adapter_ours import OurAdapters
from benchmarks.adapter_peer import LlamaServer, PeftPeer
from benchmarks.common import BenchmarkError, Goal, Row, interleave, median_and_range, ratios
from benchmarks.peer import ROOT, series

if TYPE_CHECKING:
    from pomona.runtime.adapters import LoadedAdapter

REQUESTS, PROMPT_TOKENS, NEW_TOKENS = 16, 32, 64
DECODE_TOKENS = 64
LARGE_TOKENS = 16
BUDGET = 64 << 20
ON_DISK = 100
PARTS = ("decode", "batch", "server", "peft", "swap", "memory")
PLAIN_SERVER = "llama-server Q4_0 pure"  # llama.cpp's fastest; measured without adapters too
SERVERS = {PLAIN_SERVER: "q4_0_pure.gguf", "llama-server Q4_K_M": "q4_k_m.gguf"}
FAIR_CORRELATION = 0.95  # measured: 0.98; with the rows of q and k in the wrong order 0.85

Figures = dict[str, list[float]]


class Bench:
    """The parts, one method each, and what they found: table rows, notes, goals and raw figures."""

    def __init__(self, options: argparse.Namespace, ours: OurAdapters, folder: Path) -> None:
        self.options, self.ours, self.folder = options, ours, folder
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.goals: list[Goal] = []
        self.results: dict[str, Any] = {}
        self.prompts = prompts(ours.engine.config.vocab_size)

    # --- decode ------------------------------------------------------------------------------------------

    def decode(self, ours: OurAdapters, tokens: int, rounds: int, bound: float) -> None:
        """One sequence with an adapter, one without, turn by turn; `bound`: the share that is wanted."""
        label = ours.engine.directory.name

        def speed(adapter: LoadedAdapter | None) -> float:
            return tokens / ours.decode_seconds(adapter, tokens)

        contestants: dict[str, Callable[[], float]] = {
            "with": partial(speed, ours.adapters[0]),
            "with int8": partial(speed, ours.int8_adapters[0]),
            "without": partial(speed, None),
        }
        warm_up(contestants)
        speeds = interleave(contestants, rounds, on_round=partial(progress, f"decode {label}"))
        without = speeds["without"]
        share = ratios(speeds["with"], without)
        for name, kind in (("with", "rank-16 adapter"), ("with int8", "the same in int8")):
            times = ratios(speeds[name], without)
            self.add(f"decode, {label}, {kind}, tokens/s", speeds[name], "pomona, no adapter", without, times)
        name = f"decode with a rank-16 adapter, share of the speed without, {label}"
        self.goals.append(Goal(name, statistics.median(share), bound))
        adapter, base = ours.adapters[0].bytes, ours.engine.bytes_per_token
        self.notes.append(
            f"{label}: an adapter adds {adapter / 1e6:.1f} MB to the {base / 1e6:.1f} MB that a decoded "
            f"token reads; by bytes alone {base / (base + adapter):.0%} of the speed would be left."
        )
        self.results.setdefault("decode", {})[label] = {"speeds": speeds, "adapter_bytes": adapter}

    # --- batch -------------------------------------------------------------------------------------------

    def batch(self, rounds: int) -> None:
        """The 16 requests through our engine: without adapters, with 16, with 16 in int8."""
        contestants = self.batch_contestants()
        warm_up(contestants)
        speeds = interleave(contestants, rounds, on_round=partial(progress, "batch"))
        plain = speeds["pomona, no adapters"]
        for name, figures in speeds.items():
            if figures is plain:
                continue
            share = ratios(figures, plain)
            self.add(f"{name}, tokens/s", figures, "pomona, no adapters", plain, share)
        for name, bound in (("16 adapters", 0.60), ("16 int8 adapters", 0.70)):
            share = ratios(speeds[f"pomona, {name}"], plain)
            label = f"16 requests with {name}, share of the throughput without"
            self.goals.append(Goal(label, statistics.median(share), bound))
        self.results["batch"] = speeds

    def batch_contestants(self) -> dict[str, Callable[[], float]]:
        """Generated tokens per second of our side."""
        run, none = self.ours.batch_seconds, [None] * REQUESTS
        return {
            "pomona, no adapters": partial(self.speed, run, none, NEW_TOKENS),
            "pomona, 16 adapters": partial(self.speed, run, self.ours.adapters, NEW_TOKENS),
            "pomona, 16 int8 adapters": partial(self.speed, run, self.ours.int8_adapters, NEW_TOKENS),
            "pomona scheduler, 16 adapters": partial(
                self.speed, self.ours.scheduler_seconds, self.ours.adapters, NEW_TOKENS
            ),
        }

    def peers(self, server: bool, peft: bool, rounds: int) -> None:
        """The same 16 requests through llama.cpp's server and through PEFT, in turns with ours."""
        each = list(range(REQUESTS))
        peft_tokens = 16 if self.options.quick else NEW_TOKENS
        contestants = {"pomona": self.batch_contestants()["pomona, 16 adapters"]}
        if server:
            self.check_fair()
        with ExitStack() as stack:
            for name in self.server_names() if server else ():
                llama = stack.enter_context(self.llama_server(Path(self.options.peer_models) / SERVERS[name]))
                contestants[name] = partial(self.speed, llama.seconds, each, NEW_TOKENS)
                if name == PLAIN_SERVER:
                    none = [None] * REQUESTS
                    contestants[f"{name}, no adapters"] = partial(self.speed, llama.seconds, none, NEW_TOKENS)
            if peft:
                mixed = stack.enter_context(self.peft_peer())
                dtype = self.faster_dtype(mixed)
                generate = partial(mixed.seconds, dtype=dtype)
                contestants[f"PEFT {dtype}, mixed batch"] = partial(self.speed, generate, each, peft_tokens)
            speeds = interleave(contestants, rounds, on_round=partial(progress, "peers"))
        self.report_peers(speeds, server, peft_tokens)

    def speed(self, seconds: Callable[..., float], adapters: Sequence[Any], tokens: int) -> float:
        """Generated tokens per second of whoever answers the 16 requests in `seconds(...)`."""
        return REQUESTS * tokens / seconds(self.prompts, adapters, tokens)

    def check_there(self) -> None:
        """BenchmarkError, before anything takes time, if a file of llama.cpp's is missing."""
        models = [Path(self.options.peer_models) / SERVERS[name] for name in self.server_names()]
        for file in (Path(self.options.server), *models):
            if not file.is_file():
                raise BenchmarkError(f"{file}: is not there; run `make bench-setup`, or give --skip server")

    def server_names(self) -> list[str]:
        return [name for name in SERVERS if name == PLAIN_SERVER or not self.options.quick]

    def llama_server(self, model: Path) -> LlamaServer:
        adapters = [self.folder / f"{number}.gguf" for number in range(REQUESTS)]
        program, threads = Path(self.options.server), self.options.threads
        return LlamaServer(program, model, adapters, slots=REQUESTS, threads=threads)

    def report_peers(self, speeds: Figures, server: bool, peft_tokens: int) -> None:
        ours = speeds.pop("pomona")
        for name, figures in speeds.items():
            self.add("pomona, 16 adapters, tokens/s", ours, name, figures, ratios(ours, figures))
        if server:
            with_adapters = [speeds[name] for name in SERVERS if name in speeds]
            fastest = max(with_adapters, key=statistics.median)
            value = statistics.median(ratios(ours, fastest))
            self.goals.append(Goal("16 requests with 16 adapters, times llama.cpp's server", value, 4.0))
            self.notes.append(
                "llama.cpp's server puts only requests with equal adapters into one batch, so these 16 run "
                "one after the other; without adapters it batches them. Its adapters are float16 GGUF files."
            )
        if peft_tokens != NEW_TOKENS and any(name.startswith("PEFT") for name in speeds):
            self.notes.append(
                f"PEFT generates {peft_tokens} tokens for each request here, the others {NEW_TOKENS}."
            )
        self.results["peers"] = {"pomona": ours, **speeds}

    def check_fair(self) -> None:
        """The adapters must do to llama.cpp's answers what they do to ours, on a base that is the same on
        both sides: the GGUF file that the built-in model is made of, and that model before compression."""
        options = self.options
        source = Path(options.source) if options.source else packaged_source()
        with OurAdapters(options.peft_model, options.threads, options.isa) as ours:
            count = 2 if options.quick else 4
            ours.read([self.folder / str(number) for number in range(count)])
            with self.llama_server(source) as llama:
                found = [effect_agreement(ours, llama, self.prompts[n], n) for n in range(count)]
        self.results["effect_correlation"] = found
        if statistics.mean(found) < FAIR_CORRELATION:
            raise BenchmarkError(
                f"llama.cpp's server: adapters act otherwise than ours (correlation "
                f"{statistics.mean(found):.2f}); that would be no fair comparison"
            )
        self.notes.append(
            "What an adapter changes in the log probabilities of the 2,000 likeliest tokens agrees with "
            f"llama.cpp: correlation {statistics.mean(found):.3f}, on the same weights."
        )

    def faster_dtype(self, peer: PeftPeer) -> str:
        """bfloat16 or float32, whichever generates faster here (which also warms it). On processors without
        bfloat16 arithmetic the first can take minutes, so --quick tries the second only."""
        each, times = list(range(REQUESTS)), {}
        for dtype in ("float32",) if self.options.quick else ("bfloat16", "float32"):
            peer.seconds(self.prompts, each, 1, dtype)
            times[dtype] = peer.seconds(self.prompts, each, 3, dtype)
        return min(times, key=lambda dtype: times[dtype])

    def peft_peer(self, count: int = REQUESTS) -> PeftPeer:
        from pomona.models.store import resolve

        directories = [self.folder / str(number) for number in range(count)]
        python, model = Path(sys.executable), resolve(self.options.peft_model)
        return PeftPeer(python, model, directories, threads=self.options.threads)

    # --- swap --------------------------------------------------------------------------------------------

    def swap(self, peft: bool, repeats: int) -> None:
        """Milliseconds until the next request can run with another adapter."""
        resident, load = self.ours.swap_seconds(repeats)
        resident, load = [1e3 * s for s in resident], [1e3 * s for s in load]
        theirs: Figures = {"set_adapter": [], "load_adapter": []}
        if peft:
            with self.peft_peer(1) as peer:
                found = peer.swap(self.folder / "0", max(3, repeats // 4))
            theirs = {name: [1e3 * s for s in seconds] for name, seconds in found.items()}
        size = self.ours.adapters[0].bytes / 1e6
        for label, figures, name in (
            ("swap to a resident adapter, ms", resident, "set_adapter"),
            (f"read an adapter ({size:.1f} MB), ms", load, "load_adapter"),
        ):
            if theirs[name]:
                times = [statistics.median(theirs[name]) / statistics.median(figures)]
                self.add(label, figures, f"PEFT {name}", theirs[name], times)
            else:
                self.add(label, figures, "", [], [])
        self.goals.append(
            Goal("swap to a resident adapter, milliseconds", statistics.median(resident), 0.1, "<=")
        )
        self.goals.append(
            Goal(
                "read an adapter from the page cache, milliseconds per 10 MB",
                statistics.median(load) * 10 / size,
                10.0,
                "<=",
            )
        )
        self.results["swap_ms"] = {"resident": resident, "read": load, **theirs}

    # --- memory ------------------------------------------------------------------------------------------

    def memory(self) -> None:
        """A fresh process, a hundred directories, two rounds over all of them."""
        many = self.folder / "many"
        for number in range(ON_DISK):
            if not (many / f"{number:03}").exists():
                shutil.copytree(self.folder / str(number % REQUESTS), many / f"{number:03}")
        progress("memory", 0, 1)
        command = [
            sys.executable,
            "-m",
            "benchmarks.adapter_memory",
            str(self.ours.engine.directory),
            str(many),
        ]
        command += [str(BUDGET), str(self.options.threads)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchmarkError(f"memory: {(done.stderr.splitlines() or ['no output'])[-1]}")
        found: dict[str, Any] = json.loads(done.stdout)
        progress("memory", 1, 1)
        growth, peak = found["largest_growth_bytes"], found["peak_growth_bytes"]
        mib = float(1 << 20)
        self.add(f"{ON_DISK} adapters, MiB", [growth / mib], "budget", [BUDGET / mib], [growth / BUDGET])
        self.goals.append(
            Goal(f"{ON_DISK} adapters, resident set over the budget", growth / BUDGET, 1.10, "<=")
        )
        self.notes.append(
            f"Memory: {found['adapters']} adapters of {found['adapter_bytes'] / 1e6:.1f} MB on disk, "
            f"{found['requests']} requests, {found['loads']} reads. The resident set grew by at most "
            f"{growth / mib:.1f} MiB between requests and {peak / mib:.1f} MiB while one was read; the cache "
            f"counted {found['largest_alive_bytes'] / mib:.1f} MiB."
        )
        self.results["memory"] = found

    # --- output ------------------------------------------------------------------------------------------

    def add(
        self,
        measure: str,
        ours: Sequence[float],
        against: str,
        theirs: Sequence[float],
        times: Sequence[float],
    ) -> None:
        """A row of the table."""
        self.rows.append(
            {
                "measure": measure,
                "pomona": short(ours),
                "against": against,
                "theirs": short(theirs),
                "times": median_and_range(times) if len(times) > 1 else short(times),
            }
        )


def short(values: Sequence[float]) -> str:
    """The median for a table: 1,234, 56.7, 0.0021."""
    if not values:
        return ""
    value = statistics.median(values)
    return (
        f"{value:.2g}" if abs(value) < 0.1 else f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
    )


def effect_agreement(ours: OurAdapters, llama: LlamaServer, prompt: Sequence[int], number: int) -> float:
    """Correlation of what adapter `number` does to the likeliest next tokens, ours with llama.cpp's."""
    plain, changed = (llama.log_probabilities(prompt, adapter, 2000) for adapter in (None, number))
    tokens = sorted(plain.keys() & changed.keys())
    return ours.correlation(prompt, number, tokens, [changed[token] - plain[token] for token in tokens])


def packaged_source() -> Path:
    """The GGUF file that the built-in model is made of."""
    from benchmarks import peer

    return peer._packaged_source()


def warm_up(contestants: dict[str, Callable[[], float]]) -> None:
    for run_once in contestants.values():
        run_once()


def prompts(vocabulary: int) -> list[list[int]]:
    """The prompts of the 16 requests: fixed, all different, of equal length."""
    return [series(PROMPT_TOKENS, vocabulary, start=number * PROMPT_TOKENS) for number in range(REQUESTS)]


def progress(label: str, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    if sys.stderr.isatty():
        print(f"\r{label}: {done}/{total}", end=end, file=sys.stderr, flush=True)
    elif done == 0:
        print(f"{label} ...", file=sys.stderr, flush=True)
