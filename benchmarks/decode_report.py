"""What `benchmarks.decode` measures, and how it tells what it found: the table, the notes, the goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import Goal, Row, median_and_range, ratios
from benchmarks.peer import Measure

Q4_K_M, Q4_0 = "Q4_K_M", "Q4_0 pure"
PEERS = {Q4_K_M: "q4_k_m.gguf", Q4_0: "q4_0_pure.gguf"}

DECODE = Measure("decode tg128", "decode", 0, 128)
AFTER_512 = Measure("decode tg64 after 512", "decode", 512, 64)
AFTER_2048 = Measure("decode tg64 after 2,048", "decode", 2048, 64)
TOGETHER = Measure("decode 8 x tg64 after 32", "decode", 32, 64, sequences=8)
PREFILL = Measure("prefill pp512", "prefill", 0, 512)
MEASURES = (DECODE, AFTER_512, AFTER_2048, TOGETHER, PREFILL)
QUICK = (DECODE, TOGETHER, PREFILL)

LARGE_DECODE = Measure("decode tg32", "decode", 0, 32)
LARGE_TOGETHER = Measure("decode 8 x tg16 after 32", "decode", 32, 16, sequences=8)
LARGE_MEASURES = (LARGE_DECODE, LARGE_TOGETHER, PREFILL)


@dataclass
class Found:
    """The figures of one of our models: tokens per second, in the order in which they were taken.

    Keys are names of measures, then of peers or instruction sets.
    """

    model: str
    bits: tuple[float, float]  # per weight: of the projections, of the whole file
    isa: str
    threads: int
    bytes_per_token: int
    large: bool = False
    ours: dict[str, list[float]] = field(default_factory=dict)
    peers: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    ratios: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    bandwidth: list[float] = field(default_factory=list)  # GB/s of the machine
    fractions: dict[str, list[float]] = field(default_factory=dict)  # of that, round by round
    isas: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    peer_facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(
        self,
        measure: Measure,
        bytes_read: int,
        ours: Sequence[float],
        bandwidth: Sequence[float],
        peers: Mapping[str, Sequence[float]],
    ) -> None:
        """Takes the figures of one turn-taking; `bytes_read` is what one of our runs reads."""
        name = measure.name
        self.ours.setdefault(name, []).extend(ours)
        self.bandwidth.extend(bandwidth)
        speeds = [bytes_read * speed / measure.total / 1e9 for speed in ours]
        self.fractions.setdefault(name, []).extend(ratios(speeds, bandwidth))
        for peer, figures in peers.items():
            self.peers.setdefault(name, {})[peer] = list(figures)
            self.ratios.setdefault(name, {})[peer] = ratios(ours, figures)

    def times(self, measure: Measure, peer: str) -> float | None:
        """How many times the peer's speed ours is; None where it was not measured."""
        found = self.ratios.get(measure.name, {}).get(peer)
        return statistics.median(found) if found else None

    def fraction(self, measure: Measure) -> float | None:
        """The part of the machine's bandwidth that we reach."""
        found = self.fractions.get(measure.name)
        return statistics.median(found) if found else None

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "isa": self.isa,
            "projection_bits_per_weight": self.bits[0],
            "file_bits_per_weight": self.bits[1],
            "bytes_per_token": self.bytes_per_token,
            "machine_gb_per_second": self.bandwidth,
            "speeds": self.ours,
            "bandwidth_fractions": self.fractions,
            "peer_speeds": self.peers,
            "ratios": self.ratios,
            "isa_speeds": self.isas,
            "peers": self.peer_facts,
        }


def rows(found: Sequence[Found]) -> list[Row]:
    """One row per model and measure."""
    peers = [peer for peer in PEERS if any(peer in by for one in found for by in one.peers.values())]
    isas = list(dict.fromkeys(isa for one in found for by in one.isas.values() for isa in by))
    return [_row(one, name, peers, isas) for one in found for name in one.ours]


def _row(found: Found, name: str, peers: Sequence[str], isas: Sequence[str]) -> Row:
    row: dict[str, str | float] = {
        "tokens/s": name,
        "model": found.model,
        "pomona": statistics.median(found.ours[name]),
        "of bandwidth": "<1%" if (part := statistics.median(found.fractions[name])) < 0.01 else f"{part:.0%}",
    }
    for isa in isas:
        other = found.isas.get(name, {}).get(isa)
        row[isa] = statistics.median(other) if other else "-"
    for peer in peers:
        figures = found.peers.get(name, {}).get(peer)
        row[f"llama.cpp {peer}"] = statistics.median(figures) if figures else "-"
        row[f"x {peer}"] = median_and_range(found.ratios[name][peer]) if figures else "-"
    return row


def goals(found: Sequence[Found]) -> list[Goal]:
    """The goals of the first small model and of the large one, as far as they were tried."""
    small = [one for one in found if not one.large][:1]
    return [
        goal
        for one in (*small, *(one for one in found if one.large))
        for goal in (_large_goals(one) if one.large else _small_goals(one))
    ]


def _small_goals(found: Found) -> Iterator[Goal]:
    at = f"{found.model}, {threads(found)}"
    decode = {peer: found.times(DECODE, peer) for peer in PEERS}
    yield Goal(f"{at}: decode, times Q4_K_M", decode[Q4_K_M], 3.0)
    yield Goal(f"{at}: decode, times Q4_K_M (stretch)", decode[Q4_K_M], 3.5)
    yield Goal(f"{at}: decode, times pure Q4_0", decode[Q4_0], 1.6)
    yield Goal(f"{at}: decode, times pure Q4_0 (stretch)", decode[Q4_0], 2.0)
    if AFTER_2048.name in found.ours:  # not with --quick
        yield Goal(f"{at}: decode after 2,048, times pure Q4_0", found.times(AFTER_2048, Q4_0), 1.8)
    yield Goal(f"{at}: decode of 8 together, times pure Q4_0", found.times(TOGETHER, Q4_0), 3.0)
    yield Goal(f"{at}: prefill of 512, times the faster peer", _against_faster(found, PREFILL), 2.2)


def _large_goals(found: Found) -> Iterator[Goal]:
    at = f"{found.model}, {threads(found)}"
    yield Goal(f"{at}: decode, times Q4_K_M", found.times(LARGE_DECODE, Q4_K_M), 1.3)
    yield Goal(f"{at}: prefill of 512, times Q4_K_M", found.times(PREFILL, Q4_K_M), 2.2)
    yield Goal(f"{at}: decode, part of the machine's read bandwidth", found.fraction(LARGE_DECODE), 0.75)


def _against_faster(found: Found, measure: Measure) -> float | None:
    """Against whichever peer is the faster one."""
    times = [found.times(measure, peer) for peer in PEERS]
    known = [value for value in times if value is not None]
    return min(known) if len(known) == len(times) else None


def notes(found: Sequence[Found], rounds: Mapping[str, int]) -> list[str]:
    """What a reader must know to judge the table. rounds: by model."""
    lines = [
        "The contestants take turns; figures are medians, ratios are taken round by round: median "
        "(lowest-highest). Rounds: " + ", ".join(f"{model} {count}" for model, count in rounds.items()) + ".",
        *(_model_note(one) for one in found),
        *(_peer_note(one) for one in {id(one.peer_facts): one for one in found if one.peer_facts}.values()),
        "`of bandwidth`: bytes that our run has to read (all weights once per step; keys and values too in "
        "decoding) per second, against the speed at which this machine reads a buffer as large as the "
        "weights from 2 MB pages with the same threads, in the same rounds.",
        "8 sequences: one token of each per step, and the tokens of all count, as in llama-batched-bench.",
        "For every measure llama.cpp was tried with flash and with plain attention, and for 8 sequences with "
        "one cache and with one for each; it uses the fastest.",
        "Our time includes choosing each token (greedily) and the Python loop; llama.cpp chooses none.",
    ]
    if any(one.isas for one in found):
        lines.append(
            "The columns of other instruction sets were taken afterwards, alone, on fewer tokens: "
            "ours on a machine that has no more than these."
        )
    if any(one.large for one in found):
        lines.append(
            "The large model's weights are random, in both engines: it shows speed and nothing else."
        )
    return lines


def threads(found: Found) -> str:
    return f"{found.threads} thread{'s' if found.threads > 1 else ''}"


def _model_note(found: Found) -> str:
    projections, file = found.bits
    decode = next(iter(found.ours))
    speed = statistics.median(found.ours[decode])
    return (
        f"{found.model}: {projections:.2f} bits per projection weight, {file:.2f} in all; {threads(found)}, "
        f"{found.isa} kernels. A decoded token reads {found.bytes_per_token / 1e6:,.1f} MB of weights: "
        f"{found.bytes_per_token * speed / 1e9:.1f} GB/s; the machine "
        f"{statistics.median(found.bandwidth):.1f} GB/s."
    )


def _peer_note(found: Found) -> str:
    facts = found.peer_facts
    sizes = ", ".join(
        f"{name} {peer['weight_bytes'] / 1e6:,.0f} MB ({peer['bits_per_weight']:.2f} bits per weight)"
        for name, peer in facts.items()
    )
    attention = "; ".join(
        f"{name}: " + ", ".join(f"{setting} in {measure}" for measure, setting in peer["attention"].items())
        for name, peer in facts.items()
    )
    version = next(iter(facts.values()))["version"]
    return (
        f"Beside {found.model}: llama.cpp of llama-cpp-python {version}, compiled for this processor; "
        f"{sizes}. Attention: {attention}."
    )
