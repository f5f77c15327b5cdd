"""The data pipeline on real text with known things planted in it, and its speed beside datatrove's defaults.

    python -m benchmarks.pretraining_data --quick
    python -m benchmarks.pretraining_data --json data.json

Needs POMONA_DATA (a sample of C4 and Wikipedia articles as text, GSM8K's test questions as the benchmark).
Planted: copies of documents with every twentieth word changed; benchmark questions; a benchmark's phrase
often enough to be common, and another one occurrence short of it; personal data, and numbers that are none.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Report, interleave, machine_facts, ratios, run_command

COMMON = 1000  # occurrences from which an n-gram is common (AFM_REPORT 2.3)
EDITED = 0.05


def measure(*, quick: bool = False, rounds: int = 3, seed: int = 0) -> tuple[dict[str, Any], list[Goal]]:
    """Everything: results with "rows" and "notes", and the goals. Minutes; under one with `quick`."""
    rng = random.Random(seed)
    texts = passages(200, 400 if quick else 1200)
    found = [near_duplicates(texts, rng, planted=60 if quick else 200), decontamination(rng)]
    found.append(personal_data(texts, rng, each=10 if quick else 50))
    found.append(throughput(texts, rounds=1 if quick else rounds))
    rows = [row for results, _ in found for row in results["rows"]]
    notes = [note for results, _ in found for note in results["notes"]]
    values = {key: value for results, _ in found for key, value in results["values"].items()}
    return {"rows": rows, "notes": notes, **values}, [goal for _, goals in found for goal in goals]


Finding = tuple[dict[str, Any], list[Goal]]


def near_duplicates(texts: Sequence[str], rng: random.Random, *, planted: int) -> Finding:
    """Copies with EDITED of their words replaced, dropped or doubled, among the texts that they are of."""
    vocabulary = [word for text in texts for word in text.split()]
    copies = {f"copy-{i}": edit(texts[i], rng, vocabulary) for i in rng.sample(range(len(texts)), planted)}
    documents = {f"text-{i}": text for i, text in enumerate(texts)} | copies
    order = list(documents.items())
    rng.shuffle(order)
    ours = _removed(order, [{"deduplicate": {}}])
    theirs = _removed(order, [{"deduplicate": {"ngram": 5, "bands": 14, "rows": 8, "min_similarity": 0}}])
    rows, values = [], {}
    pairs = [(name, name.replace("copy", "text")) for name in copies]
    others = set(documents) - {name for pair in pairs for name in pair}
    for who, removed in (("pomona", ours), ("datatrove's bands and n-grams", theirs)):
        recall = sum(bool(set(pair) & removed) for pair in pairs) / len(pairs)
        false = len(others & removed) / len(others)
        rows.append(_row("near-duplicates found", who, f"{100 * recall:.1f}%"))
        rows.append(_row("other documents removed", who, f"{100 * false:.2f}%"))
        if who == "pomona":
            values = {"near_duplicate_recall": recall, "false_removals": false}
    goals = [
        Goal("share of planted near-duplicates found", values["near_duplicate_recall"], 0.95),
        Goal("share of other documents removed", values["false_removals"], 0.01, "<="),
    ]
    notes = [
        f"near-duplicates: {planted} of {len(texts)} passages of 200 words or so, copied with "
        f"{100 * EDITED:.0f}% of the words replaced, dropped or doubled at random"
    ]
    return {"rows": rows, "notes": notes, "values": values}, goals


def decontamination(rng: random.Random) -> Finding:
    """The report's rule on short passages that share nothing with the benchmark but what is planted."""
    from pomona.data.ngrams import plain_words

    questions = benchmark_questions()
    steps = [{"decontaminate": {"benchmarks": [{"name": "planted", "path": "BENCHMARK"}], "common": COMMON}}]
    benchmark = "".join(json.dumps({"question": question}) + "\n" for question in questions)
    passages_ = [(f"text-{i}", text) for i, text in enumerate(passages(40, 100_000))]
    foul = _removed(passages_, steps, benchmark)
    clean = [text for name, text in passages_ if name not in foul]
    if len(clean) < 2 * COMMON + 300:
        raise ValueError(f"only {len(clean)} passages share nothing with the benchmark")
    rng.shuffle(clean)
    phrases = [" ".join(plain_words(question)[:6]) for question in rng.sample(questions, 40)]
    common, rare = next((a, b) for a in phrases for b in phrases if not set(a.split()) & set(b.split()))
    # A word of its own keeps the end of a passage and the phrase from making an n-gram together.
    often = {f"common-{i}": f"{clean[i]} separator{i} {common}" for i in range(COMMON)}
    short = {f"rare-{i}": f"{clean[COMMON + i]} separator{i} {rare}" for i in range(COMMON - 1)}
    rest = clean[2 * COMMON - 1 :]
    whole = {f"question-{i}": f"{rest[i]} {question}" for i, question in enumerate(questions[:100])}
    plain = {f"plain-{i}": text for i, text in enumerate(rest[100:])}
    removed = _removed(list({**often, **short, **whole, **plain}.items()), steps, benchmark)

    def share(names: Iterable[str]) -> float:
        names = list(names)
        return sum(name in removed for name in names) / len(names)

    values = {
        "planted_questions_removed": share(whole),
        "common_phrase_kept": 1 - share(often),
        "rare_phrase_removed": share(short),
        "plain_kept": 1 - share(plain),
    }
    titles = {
        "planted_questions_removed": "documents with a benchmark question removed",
        "common_phrase_kept": f"documents with a phrase of {COMMON:,} occurrences kept",
        "rare_phrase_removed": f"documents with a phrase of {COMMON - 1:,} occurrences removed",
        "plain_kept": "documents that share nothing kept",
    }
    rows = [_row(titles[key], "pomona", f"{100 * value:.1f}%") for key, value in values.items()]
    notes = [
        f"decontamination: any n-gram of 4 to 13 words, GSM8K's {len(questions):,} test questions, passages "
        f"of 40 words; {len(foul):,} of {len(passages_):,} share an n-gram by chance and were set aside"
    ]
    return {"rows": rows, "notes": notes, "values": values}, [
        Goal(f"share of {titles[key]}", value, 1.0) for key, value in values.items()
    ]


def personal_data(texts: Sequence[str], rng: random.Random, *, each: int) -> Finding:
    """Personal data of every kind in the midst of text, and numbers that are none."""
    from pomona.data.pipeline.pii import redact

    planted = [(kind, make(rng)) for kind, make in PERSONAL.items() for _ in range(each)]
    harmless = [make(rng) for make in HARMLESS for _ in range(each)]
    left: list[tuple[str, str]] = []
    for kind, item in planted:
        words = rng.choice(texts).split()
        place = rng.randrange(len(words))
        text, _ = redact(" ".join([*words[:place], item, *words[place:]]))
        if item in text:
            left.append((kind, item))
    touched = [item for item in harmless if item not in redact(f"The number {item} is in the text.")[0]]
    gone, false = 1 - len(left) / len(planted), len(touched) / len(harmless)
    rows = [
        _row("planted personal data removed", "pomona", f"{100 * gone:.1f}%"),
        _row("other numbers touched", "pomona", f"{100 * false:.1f}%"),
    ]
    notes = [
        f"personal data: {len(planted)} items of {len(PERSONAL)} kinds in running text; other numbers: "
        f"{len(harmless)} dates, prices, versions, ISBNs and the like"
    ]
    values = {
        "personal_data_removed": gone,
        "other_numbers_touched": false,
        "personal_data_left": [f"{kind}: {item}" for kind, item in left[:5]],
    }
    return {"rows": rows, "notes": notes, "values": values}, [
        Goal("share of planted personal data removed", gone, 1.0),
        Goal("share of other numbers touched", false, 0.01, "<="),
    ]


def throughput(texts: Sequence[str], *, rounds: int) -> Finding:
    """MB of text per second of processor time: our settings and words against datatrove's."""
    from datatrove.data import Document

    size = sum(len(text.encode()) for text in texts) / 1e6

    def seconds(make: Maker) -> float:
        documents: Any = (Document(text=text, id=str(i)) for i, text in enumerate(texts))
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            blocks = make(Path(folder))
            started = time.process_time()
            for block in blocks:
                documents = block.run(documents)
            for _ in documents or ():
                pass
            return time.process_time() - started

    rows, values, spent = [], {}, []
    words, steps = _contestants()
    for name, (ours, theirs) in steps.items():
        contest = {"pomona": partial(seconds, ours), "datatrove": partial(seconds, theirs)}
        for run in contest.values():  # everybody is warm
            run()
        figures = interleave(contest, rounds)
        spent.append({who: statistics.median(taken) for who, taken in figures.items()})
        rows += [_row(f"{name}, MB/s", who, f"{size / taken:.2f}") for who, taken in spent[-1].items()]
        values[name] = statistics.median(ratios(figures["datatrove"], figures["pomona"]))
    total = {who: sum(one[who] for one in spent) for who in ("pomona", "datatrove")}
    rows += [_row("both, MB/s", who, f"{size / taken:.2f}") for who, taken in total.items()]
    faster = total["datatrove"] / total["pomona"]
    goals = [Goal("speed of filters and signatures over datatrove's defaults", faster, 1.0)]
    notes = [
        f"speed: per second of processor time, {size:.1f} MB in memory, to both alike; "
        f"datatrove's words by {words}"
    ]
    return {"rows": rows, "notes": notes, "values": {"speed_up_by_step": values, "speed_up": faster}}, goals


Maker = Callable[[Path], list[Any]]


def _contestants() -> tuple[str, dict[str, tuple[Maker, Maker]]]:
    """Who makes the peer's words, and of each step our blocks and datatrove's with its defaults."""
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    from pomona.data.pipeline import deduplication, heuristics
    from pomona.data.pipeline import recipe as settings
    from pomona.data.pipeline.repetition import DropRepetitive

    who, words = _peer_words()

    def our_filters(_: Path) -> list[Any]:
        return [
            DropRepetitive(settings.GopherRepetition()),
            heuristics.gopher_quality(settings.GopherQuality()),
            heuristics.fineweb(settings.FineWeb()),
            heuristics.c4(settings.C4()),
        ]

    def their_filters(_: Path) -> list[Any]:
        return [
            GopherRepetitionFilter(language=words),
            GopherQualityFilter(language=words),
            FineWebQualityFilter(language=words),
            C4QualityFilter(language=words),
        ]

    return who, {
        "Gopher, FineWeb and C4 filters in a row": (our_filters, their_filters),
        "MinHash signatures": (
            lambda folder: [deduplication.Signatures(folder, settings.Deduplicate())],
            lambda folder: [_peer_signatures(words, folder)],
        ),
    }


def _peer_signatures(words: Any, folder: Path) -> Any:
    """datatrove's signatures. It hands xxhash texts, which release 4 refuses: they are encoded on the way."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from xxhash import xxh64_intdigest

    block = MinhashDedupSignature(str(folder), language=words)
    block._hash_func = lambda text: xxh64_intdigest(text.encode())
    return block


def _peer_words() -> tuple[str, Any]:
    """datatrove takes spaCy's words; where spaCy is not installed, NLTK's, which it has a class for too."""
    if find_spec("spacy") is not None:
        return "spaCy", "eng_Latn"
    from pomona.data.pipeline.words import PlainWords

    if find_spec("nltk") is None:
        return "pomona (neither spaCy nor NLTK is installed)", PlainWords()
    from nltk.tokenize import NLTKWordTokenizer  # type: ignore[import-untyped]

    class NltkWords(PlainWords):
        """NLTK's rules for words, which need no data; our sentences, as NLTK's need a download."""

        def __init__(self) -> None:
            super().__init__()
            self._rules = NLTKWordTokenizer()

        def word_tokenize(self, text: str) -> list[str]:
            return [str(word) for word in self._rules.tokenize(text)]

    return "NLTK (spaCy, its default, is not installed)", NltkWords()


# --- text, and what is planted in it ---------------------------------------------------------------------


def passages(words: int, most: int) -> list[str]:
    """Different passages of about so many words, of the C4 sample and Wikipedia in turns."""
    from pomona.data.public_sets import corpus, data_folder

    folder = data_folder()
    per_source = [list(dict.fromkeys(_cut(corpus(folder, name), words))) for name in ("c4_demo", "wiki_demo")]
    mixed = [text for pair in zip(*per_source, strict=False) for text in pair]
    longest = max(per_source, key=len)
    return [*mixed, *longest[len(mixed) // 2 :]][:most]


def _cut(documents: Iterable[str], words: int) -> Iterator[str]:
    for document in documents:
        found = document.split()
        for start in range(0, len(found) - words + 1, words):
            yield " ".join(found[start : start + words])


def benchmark_questions() -> list[str]:
    from pomona.data.public_sets import data_folder

    path = data_folder() / "gsm8k" / "test.jsonl"
    return [str(json.loads(line)["question"]) for line in path.read_text(encoding="utf-8").splitlines()]


def edit(text: str, rng: random.Random, vocabulary: Sequence[str]) -> str:
    """`text` with EDITED of its words (at least one) replaced, dropped or doubled."""
    words = text.split()
    for place in rng.sample(range(len(words)), max(1, round(EDITED * len(words)))):
        word = words[place]
        words[place] = rng.choice((rng.choice(vocabulary), "", f"{word} {word}"))
    return " ".join(word for word in words if word)


def _digits(rng: random.Random, count: int) -> str:
    return "".join(str(rng.randrange(10)) for _ in range(count))


def _card(rng: random.Random) -> str:
    body = rng.choice("456") + _digits(rng, 14)
    doubled = [2 * int(d) - 9 * (int(d) > 4) if i % 2 == 0 else int(d) for i, d in enumerate(reversed(body))]
    number = body + str(-sum(doubled) % 10)
    return rng.choice(("", " ", "-")).join(number[i : i + 4] for i in range(0, 16, 4))


def _iban(rng: random.Random) -> str:
    body = _digits(rng, 18)
    check = 98 - int(f"{body}131400") % 97  # "DE00" as numbers behind the account
    number = f"DE{check:02d}{body}"
    return number if rng.random() < 0.5 else " ".join(number[i : i + 4] for i in range(0, 22, 4))


def _email(rng: random.Random) -> str:
    first, last = rng.choice(("ann", "b.lee", "Carl_9", "dora+news")), rng.choice(("smith", "o-neil", "x1"))
    host = rng.choice(("mail.com", "uni-ulm.de", "a.b.co.uk", "firm.museum"))
    return rng.choice((f"{first}.{last}@{host}", f"{first}{last}@{host}", f"{first} [at] {host}"))


def _phone(rng: random.Random) -> str:
    area, middle, last = f"{rng.randrange(200, 999)}", _digits(rng, 3), _digits(rng, 4)
    return rng.choice(
        (
            f"({area}) {middle}-{last}",
            f"{area}-{middle}-{last}",
            f"+1 {area} {middle} {last}",
            f"+44 20 {_digits(rng, 4)} {last}",
            f"+49-30-{_digits(rng, 4)}-{last}",
            f"020 {_digits(rng, 4)} {last}",
        )
    )


def _ip(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return f"2a02:{rng.randrange(16**4):x}:{rng.randrange(16**4):x}::{rng.randrange(1, 16**4):x}"
    return (
        f"{rng.choice((8, 17, 81, 93, 142))}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(256)}"
    )


def _secret(rng: random.Random) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

    def some(count: int) -> str:
        return "".join(rng.choice(letters) for _ in range(count))

    return rng.choice((f"AKIA{some(16)}", f"ghp_{some(36)}", f"xoxb-{_digits(rng, 12)}-{some(24)}"))


PERSONAL: dict[str, Callable[[random.Random], str]] = {
    "email": _email,
    "phone": _phone,
    "ip": _ip,
    "card": _card,
    "iban": _iban,
    "ssn": lambda rng: f"{rng.randrange(100, 665)}-{rng.randrange(10, 99)}-{rng.randrange(1000, 9999)}",
    "secret": _secret,
}
HARMLESS: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: f"{rng.randrange(1900, 2030)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}",
    lambda rng: f"${rng.randrange(1, 999)},{_digits(rng, 3)}.{_digits(rng, 2)}",
    lambda rng: f"v{rng.randrange(20)}.{rng.randrange(20)}.{rng.randrange(20)}",
    lambda rng: f"{rng.randrange(24):02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}",
    lambda rng: f"978-0-{_digits(rng, 3)}-{_digits(rng, 5)}-{_digits(rng, 1)}",
    lambda rng: f"192.168.{rng.randrange(256)}.{rng.randrange(256)}",
    lambda rng: f"{rng.randrange(1, 99)},{_digits(rng, 3)},{_digits(rng, 3)}",
    lambda rng: f"RFC {rng.randrange(1000, 9999)}, pages {rng.randrange(99)}-{rng.randrange(100, 200)}",
)


# --- running a recipe ------------------------------------------------------------------------------------


def _removed(
    documents: Sequence[tuple[str, str]], steps: list[dict[str, Any]], benchmark: str | None = None
) -> set[str]:
    """The names of the documents that a recipe of these steps removes."""
    from pomona.data.pipeline.recipe import Recipe
    from pomona.data.pipeline.run import run_recipe

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "documents.jsonl"
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"id": id_, "text": text}) + "\n" for id_, text in documents)
        if benchmark is not None:
            (folder / "planted.jsonl").write_text(benchmark, encoding="utf-8")
        written = json.loads(json.dumps(steps).replace("BENCHMARK", str(folder / "planted.jsonl")))
        recipe = Recipe.model_validate(
            {
                "name": "benchmark",
                "inputs": [{"name": "all", "path": str(source), "kind": "jsonl"}],
                "steps": written,
            }
        )
        run_recipe(recipe, folder, folder / "run")
        removed: set[str] = set()
        for path in (folder / "run" / "removed").rglob("*.jsonl.gz"):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                removed |= {json.loads(line)["id"] for line in lines}
        return removed


def _row(what: str, who: str, value: str) -> dict[str, str]:
    return {"measure": what, "by": who, "value": value}


def run(options: argparse.Namespace) -> Report:
    machine = machine_facts()
    results, goals = measure(quick=options.quick, rounds=options.rounds or 3, seed=options.seed)
    return Report("pretraining_data", results, goals, machine)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretraining_data", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer documents, one round")
    parser.add_argument("--rounds", type=int, help="of the measurement of speed (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of what is planted where")
    parser.add_argument(
        "--threads", type=int, default=1, help="the pipeline uses one core whatever this says"
    )
    parser.add_argument("--json", type=Path, help="also write the last line to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
