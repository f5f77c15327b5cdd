"""The documents tell the truth: `make X` is a target, `pomona X` a command, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "BENCHMARKS.md", "LOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

MODULE = re.compile(r"^(?:\S*/)?python3?\s+-m\s+((?:pomona|benchmarks)[\w.]*)")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def commands(text: str) -> list[str]:
    """The commands of a document: its indented and fenced lines, and its inline code."""
    found = []
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith(("    ", "\t")):
            found.append(re.sub(r"\s+#.*", "", line.strip()).removeprefix("$ "))
    return found + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def made(text: str) -> list[str]:
    """Targets that a document tells its reader to make."""
    return [
        word
        for command in commands(text)
        if command.startswith("make ")
        for word in command.split()[1:]
        if re.fullmatch(r"[a-z][a-z-]*", word)
    ]


def run(text: str) -> list[list[str]]:
    """The words after `pomona` of every such command in a document."""
    found = []
    for command in commands(text):
        words = command.split()
        if words and (words[0] == "pomona" or words[0].endswith("/pomona")) and len(words) > 1:
            try:
                found.append(shlex.split(command, comments=True)[1:])
            except ValueError:  # an unfinished quotation in prose
                found.append(words[1:])
    return found


@cache
def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", text, flags=re.MULTILINE))


# Commands that have commands of their own.
GROUPS = {"adapters", "align", "data", "pretrain", "safety"}
GROUPS |= {f"safety {part}" for part in ("guardrail", "review", "data", "memorisation")}


@cache
def help_page(*command: str) -> tuple[int, str]:
    program = "import sys; from pomona.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_exists(name: str) -> None:
    assert set(made((ROOT / name).read_text(encoding="utf-8"))) <= targets()


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_option_has_help(name: str) -> None:
    for words in run((ROOT / name).read_text(encoding="utf-8")):
        if not re.fullmatch(r"[a-z][a-z-]*", words[0]):
            continue  # `pomona COMMAND`, `pomona --version`
        depth = 1
        while " ".join(words[:depth]) in GROUPS and len(words) > depth:
            depth += 1
        if words[0] == "eval" and words[1:2] == ["recovery"]:  # in the place of an argument
            depth = 2
        code, page = help_page(*words[:depth])
        assert code == 0, f"pomona {words[0]} --help: {page}"
        for option in (
            word.partition("=")[0] for word in words[1:] if word.startswith("--") and word != "--"
        ):
            assert option in page, f"pomona {words[0]} has no {option}"


@pytest.mark.parametrize("name", NAMES)
def test_every_module_that_is_run_exists(name: str) -> None:
    for command in commands((ROOT / name).read_text(encoding="utf-8")):
        if (match := MODULE.match(command)) is not None:
            file = Path(*match[1].split(".")).with_suffix(".py")
            assert (ROOT / file).is_file() or (ROOT / "src" / file).is_file(), command


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    path = ROOT / name
    for target, _ in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (path.parent / target).exists(), f"{name} links to {target}"


def test_the_readme_has_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "quickstart" in made(text)
    assert any(words[:2] == ["run", "smollm2-135m-4bit"] for words in run(text))


def test_every_documented_target_is_listed_by_make_help() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = set(re.findall(r"^  make ([a-z-]+)", done.stdout, flags=re.MULTILINE))
    assert {"quickstart", "test", "lint", "format", "bench", "bench-setup", "bench-decode", "clean"} <= listed
    documented = {target for path in DOCUMENTS for target in made(path.read_text(encoding="utf-8"))}
    assert documented <= listed


def test_every_command_has_its_page() -> None:
    from pomona.cli.main import COMMANDS

    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert set(COMMANDS) <= pages
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert {name for name in pages - {"index"} if f"({name}.md)" not in index} == set()


def test_the_reader_of_commands_sees_them() -> None:
    text = (
        "Do `make nothing` or\n\n    make quickstart PYTHON=x  # and wait\n"
        '    .venv/bin/pomona run m --nope "a b"\n```\npomona fly\n```\n'
    )
    assert made(text) == ["quickstart", "nothing"]
    assert run(text) == [["run", "m", "--nope", "a b"], ["fly"]]
    assert help_page("no-such-command")[0] != 0
