"""What the commands share: option types, JSON output, tables, progress.

Rich is used on terminals only and imported when the first line is drawn; plain output needs nothing.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from pomona.errors import PomonaError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all cores")
]
IsaOption = Annotated[
    str,
    typer.Option("--isa", help="Kernels: auto, avx512, avx2, neon_dot, neon, scalar; avx512_bf16 rounds."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]


def new_app() -> typer.Typer:
    """A Typer application for one command; errors are left to main.py."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def examples(*lines: str) -> str:
    """The last paragraph of a help page, one command per line."""
    # Typer keeps the line breaks of an epilog only between paragraphs.
    return "\n\n".join(["Examples:", *lines])


def print_json(value: Any) -> None:
    """Writes one JSON object and a line break; what JSON has no number for (nan, inf) becomes null."""
    print(json.dumps(_finite(value), ensure_ascii=False, indent=2, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def format_bytes(count: int) -> str:
    """Decimal units with three digits: 812 B, 98.4 MB, 1.27 GB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 1000 else f"{size:.0f} TB"


def parse_bytes(option: str, text: str) -> int:
    """ "70MB", "64MiB" or a plain number of bytes. PomonaError for anything else."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise PomonaError(f"{option} {text}: is no size; write it as 70MB or 64MiB") from error


def directory_bytes(directory: Path) -> int:
    """Bytes of all files below `directory`."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def note(text: str) -> None:
    """A dim line on standard error, for what is not the answer itself."""
    sys.stderr.write(dim(text, sys.stderr) + "\n")
    sys.stderr.flush()


def dim(text: str, stream: TextIO) -> str:
    return f"\x1b[2m{text}\x1b[0m" if has_colour(stream) else text


def has_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, stream: TextIO | None = None
) -> None:
    """A table whose first column is flush left and whose others are flush right."""
    stream = stream or sys.stdout
    if stream.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            table.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console(file=stream).print(table)
        return
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        stream.write("  ".join(cells).rstrip() + "\n")


def print_pairs(pairs: Sequence[tuple[str, str]], *, stream: TextIO | None = None) -> None:
    """`name   value` lines with the values under each other."""
    stream = stream or sys.stdout
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        stream.write(f"{name.ljust(width)}  {value}\n")


class ProgressReporter:
    """Context manager whose `update(label, done, total)` fits every progress callback of the project.

    On a terminal it draws one bar per label on standard error; elsewhere it writes one line per label.
    """

    def __init__(self) -> None:
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._seen: set[str] = set()

    def __enter__(self) -> ProgressReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, label: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            if label not in self._seen:
                self._seen.add(label)
                sys.stderr.write(f"{label} ...\n")
                sys.stderr.flush()
            return
        if self._bars is None:
            self._bars = _progress_bars()
            self._bars.start()
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total or None)
        self._bars.update(self._tasks[label], completed=done, total=total or None)


def _progress_bars() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
    )


def read_text_file(path: Path) -> str:
    """The UTF-8 text of a file that the user named, or of standard input for "-"."""
    try:
        if str(path) == "-":
            return sys.stdin.read()
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PomonaError(
            f"{path}: not UTF-8 text (byte {error.start}); convert it to UTF-8 first"
        ) from error
    except OSError as error:
        raise PomonaError(f"{path}: cannot be read ({error.strerror}); check the path") from error
