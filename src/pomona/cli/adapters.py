"""`pomona adapters`: the adapters in a model's directory.

    pomona adapters list smollm2-135m-4bit
    pomona adapters add smollm2-135m-4bit zoo:recovery

The work is done in pomona.adapters: store.py, inspection.py, export.py and rebase.py.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ProgressReporter,
    ThreadsOption,
    directory_bytes,
    examples,
    format_bytes,
    new_app,
    note,
    print_json,
    print_pairs,
    print_table,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.adapters.inspection import Details
    from pomona.adapters.metadata import AdapterRecord

app = new_app()

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model in the cache, or a directory.", show_default=False)
]
NameArgument = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="An adapter of the model.", show_default=False)
]


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "pomona adapters list --json",
        "pomona adapters add smollm2-135m-4bit zoo:recovery",
        "pomona adapters add --help",
    ),
)
def adapters(context: typer.Context) -> None:
    """The adapters of a model: what is there, bringing one in, taking one out, handing one on."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list", epilog=examples("pomona adapters list", "pomona adapters list smollm2-135m-4bit --json"))
def list_command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A model in the cache, or a directory.",
            show_default="all models in the cache",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the adapters of a model, or of all models in the cache."""
    from pomona.adapters.store import list_adapters
    from pomona.models import store

    names = store.cached_models() if model is None else [model]
    found = [adapter for name in names for adapter in list_adapters(store.resolve(name))]
    if as_json:
        print_json({"adapters": [asdict(adapter) for adapter in found]})
        return
    if not found:
        print("no adapters; see pomona adapters add --help")
        return
    rows = [
        (
            f"{adapter.model} {adapter.name}",
            adapter.task or "-",
            "-" if adapter.rank is None else str(adapter.rank),
            format_bytes(adapter.bytes),
            adapter.license or "-",
        )
        for adapter in found
    ]
    print_table(("adapter", "task", "rank", "size", "licence"), rows)
    for adapter in found:
        if adapter.problem is not None:
            note(f"{adapter.model} {adapter.name} cannot be used: {adapter.problem}")


@app.command(
    epilog=examples(
        "pomona adapters add smollm2-135m-4bit zoo:recovery",
        "pomona adapters add smollm2-135m-4bit ./my-adapter --name summarize",
        "pomona adapters add smollm2-135m someone/some-lora --base-unknown-ok",
    )
)
def add(
    model: ModelArgument,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A PEFT directory, zoo:NAME, or a hub id.", show_default=False),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="What to call it in the model.", show_default="taken from SOURCE"),
    ] = None,
    base_unknown_ok: Annotated[
        bool,
        typer.Option(
            "--base-unknown-ok",
            help="Take an adapter that does not name the base it was trained for: you know that it is MODEL.",
        ),
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check an adapter against a model, and copy it into the model's directory."""
    from pomona.adapters import store as adapter_store
    from pomona.models import store
    from pomona.runtime.model import RECOVERY

    with ProgressReporter() as progress:
        added = adapter_store.add(
            store.resolve(model),
            source,
            name=name,
            base_unknown_ok=base_unknown_ok,
            overwrite=overwrite,
            progress=progress.update,
        )
    if as_json:
        print_json(asdict(added))
        return
    print(f"{added.name}: rank {added.rank}, {format_bytes(added.bytes)} in {added.directory}")
    if added.name == RECOVERY:
        print(f"It runs by default. Try: pomona run {model}")


@app.command(
    epilog=examples(
        "pomona adapters remove smollm2-135m-4bit summarize",
        "pomona adapters remove smollm2-135m-4bit recovery --force --yes",
    )
)
def remove(
    model: ModelArgument,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Remove `recovery`, the default adapter, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete an adapter of a model."""
    from pomona.adapters import store as adapter_store
    from pomona.models import store
    from pomona.runtime.model import RECOVERY

    directory = store.resolve(model)
    adapter = adapter_store.find(directory, name)
    if name == RECOVERY and not force:
        adapter_store.remove(directory, name)  # says why not
    if not yes:
        if not sys.stdin.isatty():
            raise PomonaError(f"{adapter}: nobody is there to be asked; give --yes to remove it")
        sys.stderr.write(f"Remove {adapter} ({format_bytes(directory_bytes(adapter))})? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise PomonaError(f"{adapter}: was not removed")
    gone = adapter_store.remove(directory, name, force=force)
    if as_json:
        print_json({"removed": gone})
        return
    print(f"removed {gone}")


@app.command(epilog=examples("pomona adapters show smollm2-135m-4bit recovery"))
def show(model: ModelArgument, name: NameArgument, as_json: JsonOption = False) -> None:
    """Show an adapter's record, rank, size, and how much it changes each kind of projection."""
    from pomona.adapters import inspection
    from pomona.models import store

    details = inspection.show(store.resolve(model), name)
    if as_json:
        print_json(details.to_json())
        return
    print_pairs(_summary(details))
    print()
    rows = [(k.name, str(k.layers), f"{k.norm:.4g}", f"{k.size:.3g}") for k in details.kinds]
    print_table(("projection", "layers", "norm of the change", "per weight"), rows)


def _summary(details: Details) -> list[tuple[str, str]]:
    pairs = [
        ("adapter", str(details.directory)),
        ("rank", f"{details.rank}, alpha {details.alpha:g}"),
        ("size", f"{format_bytes(details.bytes)}, {details.values:,} values"),
    ]
    record = details.record
    if record is None:
        return [*pairs, ("record", "none: nothing says which base it was made for")]
    return pairs + _record_pairs(record)


def _record_pairs(record: AdapterRecord) -> list[tuple[str, str]]:
    import json

    skip = {"version", "sha256"}
    pairs = []
    for key, value in record.to_json().items():
        if key in skip or value is None:
            continue
        words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        pairs.append((key, words if len(words) <= 200 else words[:199] + "…"))
    return pairs


@app.command(
    epilog=examples(
        "pomona adapters verify smollm2-135m-4bit", "pomona adapters verify smollm2-135m-4bit recovery --json"
    )
)
def verify(
    model: ModelArgument,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[ADAPTER]", help="An adapter of the model.", show_default="all of them"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check files, record, base, shapes, numbers and hashes; exit code 1 if anything is wrong."""
    from pomona.adapters import inspection
    from pomona.adapters import store as adapter_store
    from pomona.models import store

    directory = store.resolve(model)
    names = adapter_store.installed_names(directory) if name is None else [name]
    found = {one: inspection.verify(directory, one) for one in names}
    sound = all(check.ok for checks in found.values() for check in checks)
    if as_json:
        print_json(
            {"ok": sound, "adapters": {one: [asdict(c) for c in checks] for one, checks in found.items()}}
        )
    else:
        for one, checks in found.items():
            print(f"{one}: {'sound' if all(check.ok for check in checks) else 'NOT sound'}")
            print_pairs([(f"  {'ok' if c.ok else 'WRONG':5} {c.name}", c.found) for c in checks])
        if not found:
            print(f"{directory.name} has no adapters")
    if not sound:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "pomona adapters export smollm2-135m-4bit summarize ./summarize",
        "pomona adapters export smollm2-135m-4bit summarize summarize.tar.gz",
    )
)
def export(
    model: ModelArgument,
    name: NameArgument,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET", help="A directory, or a .tar.gz, .tgz or .zip file.", show_default=False
        ),
    ],
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write an adapter as a clean PEFT directory or archive, with its licence and its record."""
    from pomona.adapters.export import export as export_adapter
    from pomona.models import store

    written = export_adapter(store.resolve(model), name, target, overwrite=overwrite)
    size = written.stat().st_size if written.is_file() else directory_bytes(written)
    if as_json:
        print_json({"written": written, "bytes": size})
        return
    print(f"{written}: {format_bytes(size)}")


@app.command(
    epilog=examples(
        "pomona adapters rebase summarize --from small-4bit --to small-3.5bit --data mails.jsonl",
    )
)
def rebase(
    name: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="An adapter of the old base.", show_default=False)
    ],
    old: Annotated[
        str, typer.Option("--from", metavar="OLD", help="The base that it was made for.", show_default=False)
    ],
    new: Annotated[
        str, typer.Option("--to", metavar="NEW", help="The base that it is wanted for.", show_default=False)
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE.jsonl",
            help="Prompts of the task: lines with `messages` or `prompt`. Answers in it are not read.",
            show_default=False,
        ),
    ],
    new_name: Annotated[
        str | None, typer.Option("--name", help="What to call it in NEW.", show_default="the same")
    ] = None,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", min=1, max=8192, help="Of one answer at most.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=5, help="At which the old pair writes its answers.")
    ] = 0.7,
    passes: Annotated[int, typer.Option("--passes", min=1, help="Times that the answers are read.")] = 3,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.01, help="Time for the training loop.", show_default="no limit"),
    ] = None,
    lr: Annotated[float, typer.Option("--lr", help="Highest learning rate.")] = 5e-4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the answers and their order.")] = 0,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter again for another base: the old base with the adapter teaches the new one."""
    from pomona.adapters.rebase import RebaseOptions
    from pomona.adapters.rebase import rebase as rebase_adapter
    from pomona.models import store

    with ProgressReporter() as progress:
        report = rebase_adapter(
            name,
            store.resolve(old),
            store.resolve(new),
            data=data,
            name=new_name,
            options=RebaseOptions(
                answer_tokens=answer_tokens,
                temperature=temperature,
                passes=passes,
                minutes=minutes,
                lr=lr,
                seed=seed,
            ),
            overwrite=overwrite,
            threads=threads,
            progress=progress.update,
            on_point=lambda point, left: note(
                f"step {point.step}, held-out KL {point.held_out_kl:.4f}, "
                f"same top token {100 * point.same_top:.1f}%"
            ),
        )
    if report.directory is None:
        note("WARNING: no adapter was better than the new base alone: nothing was written; lower --lr")
    if as_json:
        print_json(report.to_json())
        return
    carried = "" if report.carried_kl is None else f", {report.carried_kl:.4f} with the old values"
    print_pairs(
        [
            ("written", str(report.directory or "nothing")),
            ("KL to the old pair", f"{report.kl:.4f} nats per token, before {report.base_kl:.4f}{carried}"),
            ("same top token", f"{100 * report.same_top:.1f}%"),
            ("prompts", f"{report.prompts:,}, and {report.held_out:,} held out"),
        ]
    )
