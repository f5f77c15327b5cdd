"""The frame of every command: dispatch, help, exit codes, one line per error, quick start-up."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from pomona import __version__
from pomona.cli.arguments import quick_arguments
from pomona.cli.main import COMMANDS
from pomona.errors import PomonaError

Command = Callable[..., Any]  # of the fixture `pomona`: arguments -> code, out, err, json


def run_python(code: str, *, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=60,
    )


def callback(name: str) -> Callable[..., None]:
    return getattr(importlib.import_module(COMMANDS[name][0]), name)  # type: ignore[no-any-return]


@pytest.fixture
def failing(
    monkeypatch: pytest.MonkeyPatch, fake_module: Callable[..., None]
) -> Callable[[BaseException], None]:
    """Adds a command `fail` that raises the given exception."""

    def install(error: BaseException) -> None:
        app = typer.Typer()

        @app.command()
        def fail(
            as_json: Annotated[bool, typer.Option("--json")] = False,
            number: Annotated[int, typer.Option("--number")] = 0,
        ) -> None:
            raise error

        fake_module("pomona_test_fail", app=app, fail=fail)
        monkeypatch.setitem(COMMANDS, "fail", ("pomona_test_fail", "fails"))

    return install


# A negative number is one of the things that the quick reader leaves to Typer.
BOTH_READERS = pytest.mark.parametrize("options", [(), ("--number", "-3")], ids=["quick", "typer"])


# Help


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_the_top_page_lists_every_command(pomona: Command, arguments: tuple[str, ...]) -> None:
    outcome = pomona(*arguments)
    assert outcome.code == 0
    for name in COMMANDS:
        assert name in outcome.out


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_a_page_with_examples(pomona: Command, name: str, flag: str) -> None:
    outcome = pomona(name, flag)
    assert outcome.code == 0
    assert f"pomona {name}" in outcome.out
    assert "Examples:" in outcome.out
    assert "--json" in outcome.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_in_the_documentation(name: str) -> None:
    page = Path(__file__).parents[2] / "docs" / f"{name}.md"
    assert f"pomona {name}" in page.read_text(encoding="utf-8")


SHARED_PAGES = {  # command of a group -> page
    "ipo": "dpo",
    "prompts": "mdloo",
    "mixture": "sft_mixture",
    "recovery": "recovery_table",
}


def test_every_option_stands_on_the_documentation_page_of_its_command() -> None:
    """A command of a group may have a page of its own beside the group's."""
    docs = Path(__file__).parents[2] / "docs"
    missing = []
    for name in COMMANDS:
        module = importlib.import_module(COMMANDS[name][0])
        app = typer.main.get_command(module.app)
        inner = [importlib.import_module(place).app for place in getattr(module, "SUBCOMMANDS", {}).values()]
        commands = (app, *getattr(app, "commands", {}).values(), *map(typer.main.get_command, inner))
        for command in commands:
            own = SHARED_PAGES.get(command.name, command.name)
            pages = [docs / f"{name}.md", docs / f"{own}.md"]
            text = "".join(page.read_text(encoding="utf-8") for page in pages if page.is_file())
            missing += [
                f"docs/{name}.md does not mention {option} of {command.name}"
                for parameter in command.params
                for option in parameter.opts
                if option.startswith("--") and option != "--help" and f"`{option}" not in text
            ]
    assert not missing


def test_the_version_is_that_of_the_package(pomona: Command) -> None:
    assert pomona("--version").out == f"pomona {__version__}\n"


# Errors


def one_line(text: str) -> str:
    assert text.splitlines(keepends=True) == [text.rstrip("\n") + "\n"], f"not one line: {text!r}"
    return text


def test_an_unknown_command_suggests_the_nearest(pomona: Command) -> None:
    outcome = pomona("presplexity")
    assert outcome.code == 2
    assert one_line(outcome.err) == "pomona: error: no such command: presplexity; did you mean perplexity?\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--fast",), "no such option: --fast"),
        (("run",), "Missing argument 'MODEL'"),
        (("run", "m", "p", "q"), "unexpected extra argument"),
        (("run", "m", "--bits", "3"), "No such option: --bits"),
        (("run", "m", "p", "--temperature", "hot"), "--temperature"),
        (("compress", "m", "--bits", "x"), "--bits"),
        (("perplexity", "m", "--score", "none"), "--score"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    pomona: Command, arguments: tuple[str, ...], complaint: str
) -> None:
    outcome = pomona(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    line = one_line(outcome.err)
    assert line.startswith("pomona: error: ")
    assert complaint.lower() in line.lower()
    assert "--help" in line


def test_wrong_usage_is_a_json_object_when_json_was_asked_for(pomona: Command) -> None:
    outcome = pomona("run", "--json")
    assert outcome.code == 2
    assert outcome.json == {"error": outcome.err.removeprefix("pomona: error: ").strip(), "exit_code": 2}


def test_bad_input_is_one_line_and_exit_code_2(pomona: Command, failing: Callable[..., None]) -> None:
    failing(PomonaError("model.gguf: is cut short; download it again"))
    outcome = pomona("fail")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "pomona: error: model.gguf: is cut short; download it again\n"
    assert pomona("fail", "--json").json == {
        "error": "model.gguf: is cut short; download it again",
        "exit_code": 2,
    }


def test_a_surprise_is_one_line_with_a_way_to_see_more(
    pomona: Command, failing: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(RuntimeError("first\nsecond"))
    outcome = pomona("fail")
    assert outcome.code == 1
    assert one_line(outcome.err).startswith("pomona: error: RuntimeError: first second")
    assert "--debug" in outcome.err

    monkeypatch.setenv("POMONA_DEBUG", "0")
    assert "Traceback" not in pomona("fail").err
    monkeypatch.setenv("POMONA_DEBUG", "1")
    assert "Traceback" in pomona("fail").err


@pytest.mark.parametrize("arguments", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_shows_the_traceback(
    pomona: Command, failing: Callable[..., None], arguments: tuple[str, ...]
) -> None:
    failing(RuntimeError("surprise"))
    outcome = pomona(*arguments)
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1] == "pomona: error: RuntimeError: surprise"


def test_json_keeps_to_one_object_when_something_surprising_happens(
    pomona: Command, failing: Callable[..., None]
) -> None:
    failing(ZeroDivisionError())
    outcome = pomona("fail", "--json", "--debug")
    assert outcome.code == 1
    assert outcome.json == {"error": "ZeroDivisionError", "exit_code": 1}


@BOTH_READERS
def test_an_interrupt_is_exit_code_130(
    pomona: Command, failing: Callable[..., None], options: tuple[str, ...]
) -> None:
    failing(KeyboardInterrupt())
    outcome = pomona("fail", *options)
    assert (outcome.code, outcome.err) == (130, "pomona: interrupted\n")


@BOTH_READERS
def test_a_reader_that_went_away_ends_the_command_quietly(
    pomona: Command, failing: Callable[..., None], options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # the test keeps its own standard output
    out, err = sys.stdout, sys.stderr
    failing(BrokenPipeError(32, "Broken pipe"))
    try:
        outcome = pomona("fail", *options)
    finally:
        sys.stdout, sys.stderr = out, err
    assert (outcome.code, outcome.out, outcome.err) == (141, "", "")


def test_a_real_closed_pipe_leaves_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        process = subprocess.run(
            [sys.executable, "-m", "pomona.cli.main", "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert process.stderr == b""
    assert process.returncode == 141


def test_words_after_two_dashes_are_no_flags(pomona: Command, runtime: Any) -> None:
    assert pomona("run", "m", "--", "--debug").code == 0
    assert runtime.loaded[0].requests == [[{"role": "user", "content": "--debug"}]]


# Start-up


def test_the_help_page_imports_no_command_module() -> None:
    process = run_python(
        "import sys; from pomona.cli.main import COMMANDS, main; main(['--help']);"
        "sys.exit(str([m for m, _ in COMMANDS.values() if m in sys.modules] or ''))"
    )
    assert process.stderr.strip() == ""
    assert "quickstart" in process.stdout


def test_running_a_model_imports_neither_pydantic_nor_rich_nor_torch() -> None:
    process = run_python(
        "import json, sys; from pomona.cli.main import main\n"
        "main(['run', 'no-such-model', 'hello', '--seed', '3'])\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    modules = set(json.loads(process.stdout))
    assert "pomona.cli.run" in modules
    heavy = {"pydantic", "rich", "torch", "transformers", "gguf", "huggingface_hub", "pomona.cli.compress"}
    assert not modules & heavy


# The quick reader means what Typer means


def typer_arguments(name: str, words: list[str]) -> dict[str, Any] | None:
    """What Typer would call the command with, or None if it refuses the line."""
    command = callback(name)
    seen: dict[str, Any] = {}

    @functools.wraps(command)
    def remember(**arguments: Any) -> None:
        seen.update(arguments)

    app = typer.Typer(add_completion=False)
    app.command()(remember)
    try:
        app(words, standalone_mode=False)
    except typer.TyperException:
        return None
    return seen


def with_defaults(name: str, found: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(callback(name)).parameters.values()
    defaults = {item.name: item.default for item in parameters if item.default is not item.empty}
    return {**defaults, **found}


@pytest.mark.parametrize(
    "line",
    [
        "run m",
        "run m prompt",
        "run m -",
        "run m prompt --json --raw",
        "run --temperature 0.5 m --top-p=0.9 prompt --seed 7 --top-k 40",
        "run m prompt --system=",
        "run m -- --json",
        "run m --threads 2 --isa avx2 --min-p 0 --repetition-penalty 1.1 --max-tokens 5",
        "compress m --bits 3 --out /tmp/x --table-columns 192 --overwrite",
        "compress m --calibration notes.txt --name n --threads 4",
        "pull x --name y --overwrite --json",
        "inspect m --tensors",
        "perplexity m --text t.txt --context 512 --chunks 3 --score second-half",
        "quickstart",
        "quickstart --fresh --json --threads 1",
    ],
)
def test_ordinary_lines_are_read_quickly_and_as_typer_reads_them(line: str) -> None:
    name, *words = line.split()
    quick = quick_arguments(callback(name), words)
    assert quick is not None, "the quick reader gave up"
    assert with_defaults(name, quick) == typer_arguments(name, words)


@pytest.mark.parametrize(
    "line",
    [
        "run",
        "run m p q",
        "run m --help",
        "run m -h",
        "run m --seed",
        "run m --seed x",
        "run m --seed -1",
        "run m --seed 1.5",
        "run m --seed 1 --seed 2",
        "run m --json=1",
        "run m --temperature nan",
        "run m --temperature 1e400",
        "run m --top-p 1.5",
        "run m --unknown",
        "run m --temp 1",
        "perplexity m --score half",
        "perplexity m --text=",
        "compress m --bits x",
    ],
)
def test_everything_else_is_left_to_typer(line: str) -> None:
    name, *words = line.split()
    assert quick_arguments(callback(name), words) is None


WORDS = st.sampled_from(
    [
        "m",
        "a b",
        "",
        "-",
        "--",
        "--json",
        "--raw",
        "--seed",
        "--seed=4",
        "7",
        "-7",
        "0.5",
        "--top-p",
        "--system",
        "--sys",
    ]
)


@given(st.lists(WORDS, max_size=6))
def test_what_the_quick_reader_accepts_means_the_same_to_typer(words: list[str]) -> None:
    quick = quick_arguments(callback("run"), words)
    if quick is not None:
        assert with_defaults("run", quick) == typer_arguments("run", words)
