"""Prompt-lookup speculation: guesses at the next tokens, copied from what prompt and answer already say.

    lookup = Lookup(prompt_ids, engine.step_costs)
    drafts = lookup.propose(limit=remaining - 1)
    tokens = engine.step_with_drafts([StepInput(sequence, [last], sampling, drafts=drafts)])[0]
    engine.step_costs.observe(1 + len(drafts), seconds)
    lookup.extend(tokens)

A text that is proofread or summarised comes back in long pieces. Where the last tokens stood before, what
followed them then is the draft; the engine verifies it in one step, and the tokens are those of plain
decoding. Reading the weights once for several rows is what is gained, so a draft costs little, but not
nothing. It is made as long as it is expected to pay, which may be not at all: `StepCosts` learns what a step
of so many rows takes, and `Lookup` how often a guess is right, which it also counts, for nothing, while it
makes no drafts.

After an idea of A. Saxena, "Prompt Lookup Decoding" (2023). The report on AFM speaks of a draft model, which
this is not; everything here is our own choice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from collections.abc import Sequence as Seq

MAX_DRAFTS = 15  # of one sequence in one step
LONGEST = 8  # tokens that are compared; a longer match counts as one of this length
CANDIDATES = 32  # earlier places that are compared with the last tokens, latest first
NEAR = 16  # tokens behind the last place of copying in which a single token is a match
GAIN = 1.03  # tokens per second that a draft must promise, in times of those without it
RETRY = 48  # guesses that were likely right but too dear, after which one is tried all the same

# How often a guess is right that follows a match of so many tokens (0 .. LONGEST): what is assumed at first,
# as if it had been seen in `PRIOR_TRIALS` tries.
PRIOR = (0.0, 0.4, 0.3, 0.45, 0.55, 0.65, 0.75, 0.8, 0.85)
PRIOR_TRIALS = 2.0
MEMORY = 0.96  # weight of a try when the next one is counted


class StepCosts:
    """What a step of so many rows (tokens and drafts of all inputs) takes, learned from an engine's steps.

    Of a size that was seen three times the median of the last times counts, for a step is held up now and
    then; of others what makes them look best: the lowest time, a place between the neighbours, or, before the
    first time, the smaller neighbour and little for each further row. So every size that could pay is tried
    before it is judged. No size takes longer than a larger one. Several threads may share one.
    """

    _SINGLE, _STEP = 32, 16  # sizes up to here are told apart; beyond, multiples of 16
    _ENOUGH, _KEPT = 3, 9  # times of one size
    _SAME = 0.02  # a change that is none
    _FURTHER_ROW = 0.12  # of one row's time

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[int, deque[float]] = {}
        self._figures: dict[int, float] = {}  # size -> median, or the lowest of less than _ENOUGH
        self._estimates: dict[int, float | None] = {}

    def observe(self, rows: int, seconds: float) -> None:
        """Tells of a step that took `seconds`."""
        size = rows if rows <= self._SINGLE else (rows + self._STEP // 2) // self._STEP * self._STEP
        with self._lock:
            times = self._times.setdefault(size, deque(maxlen=self._KEPT))
            times.append(seconds)
            count = len(times)
            figure = sorted(times)[(count - 1) // 2] if count >= self._ENOUGH else min(times)
            if count <= self._ENOUGH or abs(figure - self._figures[size]) >= self._SAME * figure:
                self._figures[size] = figure
                self._estimates.clear()

    def seconds(self, rows: int) -> float | None:
        """The time that a step of `rows` should take; None before steps of at most so many were seen."""
        with self._lock:
            if rows not in self._estimates:
                self._estimates[rows] = self._estimate(rows)
            return self._estimates[rows]

    def _estimate(self, size: int) -> float | None:
        if size > self._SINGLE and (over := size % self._STEP):
            low, high = self._estimate(size - over), self._estimate(size - over + self._STEP)
            return None if low is None or high is None else low + (high - low) * over / self._STEP
        judged = [known for known, times in self._times.items() if len(times) >= self._ENOUGH]
        below = max((known for known in judged if known <= size), default=None)
        if below is None:
            return None
        seconds = self._figures[below]
        if below < size:
            if size not in self._times:
                seconds *= (1 + self._FURTHER_ROW * size) / (1 + self._FURTHER_ROW * below)
            else:
                above = min((known for known in judged if known > size), default=None)
                if above is not None:
                    seconds += (self._figures[above] - seconds) * (size - below) / (above - below)
                    seconds = min(seconds, self._figures[size])
                else:
                    seconds = self._figures[size]
        larger = (self._figures[known] for known in judged if known > size)
        return min(seconds, min(larger, default=seconds))


class Lookup:
    """The guesses for one answer. Not for use by several threads at once.

    In turn: `propose` before a step, `extend` with the tokens that it gave. A step without drafts needs no
    `propose`. `drafted` and `accepted` count tokens.
    """

    def __init__(self, prompt_ids: Seq[int], costs: StepCosts) -> None:
        self.drafted = 0
        self.accepted = 0
        self._costs = costs
        self._tokens: list[int] = []
        self._latest: dict[tuple[int, int], int] = {}  # two tokens -> the place after them, the last one
        self._before: list[int] = []  # place -> the place before it that follows the same two tokens, or -1
        self._hits = [PRIOR_TRIALS * chance for chance in PRIOR]
        self._tries = [PRIOR_TRIALS] * len(PRIOR)
        self._place = 0  # whence the next token was, or would have been, copied; 0: from nowhere
        self._matched = 0
        self._guessed = False  # propose() has been called for the next token
        self._drafts = 0
        self._reach = 1  # longest draft that may be made: it grows with success
        self._too_dear = 0
        self._append(prompt_ids)

    def propose(self, limit: int = MAX_DRAFTS, rows: int = 1, stop_ids: Collection[int] = ()) -> list[int]:
        """Tokens that probably come next, at most `limit`; none where that does not pay.

        rows: of the step without them, those of other sequences and their drafts included. stop_ids: what
        ends the answer is not drafted, so it never gets into the sequence. A draft is always what follows an
        earlier occurrence of the last token, as a rule of the last two or more.
        """
        self._guess()
        drafts: list[int] = []
        if self._matched > 0 and limit > 0:
            drafts = self._copied(self._length(min(limit, MAX_DRAFTS), rows))
            end = next((index for index, token in enumerate(drafts) if token in stop_ids), len(drafts))
            drafts = drafts[:end]
        self._drafts = len(drafts)
        return drafts

    def extend(self, tokens: Seq[int], drafted: int | None = None) -> None:
        """Tells which tokens came, those of one step: the right drafts and one more. drafted: how many of
        the proposed drafts the step took, if not all."""
        if not self._guessed:
            self._guess()
            self._drafts = 0
        if drafted is not None:
            self._drafts = min(drafted, self._drafts)
        start, place, right = len(self._tokens), self._place, 0
        self._append(tokens)
        if self._matched > 0:
            # Guess by guess: whoever follows a match of n tokens and is right makes one of n + 1.
            for right, token in enumerate(tokens):
                hit = self._tokens[place + right] == token
                self._count(min(self._matched + right, LONGEST), hit)
                if not hit:
                    break
            else:
                right = len(tokens)
            self._place = place + right
        accepted = min(right, self._drafts, len(tokens) - 1)
        if self._drafts > 0:
            if accepted == self._drafts:
                self._reach = min(2 * max(self._reach, self._drafts), MAX_DRAFTS)
            else:
                self._reach = max(accepted + 1, self._reach // 2)
        self.drafted += self._drafts
        self.accepted += accepted
        self._guessed = False
        assert self._place < start + len(tokens)

    def _append(self, tokens: Seq[int]) -> None:
        held = self._tokens
        for token in tokens:
            place = len(held)
            if place >= 2:
                pair = (held[-2], held[-1])
                self._before.append(self._latest.get(pair, -1))
                self._latest[pair] = place
            else:
                self._before.append(-1)
            held.append(int(token))

    def _guess(self) -> None:
        """Finds the place that follows the longest match; the one where copying goes on wins a tie, then the
        latest."""
        self._guessed = True
        held = self._tokens
        end = len(held)
        best, matched = 0, 0
        going_on = self._place
        if 0 < going_on < end:
            best, matched = going_on, self._match(going_on)
        if matched < LONGEST and end >= 2:
            place = self._latest.get((held[-2], held[-1]), -1)
            for _ in range(CANDIDATES):
                if place < 0 or matched == LONGEST:
                    break
                if (length := self._match(place)) > max(matched, 1):
                    best, matched = place, length
                place = self._before[place]
        if matched < 2:
            # One token is no match but near the place of copying: something was put in, left out or changed.
            best, matched = 0, 0
            for place in range(going_on + 1, min(going_on + 1 + NEAR, end)) if going_on > 0 else ():
                if held[place - 1] == held[-1]:
                    best, matched = place, 1
                    break
        self._matched = matched
        if matched > 0:
            self._place = best

    def _match(self, place: int) -> int:
        """How many tokens before `place` are the last ones, at most LONGEST."""
        held, end, length = self._tokens, len(self._tokens), 0
        while length < min(LONGEST, place) and held[place - 1 - length] == held[end - 1 - length]:
            length += 1
        return length

    def _copied(self, count: int) -> list[int]:
        """What follows the place; a copy may run into itself, as a repetition does."""
        held, end = self._tokens, len(self._tokens)
        copied: list[int] = []
        for place in range(self._place, self._place + count):
            copied.append(held[place] if place < end else copied[place - end])
        return copied

    def _length(self, limit: int, rows: int) -> int:
        """The number of drafts with the most expected tokens per second, if that is worth it."""
        base = self._costs.seconds(rows)
        if base is None:
            return 0
        best, best_rate = 0, GAIN * rows / base
        chance, expected = 1.0, float(rows)
        for count in range(1, min(limit, self._reach) + 1):
            length = min(self._matched + count - 1, LONGEST)
            chance *= self._hits[length] / self._tries[length]
            if chance < 0.05:
                break
            expected += chance
            seconds = self._costs.seconds(rows + count)
            if seconds is not None and expected / seconds > best_rate:
                best, best_rate = count, expected / seconds
        if best == 0 and rows == 1 and expected >= 1.6:  # likely right: was the time wrong?
            self._too_dear += 1
            if self._too_dear >= RETRY:
                self._too_dear, best = 0, min(limit, 3)
        return best

    def _count(self, length: int, hit: bool) -> None:
        self._hits[length] = self._hits[length] * MEMORY + hit
        self._tries[length] = self._tries[length] * MEMORY + 1.0
