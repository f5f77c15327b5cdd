"""`pomona data`: from web pages to packed tokens.

    pomona data run recipes/data/laptop-web.yaml --out web
    pomona data report web --html web.html
    pomona data tokenizer web/documents --out tokenizer --vocab 8192
    pomona data pack web/documents/pages --tokenizer tokenizer --out packed/pages

The work is done in pomona.data: pipeline/, classifier.py, train_tokenizer.py and pack.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pomona.cli.common import (
    JsonOption,
    OverwriteOption,
    ProgressReporter,
    examples,
    format_bytes,
    new_app,
    note,
    parse_bytes,
    print_json,
    print_pairs,
    print_table,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.data.documents import Skip
    from pomona.data.pipeline.funnel import Funnel

app = new_app()

InputsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...", help="JSONL (.gz, .zst) or text files, or folders of them.", show_default=False
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The folder to write.", show_default=False)
]
TextKeyOption = Annotated[str, typer.Option("--text-key", help="Where a JSONL row has its text.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed chooses the same text.")]


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "pomona data run recipes/data/laptop-web.yaml --out web",
        "pomona data report web --json",
        "pomona data pack --help",
    ),
)
def data(context: typer.Context) -> None:
    """Pre-training data: run a recipe over pages, see what it did, train tokenizer and classifiers, pack."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog=examples(
        "pomona data run recipes/data/laptop-web.yaml --out web",
        "pomona data run recipes/data/laptop-web.yaml --out web --workers 2",
        "pomona data run recipes/data/report-web.yaml --out /shared/web --executor slurm",
    )
)
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, as YAML.", show_default=False)],
    out: OutOption,
    executor: Annotated[
        Literal["local", "slurm", "ray"] | None,
        typer.Option("--executor", help="Where the tasks run.", show_default="as the recipe says"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Tasks at a time.", show_default="as the recipe says"),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an earlier run left in DIR.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a data recipe, or go on with it: finished tasks are not done again."""
    _needs_datatrove()
    from pomona.data.pipeline.recipe import Executor, load_recipe
    from pomona.data.pipeline.run import run_recipe

    loaded = load_recipe(recipe)
    chosen = loaded.executor.model_dump()
    chosen["kind"] = executor or chosen["kind"]
    chosen["workers"] = workers or chosen["workers"]
    if chosen["kind"] == "slurm" and chosen["slurm"] is None:
        raise PomonaError(
            f"{recipe}: says nothing about Slurm; add executor: slurm: {{partition: NAME}} to it"
        )
    with ProgressReporter() as progress:
        funnel = run_recipe(
            loaded,
            recipe.absolute().parent,
            out,
            restart=restart,
            executor=Executor.model_validate(chosen),
            progress=lambda label, done, total: progress.update(f"stage {label}", done, total),
        )
    if funnel is None:
        if as_json:
            print_json({"out": out, "launched": chosen["kind"]})
        else:
            print(f"launched on {chosen['kind']}; see `pomona data report {out}` while it runs")
        return
    if as_json:
        print_json({"out": out, **funnel.to_json()})
        return
    _print_funnel(funnel)
    print(f"documents in {out / 'documents'}; what was removed, with reasons, in {out / 'removed'}")


@app.command(epilog=examples("pomona data report web", "pomona data report web --html web.html"))
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.", show_default=False)],
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the funnel as one page too.", show_default="none"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what became of the documents of a run, step by step, also while it runs."""
    from pomona.data.pipeline.funnel import read_funnel, samples
    from pomona.data.pipeline.funnel_page import render_funnel

    funnel = read_funnel(folder)
    if html is not None:
        page = render_funnel(funnel, {row.label: samples(folder, row.label) for row in funnel.rows})
        partial = html.with_name(html.name + ".part")
        try:
            partial.write_text(page, encoding="utf-8")
            partial.replace(html)
        except OSError as error:
            raise PomonaError(f"{html}: cannot be written ({error.strerror}); choose another file") from error
    if as_json:
        print_json(funnel.to_json())
        return
    _print_funnel(funnel)
    if html is not None:
        print(f"page in {html}")


@app.command(
    epilog=examples(
        "pomona data classifier --good wiki.jsonl --bad forum.jsonl --out quality",
        "pomona data classifier --good safe.jsonl --bad unsafe.jsonl --out safety --ngram 1",
    )
)
def classifier(
    good: Annotated[
        list[Path],
        typer.Option(
            "--good", metavar="PATH", help="Documents to keep. May be given again.", show_default=False
        ),
    ],
    bad: Annotated[
        list[Path],
        typer.Option(
            "--bad", metavar="PATH", help="Documents to drop. May be given again.", show_default=False
        ),
    ],
    out: OutOption,
    ngram: Annotated[int, typer.Option("--ngram", min=1, max=5, help="Word n-grams up to this length.")] = 2,
    features: Annotated[int, typer.Option("--features", min=256, help="Size of the hashed table.")] = 1 << 18,
    passes: Annotated[int, typer.Option("--passes", min=1, help="Times that the documents are read.")] = 20,
    seed: SeedOption = 0,
    text_key: TextKeyOption = "text",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the model of a `classifier` step on documents that are labelled good and bad."""
    from pomona.data.classifier import TrainingOptions, train_classifier

    options = TrainingOptions(features=features, ngram=ngram, passes=passes, seed=seed)
    with ProgressReporter() as progress:
        model, skips = train_classifier(
            good, bad, out, options, text_key=text_key, overwrite=overwrite, progress=progress.update
        )
    facts = model.config
    if as_json:
        print_json({"out": out, **facts.model_dump(), "skipped": len(skips)})
        return
    print_pairs(
        [
            ("written", str(out)),
            ("documents", f"{facts.good:,} good, {facts.bad:,} bad, {facts.held_out:,} of them held out"),
            ("accuracy", f"{100 * facts.accuracy:.1f}% of those held out"),
            ("area under the curve", f"{facts.auc:.3f}"),
        ]
    )
    _tell_skips(skips)


@app.command(
    epilog=examples(
        "pomona data tokenizer web/documents --out tokenizer --vocab 8192",
        "pomona data tokenizer corpus.jsonl.gz --out tokenizer --max-size 2GB",
    )
)
def tokenizer(
    inputs: InputsArgument,
    out: OutOption,
    vocab: Annotated[int, typer.Option("--vocab", min=300, help="Tokens; 49,152 as in the report.")] = 49_152,
    coverage: Annotated[
        float, typer.Option("--coverage", min=0.9, max=1.0, help="Of characters; the rest is bytes.")
    ] = 0.9995,
    max_size: Annotated[
        str, typer.Option("--max-size", metavar="SIZE", help="Text to train on, drawn evenly.")
    ] = "1GB",
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")] = 1,
    seed: SeedOption = 0,
    text_key: TextKeyOption = "text",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a SentencePiece BPE tokenizer, and write it as a fast tokenizer that gives the same ids."""
    from pomona.data.train_tokenizer import TokenizerOptions, train_tokenizer

    options = TokenizerOptions(
        vocab_size=vocab,
        character_coverage=coverage,
        max_bytes=parse_bytes("--max-size", max_size),
        seed=seed,
        threads=threads,
    )
    with ProgressReporter() as progress:
        made = train_tokenizer(
            inputs, out, options, text_key=text_key, overwrite=overwrite, progress=progress.update
        )
    if as_json:
        facts = {"documents": made.documents, "bytes": made.bytes, "bytes_per_token": made.bytes_per_token}
        print_json({"out": out, "vocab_size": made.vocab_size, **facts, "skipped": len(made.skips)})
        return
    rate = "not measured" if made.bytes_per_token is None else f"{made.bytes_per_token:.2f} on held-out lines"
    print_pairs(
        [
            ("written", str(out)),
            ("tokens", f"{made.vocab_size:,}"),
            ("trained on", f"{made.documents:,} documents, {format_bytes(made.bytes)}"),
            ("bytes per token", rate),
        ]
    )
    _tell_skips(made.skips)


@app.command(
    epilog=examples(
        "pomona data pack web/documents/pages --tokenizer tokenizer --out packed/pages",
        "pomona data pack notes.txt more.jsonl --tokenizer tokenizer --out packed/notes",
    )
)
def pack(
    inputs: InputsArgument,
    tokenizer: Annotated[
        Path,
        typer.Option("--tokenizer", metavar="DIR", help="A folder with tokenizer.json.", show_default=False),
    ],
    out: OutOption,
    shard_tokens: Annotated[int, typer.Option("--shard-tokens", min=1, help="Tokens in a file, about.")] = 1
    << 27,
    text_key: TextKeyOption = "text",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode documents into files of tokens that training maps into memory."""
    from pomona.data.pack import pack as pack_documents

    with ProgressReporter() as progress:
        made = pack_documents(
            inputs,
            out,
            tokenizer,
            text_key=text_key,
            shard_tokens=shard_tokens,
            overwrite=overwrite,
            progress=progress.update,
        )
    index = made.index
    if as_json:
        facts = {"tokens": index.tokens, "documents": index.documents, "dtype": index.dtype}
        more = {"shards": len(index.shards), "characters": made.characters, "skipped": len(made.skips)}
        print_json({"out": out, **facts, **more})
        return
    print_pairs(
        [
            ("written", f"{out}, {len(index.shards)} file{'s' if len(index.shards) > 1 else ''}"),
            ("documents", f"{index.documents:,}"),
            (
                "tokens",
                f"{index.tokens:,} as {index.dtype}, {made.characters / index.tokens:.2f} characters each",
            ),
        ]
    )
    _tell_skips(made.skips)


@app.command(epilog=examples("pomona data verify packed/pages"))
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of packed tokens.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Read packed tokens from end to end: sums, boundaries of documents, and every id."""
    from pomona.data.packed_tokens import PackedTokens

    tokens = PackedTokens(folder)
    tokens.verify()
    if as_json:
        print_json({"folder": folder, **tokens.index.model_dump(exclude={"shards"})})
        return
    print(f"{folder}: {tokens.index.tokens:,} tokens of {tokens.index.documents:,} documents, all as written")


def _needs_datatrove() -> None:
    from importlib.util import find_spec

    if find_spec("datatrove") is None:
        raise PomonaError("pomona data run needs datatrove; pip install 'pomona[train]'")


def _print_funnel(funnel: Funnel) -> None:
    rows = []
    for row in funnel.rows:
        share = 100 * row.documents_out / row.documents_in if row.documents_in else 100.0
        rows.append(
            (
                row.label,
                f"{row.documents_in:,}",
                f"{row.documents_out:,}",
                f"{share:.1f}%",
                format_bytes(row.characters_out).replace("B", "c"),
                f"{row.seconds:.1f} s",
            )
        )
    print_table(("step", "documents in", "out", "kept", "characters out", "time"), rows)
    for row in funnel.rows:
        for title, counts in (("removed", row.removed), ("changed", row.changed)):
            if counts:
                told = ", ".join(f"{key} {count:,}" for key, count in counts.items())
                print(f"{row.label} {title}: {told}")
    if not funnel.complete:
        note(f"{funnel.finished} of {funnel.tasks} tasks are done; these counts are theirs")


def _tell_skips(skips: list[Skip] | tuple[Skip, ...]) -> None:
    for skip in skips[:5]:
        sys.stderr.write(f"skipped {skip}\n")
    if len(skips) > 5:
        sys.stderr.write(f"and {len(skips) - 5:,} more were skipped\n")
