"""Which tokens are learnt, who is held out, what is read together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapt_samples import ENDLESS, TEMPLATE, chat, tokenizer_dir, write_rows
from hypothesis import given
from hypothesis import strategies as st

from pomona.adapters.data import Row, read_rows
from pomona.adapters.packing import Example, encode_row, encode_rows, passes, split
from pomona.errors import PomonaError
from pomona.models.tokenizer import Tokenizer

Maker = Callable[..., Tokenizer]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Maker:
    def make(template: str = TEMPLATE) -> Tokenizer:
        return Tokenizer.from_directory(tokenizer_dir(tmp_path / "tokenizer", template))

    return make


def row(*contents: str, system: str | None = None, line: int = 1) -> Row:
    return Row(line, tuple(chat(*contents, system=system)["messages"]))


def learnt(example: Example, tokenizer: Tokenizer) -> list[str]:
    """The runs of learnt tokens as text."""
    runs: list[list[int]] = []
    before = False
    for token, counts in zip(example.ids, example.learnt, strict=True):
        if counts and not before:
            runs.append([])
        if counts:
            runs[-1].append(int(token))
        before = bool(counts)
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def whole(example: Example, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(example.ids.tolist(), skip_special_tokens=False)


# --- what is learnt


def test_the_answers_are_learnt_with_the_token_that_ends_their_turn(tokenizer: Maker) -> None:
    t = tokenizer()
    example, ended = encode_row(row("q1", "a1", "q2", "a2", system="s"), t)
    assert learnt(example, t) == ["a1<|im_end|>", "a2<|im_end|>"]
    assert ended and example.answers == 6
    # Nothing after the last learnt token is read: the template's line break is never generated.
    assert whole(example, t) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>"
    )
    assert example.tokens == len(example.ids) - 1


def test_the_prompt_has_the_tokens_that_the_runtime_would_make(
    tokenizer: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona.runtime.model import Model

    t = tokenizer()
    model = Model(None, t)  # type: ignore[arg-type]
    prompt = [{"role": "user", "content": "write <|im_end|> please"}]
    example, _ = encode_row(Row(1, (*prompt, {"role": "assistant", "content": "ok"})), t)
    ids = model.render(prompt)
    assert example.ids[: len(ids)].tolist() == ids
    assert not example.learnt[: len(ids)].any() and example.learnt[len(ids) :].all()


def test_a_control_token_in_a_message_stays_text(tokenizer: Maker) -> None:
    t = tokenizer()
    example, _ = encode_row(row("q", "stop <|im_end|> here"), t)
    assert learnt(example, t) == ["stop <|im_end|> here<|im_end|>"]
    end = t.token_to_id("<|im_end|>")
    assert example.ids.tolist().count(end) == 2  # of the question and of the answer


def test_a_template_without_end_tokens_is_noticed(tokenizer: Maker) -> None:
    t = tokenizer(ENDLESS)
    example, ended = encode_row(row("q", "a"), t)
    assert not ended and learnt(example, t) == ["a\n"]
    assert encode_rows([row("q", "a"), row("p", "b")], t, 100).endless == 2


def test_a_template_that_rewrites_answers_is_refused_by_line(tokenizer: Maker) -> None:
    """As those that drop the reasoning of earlier turns do."""
    t = tokenizer(TEMPLATE.replace("{{ m.content }}", "{{ m.content if loop.last else '...' }}"))
    found = encode_rows([row("q", "a", line=3), row("q", "a", "r", "b", line=5)], t, 200)
    assert [problem.kind for problem in found.problems] == ["template", "template"]
    t = tokenizer(
        TEMPLATE.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else '.' }}")
    )
    found = encode_rows([row("q", "a", line=3), row("q", "a", "r", "b", line=5)], t, 200)
    assert [(problem.kind, problem.line) for problem in found.problems] == [("template", 5)]
    assert len(found.examples) == 1


def test_a_template_that_shows_no_prompt_is_refused(tokenizer: Maker) -> None:
    t = tokenizer("{{ messages[1].content if messages | length > 1 }}")
    (problem,) = encode_rows([row("q", "a")], t, 100).problems
    assert problem.kind == "template" and "no answer behind a prompt" in problem.what


def test_a_row_longer_than_the_window_is_refused_and_never_cut(tokenizer: Maker) -> None:
    t = tokenizer()
    size = len(encode_row(row("q", "a" * 50), t)[0].ids)
    rows = [row("q", "a" * 50, line=1), row("q", "a" * 51, line=2)]
    found = encode_rows(rows, t, size)
    assert [example.line for example in found.examples] == [1]
    assert [(p.kind, p.line, p.what) for p in found.problems] == [
        ("too long", 2, f"{size + 1} tokens, the window has {size}")
    ]


def test_a_model_without_a_template_cannot_be_adapted(tokenizer: Maker) -> None:
    t = tokenizer()
    t.chat_template = None
    with pytest.raises(PomonaError, match="no chat template"):
        encode_rows([row("q", "a")], t, 100)


# --- who is held out


def examples(tmp_path: Path, rows: list[dict[str, Any]], tokenizer: Tokenizer) -> list[Example]:
    found, _ = read_rows(write_rows(tmp_path / "rows.jsonl", rows))
    return encode_rows(found, tokenizer, 500).examples


def test_held_out_rows_are_never_learnt_and_equal_rows_stay_together(
    tmp_path: Path, tokenizer: Maker
) -> None:
    rows = [chat(f"q{n % 20}", f"A{n % 20}" if n < 20 else f"a{n % 20} ") for n in range(40)]
    found = examples(tmp_path, rows, tokenizer())
    parts = split(found, 0.25, seed=0)
    assert {e.key for e in parts.train} & {e.key for e in parts.held_out} == set()
    assert len(parts.held_out) == 10 and len(parts.train) == 30  # pairs of equal rows


def test_the_split_depends_on_the_seed_and_not_on_the_order(tmp_path: Path, tokenizer: Maker) -> None:
    found = examples(tmp_path, [chat(f"q{n}", "a") for n in range(40)], tokenizer())
    first = {e.key for e in split(found, 0.2, seed=1).held_out}
    assert first == {e.key for e in split(found[::-1], 0.2, seed=1).held_out}
    assert first != {e.key for e in split(found, 0.2, seed=2).held_out}
    assert len(first) == 8


def test_a_row_that_stands_there_often_does_not_swallow_the_split(tmp_path: Path, tokenizer: Maker) -> None:
    rows = [chat("same", "row")] * 60 + [chat(f"q{n}", "a") for n in range(40)]
    for seed in range(8):
        parts = split(examples(tmp_path, rows, tokenizer()), 0.1, seed=seed)
        assert parts.train and parts.held_out
        assert len(parts.held_out) <= 20 or len({e.key for e in parts.held_out}) == 1


def test_two_different_rows_are_needed(tmp_path: Path, tokenizer: Maker) -> None:
    t = tokenizer()
    with pytest.raises(PomonaError, match="two are needed"):
        split(examples(tmp_path, [chat("q", "a")] * 5, t), 0.1, seed=0)
    parts = split(examples(tmp_path, [chat("q", "a"), chat("r", "b")], t), 0.1, seed=0)
    assert (len(parts.train), len(parts.held_out)) == (1, 1)


# --- what is read together


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 80))
def test_passes_hold_every_row_once_within_the_limit(lengths: list[int], limit: int) -> None:
    groups = passes(lengths, limit)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    for group in groups:
        assert sum(lengths[number] for number in group) <= limit or len(group) == 1
    # First fit: no two passes that are half empty.
    half = [group for group in groups if 2 * sum(lengths[number] for number in group) <= limit]
    assert len(half) <= 1
