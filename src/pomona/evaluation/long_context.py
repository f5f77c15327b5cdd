"""Long contexts: a set in the manner of RULER (Hsieh et al., arXiv:2404.06654), written for pomona.

    task = TASKS["long_niah_multikey_4096"]

Five kinds of questions about a text of 1,024 to 8,192 tokens of the model's own: one needle; one needle among
others with other keys; four needles with one key; chains of assignments; the words that come most often. Text
and needles are drawn from lists of words below by a seed, so that every run with one tokenizer asks the same;
nothing is taken from a book that a model may know. As in RULER the answer's first words are given, and the
score is the share of wanted words that the answer contains.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

from pomona.errors import PomonaError
from pomona.evaluation.generation_task import GenerationTask, Question, Score, Setting, each

LENGTHS = (1024, 2048, 4096, 8192)  # tokens of prompt and answer together
ITEMS = 50
NEW_TOKENS = 64
KEYS, VALUES, HOPS, COMMON = 8, 4, 4, 5
SPARE = 24  # tokens by which counts of parts may differ from that of the whole

_WHO = "the baker|a young surveyor|the harbour master|my neighbour|an old printer|the teacher"
_DID = "counted|painted|repaired|described|carried home|photographed|sold|forgot|measured|put away"
_WHAT = "the lanterns|a wooden ladder|three blue jars|the garden gate|an unfinished map|the copper kettle"
_WHERE = "behind the mill|near the station|in the upper market|beside the canal|under the old bridge"
_WHEN = "before noon|on a windy evening|after the rain|in early spring|on the last day of the fair|at dawn"
_PARTS = tuple(tuple(part.split("|")) for part in (_WHO, _DID, _WHAT, _WHERE, _WHEN))
_FIRST = "amber brisk cobalt dusty eager frosty gentle hollow ivory jolly keen lively mellow olive plain"
_SECOND = "anchor bridge candle dragon engine falcon garden hammer island jacket kettle lantern meadow needle"
_WORDS = (
    "apple basin cabin dairy eagle fabric galaxy habit icon jewel kernel label magnet nickel oasis paddle "
    "quartz radar saddle tablet union valley wagon yard zebra acorn barrel cactus dollar elbow feather "
    "glacier harvest insect journal kitchen lemon mirror notebook orchard pebble quilt rocket shelter timber "
    "velvet whistle yogurt zipper arrow blanket copper dolphin ember forest goblet helmet iron jungle"
)
Drawn = tuple[str, str, tuple[str, ...]]  # question, how the answer begins, wanted words


def sentence(rng: random.Random) -> str:
    who, did, what, where, when = (rng.choice(part) for part in _PARTS)
    text = rng.choice((f"{who} {did} {what} {where} {when}", f"{when} {who} {did} {what} {where}"))
    return f"{text[0].upper()}{text[1:]}."


def keys(rng: random.Random, count: int) -> list[str]:
    """Different two-part keys."""
    pairs = [f"{first}-{second}" for first in _FIRST.split() for second in _SECOND.split()]
    return rng.sample(pairs, count)


def number(rng: random.Random) -> str:
    return str(rng.randrange(100_000, 1_000_000))


def needle(key: str, value: str) -> str:
    return f"The access code of the {key} is {value}."


def niah_single(rng: random.Random) -> tuple[list[str], Drawn]:
    [key] = keys(rng, 1)
    value = number(rng)
    return [needle(key, value)], _asked(key, (value,))


def niah_multikey(rng: random.Random) -> tuple[list[str], Drawn]:
    """The key that is asked for among seven others."""
    chosen = keys(rng, KEYS)
    values = [number(rng) for _ in chosen]
    asked = rng.randrange(KEYS)
    needles = [needle(*pair) for pair in zip(chosen, values, strict=True)]
    return needles, _asked(chosen[asked], (values[asked],))


def niah_multivalue(rng: random.Random) -> tuple[list[str], Drawn]:
    """Four values of one key."""
    [key] = keys(rng, 1)
    values = tuple(number(rng) for _ in range(VALUES))
    question = f"The text gives {VALUES} access codes of the {key}. List all of them."
    return [needle(key, value) for value in values], (question, f"The access codes of the {key} are", values)


def _asked(key: str, values: tuple[str, ...]) -> Drawn:
    return f"What is the access code of the {key}?", f"The access code of the {key} is", values


def variable_tracking(rng: random.Random) -> tuple[list[str], Drawn]:
    """A chain of assignments, and another one beside it; the variables that hold the first chain's value."""
    names = rng.sample([f"{a}{b}{c}" for a in "BCDFG" for b in "HJKLM" for c in "PQRST"], 2 * (HOPS + 1))
    chain, other = names[: HOPS + 1], names[HOPS + 1 :]
    value, wrong = number(rng), number(rng)
    lines = [f"VAR {chain[0]} = {value}.", f"VAR {other[0]} = {wrong}."]
    for (a, b), (c, d) in zip(pairwise(chain), pairwise(other), strict=True):
        lines += [f"VAR {b} = VAR {a}.", f"VAR {d} = VAR {c}."]
    question = f"Which variables hold the value {value}, directly or by assignment? There are {len(chain)}."
    return lines, (question, f"The variables that hold the value {value} are", tuple(chain))


KINDS: dict[str, Callable[[random.Random], tuple[list[str], Drawn]]] = {
    "niah_single": niah_single,
    "niah_multikey": niah_multikey,
    "niah_multivalue": niah_multivalue,
    "variable_tracking": variable_tracking,
}


def haystack(kind: str, length: int, item: int, setting: Setting) -> tuple[str, Drawn]:
    """Sentences with the needles at random places, in their order; as many sentences as there is room."""
    rng = random.Random(f"{kind}/{length}/{item}")
    needles, drawn = KINDS[kind](rng)
    sentences: list[str] = []
    room = _room(length, drawn, setting) - sum(setting.count(f" {one}") for one in needles)
    while (tokens := setting.count(" " + (text := sentence(rng)))) <= room:
        sentences.append(text)
        room -= tokens
    places = sorted(rng.randrange(len(sentences) + 1) for _ in needles)
    for offset, (place, one) in enumerate(zip(places, needles, strict=True)):
        sentences.insert(place + offset, one)
    return " ".join(sentences), drawn


def common_words(length: int, item: int, setting: Setting) -> tuple[str, Drawn]:
    """A numbered list in which a few words come six times as often as the others."""
    rng = random.Random(f"common_words/{length}/{item}")
    words = rng.sample(_WORDS.split(), len(_WORDS.split()))
    often, seldom = words[:COMMON], words[COMMON:]
    question = f"Which {COMMON} words come most often in the list? Answer with the words alone."
    drawn = (question, f"The {COMMON} words that come most often are", tuple(often))
    room = _room(length, drawn, setting)
    bag: list[str] = []
    for part in _parts(often, seldom):
        room -= sum(setting.count(f" {len(bag) + place}. {word}") for place, word in enumerate(part, 1))
        if room < 0:
            break
        bag += part
    rng.shuffle(bag)
    return " ".join(f"{place}. {word}" for place, word in enumerate(bag, 1)), drawn


def _parts(often: Sequence[str], seldom: Sequence[str]) -> Iterator[Sequence[str]]:
    """Six of each frequent word, then one of each of the others, and so on."""
    while True:
        yield [word for word in often for _ in range(6)]
        yield from ([word] for word in seldom)


def _room(length: int, drawn: Drawn, setting: Setting) -> int:
    question, opening, _ = drawn
    fixed = setting.count(_PROMPT.format(text="", question=question)) + setting.count(opening)
    return min(length, setting.room) - NEW_TOKENS - fixed - SPARE


_PROMPT = "Read this text.\n\n{text}\n\n{question}"


def _questions(kind: str, length: int, setting: Setting) -> list[Question]:
    # The template's part of a chat counts too, so the longest set fits a model of just that length.
    if setting.room < length - length // 16:
        raise PomonaError(
            f"long_{kind}_{length}: the model's context is too short; choose shorter ones with --task"
        )
    found = []
    for item in range(ITEMS):
        if kind == "common_words":
            text, drawn = common_words(length, item, setting)
        else:
            text, drawn = haystack(kind, length, item, setting)
        question, opening, wanted = drawn
        message = {"role": "user", "content": _PROMPT.format(text=text, question=question)}
        found.append(
            Question(f"{kind}-{length}-{item}", (message,), NEW_TOKENS, opening=opening, expected=wanted)
        )
    return found


def _score(question: Question, answer: str) -> dict[str, Score]:
    """Words count whole: 1234 does not contain 123."""
    words = set(re.findall(r"\w+", answer.lower()))
    wanted = question.expected
    return {"contained": (sum(one.lower() in words for one in wanted) / len(wanted), 1.0)}


TASKS = {
    f"long_{kind}_{length}": GenerationTask(
        f"long_{kind}_{length}", "1", 0, ("contained",), partial(_questions, kind, length), each(_score)
    )
    for length in LENGTHS
    for kind in (*KINDS, "common_words")
}
LONG = tuple(TASKS.values())
