"""`pomona run`: answer one prompt, or chat.

    pomona run smollm2-135m-4bit "What is a prime number?"

The answer goes to standard output while it is being written, everything else to standard error. Nothing that
is typed or answered is kept on disk.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pomona.cli.common import IsaOption, JsonOption, ThreadsOption, examples, new_app, note, print_json
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.runtime.model import Model
    from pomona.runtime.reply import Usage
    from pomona.runtime.sampling import Sampling

Message = dict[str, str]

CHAT_HELP = """/help          this list
/clear         forget the conversation
/system TEXT   start again with this system message (without TEXT: show it)
/exit          leave; Ctrl-D does the same, Ctrl-C stops an answer"""

app = new_app()


@dataclass(frozen=True)
class Request:
    """How to answer: everything about it except the words."""

    sampling: Sampling
    max_tokens: int
    raw: bool = False  # continue the text as it stands, without a chat template


@app.command(
    epilog=examples(
        'pomona run smollm2-135m-4bit "What is a prime number?"',
        "pomona run smollm2-135m-4bit",
        'echo "Summarise: ..." | pomona run smollm2-135m-4bit',
        'pomona run smollm2-135m-4bit "Once upon a time" --raw --temperature 0.8',
    )
)
def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model in the cache, or a directory.", show_default=False)
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to answer; `-` reads standard input. Without it: a chat, or the piped text.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="System message.", show_default="the template's own")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 512,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token each time.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Sample among the k likeliest; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.0, max=1.0, help="Sample among the likeliest that sum to p.")
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option("--min-p", min=0.0, max=1.0, help="Drop tokens below this share of the likeliest."),
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", min=0.01, help="Above 1: avoid tokens seen before.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same answer.")] = 0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue PROMPT itself, without a chat template.")
    ] = False,
    threads: ThreadsOption = None,
    isa: IsaOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Answer PROMPT, or chat when there is none."""
    if raw and system is not None:
        raise PomonaError("--raw and --system: raw text has no system message; leave one of them out")
    text = _prompt_text(prompt)
    if text is None and as_json:
        raise PomonaError("--json: needs a PROMPT, as an argument or on standard input")

    from pomona.runtime.model import Model
    from pomona.runtime.sampling import Sampling

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    request = Request(sampling, max_tokens, raw)
    loaded = Model.load(model, threads=threads, isa=isa)
    if text is None:
        Chat(loaded, request, system).loop(name=model)
        return
    if raw:
        answer = stream_raw(loaded, text, request)
    else:
        answer = stream_chat(loaded, [*_system(system), _user(text)], request)
    if as_json:
        words = "".join(answer)
        print_json({"model": model, "response": words, **timing_json(timing_of(loaded), max_tokens)})
        return
    show(answer)
    note(timing_line(timing_of(loaded), max_tokens))


def _prompt_text(prompt: str | None) -> str | None:
    """The words to answer, or None for a chat."""
    if prompt is None and sys.stdin.isatty():
        return None
    text = sys.stdin.read().rstrip("\n") if prompt in (None, "-") else prompt
    if not text:
        raise PomonaError(
            "PROMPT: it is empty; give some words, or call without PROMPT on a terminal to chat"
        )
    return text


def _system(text: str | None) -> list[Message]:
    return [] if text is None else [{"role": "system", "content": text}]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def stream_chat(model: Model, messages: list[Message], request: Request) -> Iterator[str]:
    """Pieces of the answer to the last message."""
    return iter(model.stream(messages, sampling=request.sampling, max_new_tokens=request.max_tokens))


def stream_raw(model: Model, text: str, request: Request) -> Iterator[str]:
    """Pieces of the text with which the model continues `text`."""
    return iter(model.complete(text, sampling=request.sampling, max_new_tokens=request.max_tokens))


def show(pieces: Iterator[str]) -> str:
    """Writes the pieces to standard output as they come, ends the line, and returns the whole text.

    On a terminal, control characters are left out: the text of a model must not move the cursor.
    """
    guard = sys.stdout.isatty()
    whole: list[str] = []
    try:
        for piece in pieces:
            whole.append(piece)
            sys.stdout.write(printable(piece) if guard else piece)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return "".join(whole)


def printable(text: str) -> str:
    """`text` without control characters other than line break and tab."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def timing_of(model: Model) -> Usage:
    timing = model.last_timing
    assert timing is not None, "the answer has been read to its end"
    return timing


def timing_line(timing: Usage, max_tokens: int) -> str:
    """One line for people: speed of the answer and of reading the prompt."""
    parts = [
        f"{timing.new_tokens} tokens, {timing.decode_tps:,.0f} tokens/s",
        f"prompt {timing.prompt_tokens} tokens, {timing.prefill_tps:,.0f} tokens/s",
        f"first token after {timing.first_token_seconds:.2f} s",
    ]
    if timing.new_tokens >= max_tokens:
        parts.append("stopped by --max-tokens")
    return "; ".join(parts)


def timing_json(timing: Usage, max_tokens: int) -> dict[str, object]:
    return {
        "finish_reason": "length" if timing.new_tokens >= max_tokens else "stop",
        **asdict(timing),
        "prefill_tokens_per_second": timing.prefill_tps,
        "decode_tokens_per_second": timing.decode_tps,
    }


class Chat:
    """A conversation on the terminal: the messages so far, and the commands that start with a slash."""

    def __init__(self, model: Model, request: Request, system: str | None) -> None:
        self.model = model
        self.request = request
        self.system = system
        self.messages: list[Message] = []  # user and assistant turns; the system message is added when asked

    def loop(self, *, name: str, read_line: Callable[[str], str] = input) -> None:
        """Reads lines and answers them until /exit or the end of the input."""
        with contextlib.suppress(ImportError):  # Windows has its own line editing
            import readline  # noqa: F401
        note(
            f"{name}, {self.model.engine.threads} threads, {self.model.engine.isa}; /help lists the commands"
        )
        while True:
            try:
                line = read_line("> ").strip()
            except KeyboardInterrupt:
                note("\n/exit or Ctrl-D leaves")
                continue
            except EOFError:
                sys.stdout.write("\n")
                return
            if line.startswith("/"):
                if not self.command(line):
                    return
            elif line:
                self.answer(line)

    def command(self, line: str) -> bool:
        """Carries out a slash command; False means leave."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word in ("/exit", "/quit", "/bye"):
            return False
        if word == "/help":
            note(CHAT_HELP)
        elif word == "/clear":
            self.messages.clear()
            note("conversation forgotten")
        elif word == "/system" and self.request.raw:
            note("raw text has no system message")
        elif word == "/system" and rest:
            self.system = rest
            self.messages.clear()
            note("new conversation with this system message")
        elif word == "/system":
            note(self.system if self.system is not None else "the template's own system message")
        else:
            note(f"no such command: {word}; /help lists them")
        return True

    def answer(self, line: str) -> None:
        """Streams the answer to `line`; a stopped answer stays in the conversation as far as it got."""
        heard: list[str] = []
        try:
            if self.request.raw:
                pieces = stream_raw(self.model, line, self.request)
            else:
                messages = [*_system(self.system), *self.messages, _user(line)]
                pieces = stream_chat(self.model, messages, self.request)
            show(_record(pieces, heard))
            note(timing_line(timing_of(self.model), self.request.max_tokens))
        except KeyboardInterrupt:
            note("stopped")
        except PomonaError as error:
            # The turn is dropped, so that the conversation can go on after /clear or a shorter question.
            note(f"pomona: error: {error}")
            return
        if not self.request.raw:
            self.messages += [_user(line), {"role": "assistant", "content": "".join(heard)}]


def _record(pieces: Iterator[str], heard: list[str]) -> Iterator[str]:
    for piece in pieces:
        heard.append(piece)
        yield piece
