"""`pomona inspect MODEL --report`: what every tensor costs and loses; in the terminal, as JSON, as a page."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pomona.cli.common import ProgressReporter, format_bytes, note, print_json, print_pairs, print_table
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.compression.analysis import Analysis

DISTURBED = "other programs used the cores while tokens were measured; measure again on a quiet machine"


def inspect_report(directory: Path, *, out: Path | None, threads: int | None, as_json: bool) -> None:
    """Measures tokens, joins them with the compression report, and shows the result."""
    from pomona.compression.analysis import Analysis, read_report
    from pomona.runtime.engine import Engine
    from pomona.runtime.profile import measure_decoding

    report = read_report(directory)  # before the model is loaded: an old report is refused at once
    if out is not None:
        _check_out(out)
    engine = Engine.load(directory, threads=threads)
    known = {*engine.config.linear_shapes(), "model.embed_tokens", "lm_head"}
    if missing := [module.name for module in report.modules if module.name not in known]:
        raise PomonaError(
            f"{directory}: the report names {missing[0]!r}, which the model has not; compress it again"
        )
    with ProgressReporter() as progress:
        profile = measure_decoding(engine, progress=progress.update)
    analysis = Analysis.of(directory.resolve().name, engine.fingerprint, report, profile)
    data = analysis.to_json()
    if out is not None:
        from pomona.compression.analysis_page import render_page

        _write(out, render_page(data))
    if as_json:
        print_json({**data, "page": out})
    else:
        _print(analysis, out)
    if profile.disturbed:
        note(f"pomona: {DISTURBED}")


def _print(analysis: Analysis, out: Path | None) -> None:
    profile, report = analysis.profile, analysis.report
    loss = "KL" if analysis.has_kl else "sq. error"
    print_table(
        ("tensor", "bits", "bytes", "error", loss, "µs", "of token"),
        [
            (
                module.name + (" (pinned)" if module.pinned else ""),
                str(module.bits),
                f"{module.chosen.bytes:,}",
                f"{module.chosen.relative_error:.4f}",
                "-" if module.fixed and analysis.has_kl else _loss(analysis.loss(module.chosen)),
                *_time(analysis.nanoseconds(module), profile.token_ns),
            )
            for module in analysis.by_cost()
        ],
    )
    print()
    rows = [
        (
            total.kind,
            str(total.modules),
            f"{total.bits:.2f}",
            f"{total.bytes:,}",
            _loss(total.loss),
            *_time(total.nanoseconds, profile.token_ns),
        )
        for total in analysis.totals()
    ]
    rest = analysis.fixed_ns - profile.attention_ns
    rows.append(("attention", "", "", "", "", *_time(profile.attention_ns, profile.token_ns)))
    rows.append(("the rest", "", "", f"{analysis.other_bytes:,}", "", *_time(rest, profile.token_ns)))
    print_table(("kind", "modules", "bits", "bytes", loss, "µs", "of token"), rows)
    print()
    kl = [(name, value) for name, value in _kl(analysis) if value is not None]
    pairs = [
        (
            "size",
            f"{format_bytes(report.file_bytes)}, before compression {format_bytes(report.source_bytes)}",
        ),
        (
            "a token",
            f"{profile.token_ns / 1e6:.2f} ms, {1e9 / profile.token_ns:.1f} tokens/s: median of "
            f"{profile.tokens} with {profile.threads} threads, {profile.isa}",
        ),
        ("the rest", "norms, rounding of activations, waiting for other threads, sampling, the call"),
        *((name, f"{value:.4g} nats per token") for name, value in kl),
    ]
    if out is not None:
        pairs.append(("page", str(out)))
    print_pairs(pairs)


def _kl(analysis: Analysis) -> list[tuple[str, float | None]]:
    return [("predicted KL", analysis.report.predicted_kl), ("measured KL", analysis.report.measured_kl)]


def _loss(value: float) -> str:
    return f"{value:.2e}" if value and math.isfinite(value) else "0"


def _time(nanoseconds: float, token: float) -> tuple[str, str]:
    return f"{nanoseconds / 1e3:.1f}", f"{100 * nanoseconds / token:.1f}%" if token > 0 else ""


def _check_out(out: Path) -> None:
    """Refuses before the work what could not be written after it."""
    if out.is_dir():
        raise PomonaError(f"--out {out}: is a directory; name a file, such as {out / 'report.html'}")
    if not out.absolute().parent.is_dir():
        raise PomonaError(f"--out {out}: the directory {out.parent} does not exist; create it first")


def _write(out: Path, page: str) -> None:
    """Whole or not at all."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.absolute().parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(page)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, out)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PomonaError(f"--out {out}: cannot be written ({error.strerror}); check the path") from error
