"""proofread: clean text, corrupted by the error model; the clean text is the answer.

Training text: Wikipedia and Gutenberg sentences (with a data folder) and the project's invented mails. One
row in twenty holds a sentence that gives orders, which is to be corrected like any other. Held out: C4
sentences, that no row is made of, with the same error model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from pomona.adapters.recipes.error_model import corrupt
from pomona.adapters.recipes.injections import TRAINING
from pomona.adapters.recipes.names import World
from pomona.adapters.recipes.rows import HELD_OUT_SEED, OWN, OWN_LICENSE, RecipeOptions, mixed
from pomona.adapters.recipes.scenes import mail
from pomona.adapters.tasks.task import Example, Request
from pomona.data.public_sets import LICENSES, corpus, sentences

TRAINING_CORPORA = (("wiki_demo", 5.0), ("gutenberg_pride", 1.0))
HELD_OUT_CORPUS = "c4_demo"
HELD_OUT_ROWS = 400
INJECTED = 0.05


def examples(options: RecipeOptions) -> Iterator[Example]:
    streams = [(2.0, _mails(options.rng("mails")))]
    if options.data is not None:
        for name, weight in TRAINING_CORPORA:
            runs = sentences(corpus(options.data, name))
            streams.append((weight, _corrupted(runs, options.rng(name), name)))
    return mixed(options.rng("mix"), *streams)


def held_out(folder: Path) -> list[Example]:
    runs = sentences(corpus(folder, HELD_OUT_CORPUS))
    rng = random.Random(HELD_OUT_SEED)
    rng.shuffle(runs)
    stream = _corrupted(runs, rng, HELD_OUT_CORPUS, injected=0.0)
    return [next(stream) for _ in range(min(HELD_OUT_ROWS, len(runs)))]


def _corrupted(
    runs: list[list[str]], rng: random.Random, source: str, *, injected: float = INJECTED
) -> Iterator[Example]:
    """Endless: the runs in a new order each time, with other errors, one to four sentences at a time."""
    while runs:
        for run in rng.sample(runs, len(runs)):
            size = rng.choice((1, 1, 2, 3, 4))
            start = rng.randrange(max(1, len(run) - size + 1))
            yield _example(" ".join(run[start : start + size]), rng, source, LICENSES[source], injected)


def _mails(rng: random.Random) -> Iterator[Example]:
    world = World(rng)
    while True:
        found = mail(world)
        parts = found.body.replace("? ", "?|").replace(". ", ".|").split("|")
        start = rng.randrange(len(parts))
        text = " ".join(parts[start : start + rng.choice((1, 2, 3))])
        yield _example(text[0].upper() + text[1:], rng, OWN, OWN_LICENSE, INJECTED)


def _example(text: str, rng: random.Random, source: str, licence: str, injected: float) -> Example:
    if rng.random() < injected:
        text = f"{text} {rng.choice(TRAINING).format(w=rng.choice(('apple', 'seven', 'yes')))}"
    return Example(Request(corrupt(text, rng)), text, source, licence)
