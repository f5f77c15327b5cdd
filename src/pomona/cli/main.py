"""Entry point of the `pomona` command: picks the sub-command and turns every failure into one line.

    pomona --help
    pomona run smollm2-135m-4bit "What is a prime number?"

Start-up time is a feature (`pomona run` answers within a second): only the module of the sub-command that was
called is imported, plain command lines are read without Typer's machinery (arguments.py), and the commands
import models, rich and the native code where they use them.

Exit codes: 0 done, 1 unexpected error, 2 wrong usage or bad input, 130 interrupted, 141 the reader went away.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from pomona import __version__
from pomona.cli.arguments import quick_arguments
from pomona.cli.common import print_json
from pomona.errors import PomonaError

# name -> (module, what `pomona --help` says); the order is the order of the help page.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "pomona.cli.quickstart",
        "Pull, compress, answer and measure a small model: a two-minute tour.",
    ),
    "pull": ("pomona.cli.pull", "Put a model into the cache: built-in name, directory, GGUF file or hub id."),
    "compress": ("pomona.cli.compress", "Palettise a model to 4 bits per weight."),
    "recover": ("pomona.cli.recover", "Train the accuracy-recovery adapter of a compressed model."),
    "pretrain": ("pomona.cli.pretrain", "Train a base model from text, by a recipe; or plan such a run."),
    "adapt": ("pomona.cli.adapt", "Teach a model a task by examples, as an adapter."),
    "align": ("pomona.cli.align", "Post-training: demonstrations, preferences, rewards."),
    "run": ("pomona.cli.run", "Answer one prompt, or chat."),
    "serve": ("pomona.cli.serve", "Serve a model over OpenAI's HTTP interface, with pages to use it."),
    "write": ("pomona.cli.write", "Summarize, proofread, rewrite, reply, prioritize, extract."),
    "recipe": ("pomona.cli.recipe", "Write the training rows of a task."),
    "data": ("pomona.cli.data", "Pre-training data: filter, de-duplicate, tokenize and pack documents."),
    "inspect": (
        "pomona.cli.inspect",
        "Show a model's sizes, bits per weight, configuration and fingerprint.",
    ),
    "adapters": (
        "pomona.cli.adapters",
        "List, add, remove, show, verify, export or rebase the adapters of a model.",
    ),
    "export": (
        "pomona.cli.export",
        "Write a model and its adapters for other engines: 16 bit, PEFT directories, vLLM.",
    ),
    "eval": (
        "pomona.cli.eval",
        "Evaluate a model on suites of tasks, compare two results, say what recovery gives back.",
    ),
    "judge": ("pomona.cli.judge", "Judge answers by a model at an endpoint, in pairs or by ratings."),
    "perplexity": ("pomona.cli.perplexity", "Measure the perplexity of a text under a model."),
    "safety": ("pomona.cli.safety", "Guardrails, red team, review queue, safety data, memorisation."),
}

# Told to libraries that report their use to their makers unless they are asked not to (docs/privacy.md).
NO_TELEMETRY = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: sys.argv) and gives its exit code; bad input is one too."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = arguments[:end]
    debug = "--debug" in flags or os.environ.get("POMONA_DEBUG", "") not in ("", "0")
    as_json = "--json" in flags
    arguments = [flag for flag in flags if flag != "--debug"] + arguments[end:]
    _never_fail_to_print()
    for variable, value in NO_TELEMETRY.items():
        os.environ.setdefault(variable, value)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        # Typer ends the process itself when the reader of a pipe has gone.
        if isinstance(stop.__context__, BrokenPipeError):
            return _broken_pipe()
        raise
    except BrokenPipeError:
        return _broken_pipe()
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED, as_json)
    except PomonaError as error:
        return _fail(str(error), EXIT_USAGE, as_json)
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's own errors, all of them about the command line
            hint = f"see pomona {arguments[0]} --help"
            return _fail(f"{error.format_message().rstrip('.')}; {hint}", EXIT_USAGE, as_json)
        if debug:
            import traceback

            traceback.print_exc()
            return _fail(_describe(error), EXIT_UNEXPECTED, as_json)
        return _fail(
            f"{_describe(error)} (unexpected; run again with --debug or POMONA_DEBUG=1 for the traceback)",
            EXIT_UNEXPECTED,
            as_json,
        )


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        name, *words = arguments
        title = f"pomona {name}"
        module = importlib.import_module(COMMANDS[name][0])
        inner: dict[str, str] = getattr(module, "SUBCOMMANDS", {})  # commands in the place of an argument
        if words and words[0] in inner:
            name, *words = words
            title = f"{title} {name}"
            module = importlib.import_module(inner[name])
        command = getattr(module, name)
        if (quick := quick_arguments(command, words)) is not None:
            command(**quick)
            return 0
        result = module.app(words, prog_name=title, standalone_mode=False)
        if result == EXIT_INTERRUPTED:  # how Typer reports Ctrl-C
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    if arguments == ["--version"]:
        print(f"pomona {__version__}")
        return 0
    if arguments in ([], ["--help"], ["-h"], ["help"]):
        return _help()
    wrong = arguments[0]
    if wrong.startswith("-"):
        raise PomonaError(f"no such option: {wrong}; see pomona --help")
    from difflib import get_close_matches

    close = get_close_matches(wrong, COMMANDS, n=1)
    raise PomonaError(
        f"no such command: {wrong}; " + (f"did you mean {close[0]}?" if close else "see pomona --help")
    )


def _help() -> int:
    """The top page, from the table alone: no command module is imported for it."""
    import typer

    app = typer.Typer(add_completion=False, no_args_is_help=True)

    @app.callback(
        epilog="`pomona COMMAND --help` shows options and examples. `--json` prints one JSON object on "
        "standard output, `--debug` the traceback of an unexpected error, `pomona --version` the version."
    )
    def pomona() -> None:
        """Apple-style foundation models on your own machine: import, compress, run and measure them."""

    for name, (_, summary) in COMMANDS.items():
        app.command(name, help=summary)(_stub)
    app(["--help"], prog_name="pomona", standalone_mode=False)
    return 0


def _stub() -> None:
    """Stands for a command on the help page."""


def _fail(message: str, code: int, as_json: bool) -> int:
    line = " ".join(message.split())
    try:
        if as_json:
            print_json({"error": line, "exit_code": code})
        print(
            f"pomona: error: {line}" if code != EXIT_INTERRUPTED else "pomona: interrupted", file=sys.stderr
        )
    except BrokenPipeError:
        return _broken_pipe()
    return code


def _describe(error: Exception) -> str:
    name = type(error).__name__
    return f"{name}: {error}" if str(error) else name


def _broken_pipe() -> int:
    # Python flushes standard output once more on its way out; give it somewhere to go.
    with contextlib.suppress(OSError, ValueError):  # when it is no file: a test, an embedding program
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE


def _never_fail_to_print() -> None:
    """A terminal that cannot show a character shows "?" instead of stopping the answer."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
