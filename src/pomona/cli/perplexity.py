"""`pomona perplexity`: how well a model predicts a text.

    pomona perplexity smollm2-135m-4bit

Lower is better; the protocols are described in pomona.evaluation.perplexity.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pomona.cli.common import (
    IsaOption,
    JsonOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    new_app,
    print_json,
    read_text_file,
)
from pomona.evaluation.perplexity import Scored

if TYPE_CHECKING:
    from pomona.models.tokenizer import Tokenizer

app = new_app()


@app.command(
    epilog=examples(
        "pomona perplexity smollm2-135m",
        "pomona perplexity smollm2-135m-4bit --text my-notes.txt --context 512",
        "pomona perplexity ./my-model --text wiki.test.raw --context 512 --score second-half --chunks 40",
    )
)
def perplexity(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model in the cache, or a directory.", show_default=False)
    ],
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="UTF-8 text to score; `-` reads standard input.",
            show_default="the built-in text",
        ),
    ] = None,
    context: Annotated[int, typer.Option("--context", min=2, help="Tokens per window.")] = 1024,
    chunks: Annotated[
        int | None,
        typer.Option("--chunks", min=1, help="Score at most this many windows.", show_default="all"),
    ] = None,
    score: Annotated[
        Scored,
        typer.Option(
            "--score", help="Which tokens of a window count; `second-half` is llama.cpp's protocol."
        ),
    ] = "all",
    threads: ThreadsOption = None,
    isa: IsaOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure the perplexity of a text: lower is better, 1 is perfect prediction."""
    from pomona.data.builtin_text import evaluation_text

    words = evaluation_text() if text is None else read_text_file(text)

    from pomona.evaluation.perplexity import perplexity as measure
    from pomona.models import store
    from pomona.models.tokenizer import Tokenizer
    from pomona.runtime.engine import Engine

    directory = store.resolve(model)
    tokenizer = Tokenizer.from_directory(directory)
    engine = Engine.load(directory, threads=threads, isa=isa)
    with ProgressReporter() as progress:
        result = measure(
            engine,
            tokenizer.encode(words, parse_special=False),
            context=context,
            chunks=chunks,
            scored=score,
            bos_token_id=leading_bos(tokenizer),
            progress=progress.update,
        )
    source = "built-in text" if text is None else str(text)
    if as_json:
        print_json({"model": directory.name, "text": source, **result.to_json()})
        return
    print(f"perplexity {result.perplexity:.3f}")
    print(
        f"{result.tokens:,} tokens of {source} in {result.windows} windows of {result.context} "
        f"({result.scored}), {result.nll:.4f} nats per token, {result.seconds:.1f} s"
    )


def leading_bos(tokenizer: Tokenizer) -> int | None:
    """The token that this tokenizer puts before every text, if it does so."""
    ids = tokenizer.encode("", add_special_tokens=True)
    return ids[0] if ids and ids[0] == tokenizer.bos_token_id else None
