"""`pomona run`: where the words come from, where the answer goes, and the conversation."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pomona.cli.run import Chat, Request, printable
from pomona.errors import PomonaError
from pomona.runtime.sampling import Sampling

Command = Callable[..., Any]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# One answer


def test_the_answer_goes_to_standard_output_and_the_speed_to_standard_error(
    pomona: Command, runtime: Any
) -> None:
    outcome = pomona("run", "smol", "Say hello")
    assert (outcome.code, outcome.out) == (0, "Hello.\n")
    assert outcome.err == "4 tokens, 16 tokens/s; prompt 10 tokens, 20 tokens/s; first token after 0.50 s\n"
    (model,) = runtime.loaded
    assert model.source == "smol"
    assert model.requests == [[user("Say hello")]]


def test_every_sampling_option_reaches_the_sampler(pomona: Command, runtime: Any) -> None:
    line = "--temperature 0.7 --top-k 40 --top-p 0.9 --min-p 0.05 --repetition-penalty 1.1 --seed 9"
    more = "--max-tokens 33 --threads 3 --isa avx2"
    assert pomona("run", "smol", "x", *line.split(), *more.split()).code == 0
    (model,) = runtime.loaded
    assert model.options == {"threads": 3, "isa": "avx2"}
    (call,) = model.calls
    assert call["max_new_tokens"] == 33
    sampling = call["sampling"]
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 40, 0.9)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.05, 1.1, 9)


def test_greedy_is_the_default(pomona: Command, runtime: Any) -> None:
    pomona("run", "smol", "x")
    assert runtime.loaded[0].calls[0]["sampling"].temperature == 0.0


def test_a_system_message_comes_first(pomona: Command, runtime: Any) -> None:
    pomona("run", "smol", "x", "--system", "Be brief.")
    assert runtime.loaded[0].requests == [[{"role": "system", "content": "Be brief."}, user("x")]]


def test_raw_text_is_continued_without_messages(pomona: Command, runtime: Any) -> None:
    assert pomona("run", "smol", "Once upon", "--raw").out == "Hello.\n"
    assert runtime.loaded[0].requests == ["Once upon"]
    outcome = pomona("run", "smol", "x", "--raw", "--system", "y")
    assert outcome.code == 2
    assert "--raw and --system" in outcome.err


@pytest.mark.parametrize("prompt", [(), ("-",)])
def test_piped_text_is_the_prompt(
    pomona: Command, runtime: Any, monkeypatch: pytest.MonkeyPatch, prompt: tuple[str, ...]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    assert pomona("run", "smol", *prompt).out == "Hello.\n"
    assert runtime.loaded[0].requests == [[user("two\nlines")]]


@pytest.mark.parametrize("arguments", [("",), ()])
def test_an_empty_prompt_is_refused_before_the_model_is_loaded(
    pomona: Command, runtime: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    outcome = pomona("run", "smol", *arguments)
    assert outcome.code == 2
    assert "PROMPT: it is empty" in outcome.err
    assert runtime.loaded == []


def test_json_is_one_object_with_the_answer_and_its_timing(pomona: Command, runtime: Any) -> None:
    outcome = pomona("run", "smol", "x", "--json")
    assert outcome.json == {
        "model": "smol",
        "response": "Hello.",
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "new_tokens": 4,
        "prefill_seconds": 0.5,
        "decode_seconds": 0.25,
        "first_token_seconds": 0.5,
        "prefill_tokens_per_second": 20.0,
        "decode_tokens_per_second": 16.0,
    }
    assert outcome.err == ""


def test_an_answer_that_was_cut_says_so(pomona: Command, runtime: Any) -> None:
    assert pomona("run", "smol", "x", "--json", "--max-tokens", "4").json["finish_reason"] == "length"
    assert "stopped by --max-tokens" in pomona("run", "smol", "x", "--max-tokens", "4").err


def test_json_without_a_prompt_is_refused(
    pomona: Command, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    outcome = pomona("run", "smol", "--json")
    assert outcome.code == 2
    assert "needs a PROMPT" in outcome.json["error"]


def test_a_model_that_is_not_there_is_one_line(pomona: Command, runtime: Any) -> None:
    outcome = pomona("run", "missing", "x")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "pomona: error: missing: no such model; run `pomona pull missing`\n"


def test_pieces_are_written_as_they_come(
    pomona: Command, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(io.StringIO):
        flushed: list[str] = []  # noqa: RUF012

        def flush(self) -> None:
            self.flushed.append(self.getvalue())

    stream = Watched()
    monkeypatch.setattr("sys.stdout", stream)
    pomona("run", "smol", "x")
    assert stream.flushed[:3] == ["Hel", "Hello", "Hello."]


def test_an_interrupt_ends_the_line_and_gives_130(pomona: Command, runtime: Any) -> None:
    runtime.pieces = ["Hel", KeyboardInterrupt()]
    outcome = pomona("run", "smol", "x")
    assert (outcome.code, outcome.out, outcome.err) == (130, "Hel\n", "pomona: interrupted\n")


def test_a_model_cannot_move_the_cursor(
    pomona: Command, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printable("a\x1b[2Jb\x07c\u009bd\tü\n") == "a[2Jbcd\tü\n"
    runtime.pieces = ["x\x1b[2J"]
    assert pomona("run", "smol", "x").out == "x\x1b[2J\n", "a pipe gets the bytes as they are"
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    pomona("run", "smol", "x")
    assert terminal.getvalue() == "x[2J\n"


# The conversation


def talk(
    runtime: Any, lines: list[str | type[BaseException]], *, system: str | None = None, raw: bool = False
) -> Any:
    """Types the lines (an exception: what the keys raise), then Ctrl-D; gives the model talked to."""
    model = runtime.load("smol")
    typed: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def read_line(prompt: str) -> str:
        assert prompt == "> "
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    Chat(model, Request(Sampling(), 9, raw), system).loop(name="smol", read_line=read_line)
    model.left = list(typed)
    return model


def test_without_a_prompt_a_terminal_gets_a_chat(
    pomona: Command, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("hi\n/exit\n"))
    outcome = pomona("run", "smol")
    assert outcome.code == 0
    assert "Hello.\n" in outcome.out
    assert "smol, 2 threads, scalar" in outcome.err
    assert runtime.loaded[0].requests == [[user("hi")]]


def test_the_model_is_given_the_whole_conversation(runtime: Any) -> None:
    model = talk(runtime, ["one", "", "  two  "], system="Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert model.requests == [
        [system, user("one")],
        [system, user("one"), assistant("Hello."), user("two")],
    ]


def test_clear_forgets_and_exit_leaves(runtime: Any) -> None:
    model = talk(runtime, ["one", "/clear", "two", "/exit", "three"])
    assert model.requests == [[user("one")], [user("two")]]
    assert model.left == ["three", EOFError]


def test_a_new_system_message_starts_a_new_conversation(
    runtime: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = talk(runtime, ["/system", "one", "/system Answer in rhyme.", "/system", "two"])
    assert model.requests == [[user("one")], [{"role": "system", "content": "Answer in rhyme."}, user("two")]]
    err = capsys.readouterr().err
    assert "the template's own" in err
    assert "\nAnswer in rhyme.\n" in err


def test_help_lists_the_commands_and_an_unknown_one_is_no_question(
    runtime: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = talk(runtime, ["/help", "/halp"])
    err = capsys.readouterr().err
    for word in ("/help", "/clear", "/system", "/exit", "Ctrl-C", "Ctrl-D"):
        assert word in err
    assert "no such command: /halp" in err
    assert model.requests == []


def test_ctrl_c_stops_an_answer_and_what_was_said_stays_said(
    runtime: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.pieces = ["Hel", KeyboardInterrupt()]
    model = talk(runtime, ["one", "two"])
    assert model.requests[1] == [user("one"), assistant("Hel"), user("two")]
    captured = capsys.readouterr()
    assert captured.out.startswith("Hel\n")
    assert "stopped" in captured.err


def test_ctrl_c_at_the_prompt_does_not_leave(runtime: Any) -> None:
    assert talk(runtime, [KeyboardInterrupt, "one"]).requests == [[user("one")]]


def test_an_error_is_told_and_the_conversation_goes_on_without_that_question(
    runtime: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.pieces = [PomonaError("prompt: 9000 tokens do not fit")]
    model = talk(runtime, ["long", "short"])
    assert model.requests == [[user("long")], [user("short")]]
    assert "pomona: error: prompt: 9000 tokens do not fit" in capsys.readouterr().err


def test_a_question_that_cannot_be_rendered_is_told_the_same_way(
    runtime: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = runtime.load("smol")
    model.refusal = PomonaError("the model has no chat template")
    chat = Chat(model, Request(Sampling(), 9), None)
    chat.answer("one")
    chat.answer("two")
    assert model.requests == [[user("one")], [user("two")]]
    assert capsys.readouterr().err.count("pomona: error: the model has no chat template") == 2


def test_raw_lines_have_no_memory(runtime: Any) -> None:
    assert talk(runtime, ["one", "/system x", "two"], raw=True).requests == ["one", "two"]
