"""Post-training: is MDLOO's step right, how fast are roll-outs, what does a committee give.

    python -m benchmarks.posttraining --quick
    python -m benchmarks.posttraining
    python -m benchmarks.posttraining --skip llama rounds

*Equations*: the step against a derivation by hand and against TRL's RLOO, and the KL that many inner steps
reach with gamma and without.

*Roll-outs*: n sampled responses to each prompt, on our runtime (4 bit and 16 bit), by transformers'
`generate` (two data types) and by llama.cpp's server (each of its models), in turns, on the same prompts.
Tokens up to the end of each response count, those that fill a batch up do not.

*Committee*: four adapters sampled in one mixed batch against one after the other; then rounds of iTeC: the
first, of the base alone, makes the committee, two more are its own.

benchmarks.posttraining_mdloo trains on verifiable prompts and asks IFEval; benchmarks.posttraining_reward is
about the reward model.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BenchmarkError,
    Goal,
    Report,
    Row,
    interleave,
    machine_facts,
    median_and_range,
    ratios,
    run_command,
    usable_cores,
)
from benchmarks.peer import QUANTISATIONS, ROOT

PARTS = ("equations", "rollouts", "transformers", "llama", "committee", "rounds")
MEMBERS = 4
HAND_GAP, TRL_GAP = 1e-8, 1e-4
OVER_TRANSFORMERS, OVER_LLAMA = 10.0, 2.0
PROMPTS, SAMPLES, TOKENS, ROUNDS = 8, 8, 96, 3
ITEC_ROUNDS = 3
QUICK_PROMPTS, QUICK_SAMPLES, QUICK_TOKENS = 4, 4, 24
SEED = 11


class Bench:
    """Rows, goals and notes as the parts find them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self.notes: list[str] = []
        self.results: dict[str, Any] = {}
        quick = options.quick
        self.prompts = QUICK_PROMPTS if quick else PROMPTS
        self.samples = QUICK_SAMPLES if quick else SAMPLES
        self.tokens = QUICK_TOKENS if quick else TOKENS
        self.rounds = options.rounds or (1 if quick else ROUNDS)

    def row(self, what: str, value: str, note: str = "") -> None:
        self.rows.append({"what": what, "value": value, "beside": note})

    # --- equations ----------------------------------------------------------------------------------------

    def equations(self) -> None:
        from benchmarks.posttraining_equations import drift, hand_gap
        from benchmarks.posttraining_trl import first_step, gaps

        for estimator in ("exact", "sampled"):
            gap = hand_gap(estimator)
            self.row(f"gradient, {estimator} KL: largest difference to the hand-derived", f"{gap:.1e}")
            self.goals.append(
                Goal(f"difference to the hand-derived gradient, {estimator}", gap, HAND_GAP, "<=")
            )
        _progress("TRL's RLOO, one step")
        captured = first_step(self.tiny_model(), self.folder / "trl")
        for estimator in ("exact", "sampled"):
            found = gaps(captured, estimator)
            what = f"first inner step beside TRL's RLOO, {estimator} KL: relative difference of the gradient"
            self.row(what, f"{found['gradient']:.1e}", f"advantages {found['advantages']:.1e}")
            self.goals.append(
                Goal(f"difference to TRL's gradient, {estimator}", found["gradient"], TRL_GAP, "<=")
            )
        for gamma in (0.0, 1.0, 2.0):
            kl, limit = drift(gamma)
            self.row(
                f"KL to the start after 400 inner steps, gamma {gamma:g}", f"{kl:.3f}", f"limit {limit:.3f}"
            )
            if gamma:
                self.goals.append(Goal(f"KL over its limit, gamma {gamma:g}", kl / limit, 1.001, "<="))

    def tiny_model(self) -> Path:
        """A random Qwen3 model with the real one's tokenizer."""
        from pomona.models.config import ModelConfig
        from pomona.models.presets import PRESETS
        from pomona.models.random_init import random_model
        from pomona.models.store import resolve

        real = resolve(self.options.reference)
        vocabulary = ModelConfig.from_directory(real).vocab_size
        config = replace(PRESETS["afm-nano"], vocab_size=vocabulary, eos_token_ids=(), pad_token_id=None)
        return random_model(config, self.folder / "tiny", seed=5, tokenizer_from=real)

    # --- roll-outs ----------------------------------------------------------------------------------------

    def rollouts(self, peers: set[str]) -> None:
        """Tokens per second of everyone, in turns."""
        from pomona.models.store import resolve
        from pomona.posttraining.rollouts import LocalRollOuts

        o = self.options
        with ExitStack() as stack:
            contestants: dict[str, Callable[[], float]] = {}
            ids: list[list[int]] = []
            locals_: list[LocalRollOuts] = []
            for name in (o.model, o.reference):
                local = stack.enter_context(LocalRollOuts(name, threads=o.threads))
                locals_.append(local)
                ids = [local.render([{"role": "user", "content": text}]) for text in self.texts()]
                contestants[f"pomona, {name}"] = self.ours(local, ids)
            if "transformers" in peers:
                from benchmarks.rollout_peer import GeneratePeer

                generate = GeneratePeer(sys.executable, resolve(o.reference), threads=o.threads)
                stack.enter_context(generate)
                for dtype in ("bfloat16", "float32"):
                    contestants[f"transformers, {dtype}"] = self.theirs(generate, ids, dtype=dtype)
            if "llama" in peers:
                from benchmarks.rollout_peer import SamplingServer

                for file in QUANTISATIONS:
                    model, slots = Path(o.peer_models) / file, self.prompts * self.samples
                    server = SamplingServer(Path(o.server), model, (), slots=slots, threads=o.threads)
                    stack.enter_context(server)
                    contestants[f"llama.cpp, {file.removesuffix('.gguf')}"] = self.theirs(server, ids)
            self.shares(locals_[0], contestants[f"pomona, {o.model}"])
            for name, run in contestants.items():  # the first time of each sets things up
                _progress(f"{name}: first run")
                run()
            speeds = interleave(
                contestants, self.rounds, on_round=lambda d, t: _progress(f"roll-outs, round {d}/{t}")
            )
        best = f"pomona, {o.model}"
        for name, found in speeds.items():
            over = median_and_range(ratios(speeds[best], found)) if name != best else "1"
            self.row(
                f"roll-outs, {name}: tokens/s", f"{statistics.median(found):,.0f}", f"ours over it: {over}"
            )
        for peer, goal in (("transformers", OVER_TRANSFORMERS), ("llama.cpp", OVER_LLAMA)):
            theirs = [found for name, found in speeds.items() if name.startswith(peer)]
            if theirs:
                fastest = max(theirs, key=statistics.median)
                value = statistics.median(ratios(speeds[best], fastest))
                self.goals.append(Goal(f"roll-outs: tokens per second over {peer}'s best", value, goal))
        self.notes.append(
            f"roll-outs: {self.prompts} prompts, {self.samples} responses each, at most {self.tokens} tokens "
            "long, sampled at temperature 1 from the whole distribution; everyone gets all at once"
        )
        self.results["rollout_tokens_per_second"] = speeds

    def shares(self, rollouts: Any, run: Callable[[], float]) -> None:
        """Where the time of one run goes."""
        import time

        rollouts.engine.profile(True)
        before = rollouts.scheduler.stats().step_seconds
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        steps = rollouts.scheduler.stats().step_seconds - before
        profile = rollouts.engine.take_profile()
        rollouts.engine.profile(False)
        attention = profile.pop("attention", 0.0) / 1e9
        products = sum(profile.values()) / 1e9
        shown = f"attention {attention / seconds:.0%}, outside of steps {1 - steps / seconds:.0%}"
        self.row("roll-outs: time in products with the base's weights", f"{products / seconds:.0%}", shown)

    def texts(self) -> list[str]:
        from pomona.posttraining.instructions import InstructionOptions, make_prompts

        found = make_prompts(InstructionOptions(rows=self.prompts, seed=SEED))
        return [prompt.messages[-1]["content"] for prompt in found]

    def ours(self, rollouts: Any, ids: Sequence[Sequence[int]]) -> Callable[[], float]:
        import time

        from pomona.posttraining.rollouts import RollOutSampling

        seeds = iter(range(1 << 30))

        def run() -> float:
            sampling = RollOutSampling(self.tokens, 1.0, next(seeds))
            started = time.perf_counter()
            found = rollouts.sample(ids, None, self.samples, sampling)
            seconds = time.perf_counter() - started
            return sum(len(one.token_ids) for group in found for one in group) / seconds

        return run

    def theirs(self, peer: Any, ids: Sequence[Sequence[int]], **more: Any) -> Callable[[], float]:
        seeds = iter(range(0, 1 << 30, 4096))
        if more:
            more["batch"] = len(ids) * self.samples

        def run() -> float:
            seconds, tokens = peer.sample(ids, self.samples, self.tokens, next(seeds), **more)
            return float(tokens / seconds)

        return run

    # --- committee ----------------------------------------------------------------------------------------

    def committee(self) -> None:
        """Four adapters in one mixed batch against one after the other."""
        import time

        from benchmarks.adapter_files import RandomAdapter
        from pomona.posttraining.rollouts import Job, LocalRollOuts, RollOutSampling

        with LocalRollOuts(self.options.model, threads=self.options.threads) as rollouts:
            names = [f"member-{number}" for number in range(MEMBERS)]
            for number, name in enumerate(names):
                RandomAdapter(rollouts.engine.config, number).write_peft(self.folder / name)
                rollouts.replace(name, self.folder / name)
            ids = [rollouts.render([{"role": "user", "content": text}]) for text in self.texts()]
            jobs = [Job(tuple(row), name, 2, key) for key, row in enumerate(ids) for name in names]
            sampling = RollOutSampling(self.tokens, 1.0, SEED)

            def speed(parts: Sequence[Sequence[Any]]) -> float:
                started = time.perf_counter()
                found = [rollouts.sample_mixed(part, sampling) for part in parts]
                seconds = time.perf_counter() - started
                tokens = sum(len(one.token_ids) for part in found for group in part for one in group)
                return tokens / seconds

            apart = [[job for job in jobs if job.adapter == name] for name in names]
            speed([jobs])
            speeds = interleave(
                {"one mixed batch": lambda: speed([jobs]), "one after the other": lambda: speed(apart)},
                self.rounds,
            )
        gain = ratios(speeds["one mixed batch"], speeds["one after the other"])
        for name, found in speeds.items():
            self.row(f"committee of {MEMBERS}, {name}: tokens/s", f"{statistics.median(found):,.0f}")
        self.row("committee: mixed over one after the other", median_and_range(gain))
        self.goals.append(
            Goal("committee: mixed batch over one after the other", statistics.median(gain), 1.0)
        )
        self.results["committee_tokens_per_second"] = speeds

    def itec_rounds(self) -> None:
        from benchmarks.posttraining_itec import rows_of_rounds, some_rounds

        o = self.options
        work = Path(o.work) if o.work else self.folder / "itec"
        rounds = 1 if o.quick else ITEC_ROUNDS
        done = some_rounds(o.model, work, rounds, o.threads, _progress, quick=o.quick)
        self.rows += rows_of_rounds(work, rounds)
        self.notes.append(
            "iTeC: recipes/post/itec-laptop.yaml; the verifier's reward, 0 to 1, 95% intervals by resampling "
            "prompts; rounds have prompts of their own, held-out ones are the same for all"
        )
        self.results["itec"] = done


def run(options: argparse.Namespace) -> Report:
    machine = machine_facts()
    parts = set(PARTS) - set(options.skip)
    if options.quick and parts != {"rounds"}:
        parts -= {"rounds"}
    with tempfile.TemporaryDirectory(prefix="pomona-posttraining-") as folder:
        bench = Bench(options, Path(folder))
        if "equations" in parts:
            bench.equations()
        if "rollouts" in parts:
            bench.rollouts(parts & {"transformers", "llama"})
        if "committee" in parts:
            bench.committee()
        if "rounds" in parts:
            bench.itec_rounds()
    if not bench.rows:
        raise BenchmarkError("every part is left out; give fewer to --skip")
    if options.skip:
        bench.notes.append(f"left out of this run: {', '.join(options.skip)}")
    results = {"model": options.model, "threads": options.threads, "rows": bench.rows, "notes": bench.notes}
    return Report("posttraining", {**results, **bench.results}, bench.goals, machine)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.posttraining",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="few short responses; rounds only if nothing else is asked for",
    )
    add("--model", default="smollm2-135m-4bit", help="ours (default: %(default)s)")
    add("--reference", default="smollm2-135m", help="the same in 16 bit (default: %(default)s)")
    add("--threads", type=int, default=min(2, usable_cores()), help="of everyone (default: %(default)s)")
    add("--rounds", type=int, help=f"of turns (default: {ROUNDS}, quick: 1)")
    add("--skip", nargs="+", choices=PARTS, default=[], help="parts to leave out")
    add("--work", help="folder of the rounds of iTeC, which are then kept")
    add("--peer-models", default=str(ROOT / ".peer/models"), help="folder of llama.cpp's GGUF files")
    add("--server", default=str(ROOT / ".peer/bin/llama-server"), help="llama.cpp's server")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the peers must end with us
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
