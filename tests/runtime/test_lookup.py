"""Lookup: where drafts come from, and that none are made which do not pay. No model is needed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.runtime.lookup import LONGEST, MAX_DRAFTS, RETRY, Lookup, StepCosts

Cost = Callable[[int], float]


class Free(StepCosts):
    """Further rows cost nothing: drafts are as long as they may be."""

    def seconds(self, rows: int) -> float | None:
        return 1.0


def bound_by_memory(rows: int) -> float:
    """Like this engine's steps: the second row is nearly free, eight take the time of three or four."""
    return 0.0025 * (0.85 + 0.15 * rows if rows <= 2 else 0.6 + 0.35 * rows)


def bound_by_arithmetic(rows: int) -> float:
    return 0.0025 * rows


class Course:
    """Writes a given answer as an engine would, and adds up what its steps take."""

    def __init__(self, cost: Cost, held_up: float = 0.0) -> None:
        self.costs = StepCosts()
        self._cost = cost
        self._held_up = held_up
        self._draw = random.Random(5)

    def times(self, prompt: list[int], answer: list[int]) -> float:
        """Time without drafts over time with them."""
        lookup = Lookup(prompt, self.costs)
        lookup.extend(answer[:1])
        at, total = 1, 0.0
        while at < len(answer):
            drafts = lookup.propose(len(answer) - at - 1)
            right = 0
            while right < len(drafts) and drafts[right] == answer[at + right]:
                right += 1
            seconds = self._cost(1 + len(drafts))
            total += seconds
            # What is told is noisy, and now and then far too much.
            seconds *= self._draw.uniform(1.0, 1.08)
            self.costs.observe(1 + len(drafts), seconds * (9 if self._draw.random() < self._held_up else 1))
            lookup.extend(answer[at : at + right + 1])
            at += right + 1
        return (len(answer) - 1) * self._cost(1) / total


def text(count: int, seed: int, vocabulary: int = 5000) -> list[int]:
    """Tokens as uneven as words are: few are frequent."""
    draw = random.Random(seed)
    return [int(vocabulary ** draw.random()) for _ in range(count)]


def with_changes(tokens: list[int], share: float, seed: int) -> list[int]:
    """Some tokens changed, left out or put in."""
    draw = random.Random(seed)
    changed: list[int] = []
    for token in tokens:
        kind = draw.random() / share if share > 0 else 3.0
        if kind < 0.34:
            changed.append(draw.randrange(6000, 9000))
        elif kind < 0.67:
            changed += [token, draw.randrange(6000, 9000)]
        elif kind >= 1.0:
            changed.append(token)
    return changed


# --- where drafts come from ---------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 3), max_size=60),
    steps=st.lists(st.tuples(st.integers(0, 20), st.lists(st.integers(0, 3), min_size=1, max_size=5))),
    follow=st.booleans(),
)
def test_a_draft_is_what_followed_an_earlier_occurrence_of_the_last_token(
    prompt: list[int], steps: list[tuple[int, list[int]]], follow: bool
) -> None:
    lookup, held = Lookup(prompt, Free()), list(prompt)
    for limit, other in steps:
        drafts = lookup.propose(limit)
        assert len(drafts) <= min(limit, MAX_DRAFTS)
        if drafts:
            whole = held + drafts
            places = [place for place in range(1, len(held)) if held[place - 1] == held[-1]]
            assert any(whole[place : place + len(drafts)] == drafts for place in places)
        # Either all drafts are right, or as many as happen to be.
        new = [*drafts, other[0]] if follow else other[: 1 + common(drafts, other)]
        lookup.extend(new)
        held += new
    assert 0 <= lookup.accepted <= lookup.drafted


def common(one: list[int], other: list[int]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def grown(lookup: Lookup, tokens: list[int]) -> Lookup:
    for token in tokens:
        lookup.extend([token])
    return lookup


def test_the_longest_match_wins() -> None:
    lookup = Lookup([7, 1, 2, 3, 50, 9, 2, 3, 60, 8, 2, 3, 70], Free())
    assert grown(lookup, [7, 1, 2, 3]).propose(1) == [50]


def test_of_equal_matches_the_latest_wins() -> None:
    assert grown(Lookup([1, 2, 50, 8, 1, 2, 60], Free()), [9, 1, 2]).propose(1) == [60]


def test_copying_goes_on_where_it_was_although_the_same_words_come_later_too() -> None:
    first = [11, 12, 13, 1, 2, 50, 14]
    lookup = Lookup([*first, 99, 13, 1, 2, 60], Free())
    assert grown(lookup, [11, 12, 13, 1, 2]).propose(1) == [50]


def test_one_token_is_a_match_only_near_the_place_of_copying() -> None:
    prompt = list(range(100, 140))
    assert grown(Lookup(prompt, Free()), [120]).propose(3) == []
    for came_back in (104, 105, 106, 110):  # something left out, one token changed, two, a whole phrase
        lookup = grown(Lookup(prompt, Free()), [100, 101, 102, 103, 999, came_back])
        assert lookup.propose(1) == [came_back + 1]
    assert grown(Lookup(prompt, Free()), [100, 101, 102, 103, 999, 130]).propose(1) == []


def test_a_repetition_is_continued_beyond_its_end() -> None:
    lookup = grown(Lookup([5, 6, 7], Free()), [5, 6, 7, 5, 6, 7, 5, 6, 7])
    lookup.extend([*lookup.propose(1), 6])  # one that is right lets the next one be longer
    assert lookup.propose(2) == [7, 5]
    lookup.extend([7, 5, 6])
    drafts = lookup.propose(12)
    assert drafts == [7, 5, 6, 7, 5, 6, 7, 5, 6, 7, 5, 6][: len(drafts)] and len(drafts) > 3


@pytest.mark.parametrize("prompt", [[], [1], [1, 2], [1, 1]])
def test_short_prompts_give_no_drafts(prompt: list[int]) -> None:
    assert Lookup(prompt, Free()).propose(4) == []


def test_a_draft_grows_with_success_and_is_short_again_after_a_failure() -> None:
    prompt = list(range(200))
    lookup, lengths = grown(Lookup(prompt, Free()), [0, 1]), []
    for _ in range(6):
        drafts = lookup.propose(30)
        lengths.append(len(drafts))
        lookup.extend([*drafts, drafts[-1] + 1])
    assert lengths == sorted(lengths) and lengths[0] < 4 and lengths[-1] == MAX_DRAFTS
    drafts = lookup.propose(30)
    lookup.extend([999])
    lookup.extend([drafts[3]])
    assert 0 < len(lookup.propose(30)) < MAX_DRAFTS


def test_drafts_that_were_not_taken_are_no_failures() -> None:
    lookup = grown(Lookup(list(range(50)), Free()), [0, 1, 2])
    lookup.extend([*lookup.propose(1), 4])
    assert len(lookup.propose(2)) == 2
    before = (lookup.drafted, lookup.accepted)
    lookup.extend([5], drafted=0)
    assert (lookup.drafted, lookup.accepted) == before


# --- whether they pay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_up", [0.0, 0.05])
def test_a_copy_with_a_change_in_twenty_tokens_is_written_faster(held_up: float) -> None:
    course = Course(bound_by_memory, held_up)
    gains = []
    for seed in range(6):
        original = text(200, seed)
        gains.append(course.times(with_changes(original, 0.05, seed), original))
    assert min(gains) > 1.3 and sum(gains[2:]) / 4 > 1.6


@pytest.mark.parametrize("cost", [bound_by_memory, bound_by_arithmetic])
@pytest.mark.parametrize("held_up", [0.0, 0.05])
def test_an_answer_of_its_own_words_loses_next_to_nothing(cost: Cost, held_up: float) -> None:
    course = Course(cost, held_up)
    course.times(text(200, 90), with_changes(text(200, 90), 0.05, 1))  # the sizes of steps are known
    gains = [course.times(text(150, seed), text(200, 100 + seed)) for seed in range(20)]
    assert sum(gains) / len(gains) > 0.99 and min(gains) > 0.96


def test_it_stays_off_where_every_row_takes_its_full_time() -> None:
    course = Course(bound_by_arithmetic)
    original = text(2000, 1)
    course.times(text(200, 2), text(200, 2))  # finds out
    assert 0.98 < course.times(with_changes(original, 0.02, 1), original) <= 1.01


def test_it_comes_on_when_an_answer_begins_to_copy() -> None:
    """While it is off it still counts how often it would have been right."""
    course = Course(bound_by_memory)
    original = text(300, 3)
    course.times(original, original)
    assert course.times(original, text(100, 4) + original) > 1.3


def test_costs_that_look_too_high_are_tried_again() -> None:
    costs = StepCosts()
    for rows, seconds in ((1, 1.0), (2, 5.0), (3, 5.0), (4, 5.0)):
        for _ in range(5):
            costs.observe(rows, seconds)  # the machine was busy at the wrong time
    lookup = grown(Lookup(list(range(500)), costs), [0, 1, 2, 3])
    steps = 0
    while lookup.accepted <= 20 and steps < 4 * RETRY:
        steps += 1
        drafts = lookup.propose(8)
        costs.observe(1 + len(drafts), 1.0 + 0.1 * len(drafts))
        lookup.extend([lookup._tokens[lookup._place + i] for i in range(len(drafts) + 1)])
    assert lookup.accepted > 20 and steps > RETRY


def test_in_a_batch_a_draft_must_gain_more_than_it_takes_from_all() -> None:
    costs = StepCosts()
    for _ in range(3):
        for rows in (1, 2, 4, 8, 16, 32):
            costs.observe(rows, 1.0 + 0.2 * max(rows - 4, 0))
    lookup = grown(Lookup(list(range(60)), costs), list(range(20)))
    assert len(lookup.propose(1, rows=1)) == 1
    lookup.extend([20], drafted=0)
    assert len(lookup.propose(1, rows=3)) == 1
    lookup.extend([21], drafted=0)
    assert lookup.propose(1, rows=32) == []  # a row is worth 1/32, and costs 1/33


# --- what a step takes --------------------------------------------------------------------------------------


def test_nothing_is_known_before_the_first_steps() -> None:
    costs = StepCosts()
    assert costs.seconds(1) is None
    for _ in range(3):
        costs.observe(4, 1.0)
    assert costs.seconds(1) is None and costs.seconds(4) == 1.0
    for _ in range(3):
        costs.observe(1, 0.5)
    assert costs.seconds(1) == 0.5


def test_no_drafts_are_made_before_a_plain_step_was_timed() -> None:
    lookup = grown(Lookup(list(range(30)), StepCosts()), list(range(10)))
    assert lookup.propose(8) == []


def test_steps_that_are_held_up_do_not_count() -> None:
    costs = StepCosts()
    for i in range(40):
        costs.observe(1, 9.0 if i % 4 == 3 else 1.0)
        costs.observe(4, 20.0 if i % 4 == 1 else 2.0)
        if i >= 2:
            assert costs.seconds(1) == 1.0 and costs.seconds(4) == 2.0


def test_a_slower_machine_is_noticed_soon() -> None:
    costs = StepCosts()
    for seconds in (1.0, 3.0):
        for _ in range(9):
            costs.observe(1, seconds)
        assert costs.seconds(1) == seconds


@settings(max_examples=200, deadline=None)
@given(
    seen=st.lists(st.tuples(st.integers(1, 520), st.floats(1e-6, 10.0)), max_size=80),
    repeat=st.integers(1, 4),
)
def test_a_larger_step_is_never_thought_to_take_less(seen: list[tuple[int, float]], repeat: int) -> None:
    costs = StepCosts()
    for rows, seconds in seen * repeat:
        costs.observe(rows, seconds)
    sizes = [costs.seconds(rows) for rows in range(1, 530)]
    known = [seconds for seconds in sizes if seconds is not None]
    assert known == sizes[len(sizes) - len(known) :], "known from some size on"
    assert all(seconds > 0 for seconds in known)
    judged = [s for rows, s in enumerate(sizes, 1) if s and len(costs._times.get(rows, ())) >= 3]
    assert judged == sorted(judged)


def test_all_lengths_of_a_match_have_a_prior() -> None:
    lookup = Lookup([], Free())
    assert len(lookup._hits) == len(lookup._tries) == LONGEST + 1


def test_threads_may_share_what_they_learn() -> None:
    costs, failures = StepCosts(), []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(3000):
                costs.observe(draw.randrange(1, 80), draw.uniform(1.0, 2.0))
                costs.seconds(draw.randrange(1, 200))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and 1.0 <= (costs.seconds(40) or 0.0) <= 2.0
