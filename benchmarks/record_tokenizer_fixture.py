"""Record llama.cpp's token ids for the tokenizer tests, as hashes.

    python benchmarks/record_tokenizer_fixture.py MODEL.gguf [--data FOLDER]

Run it where llama-cpp-python is installed; it needs nothing else. It tokenises every line of
`generated_lines()` and, if a folder of public data sets is given (or named by POMONA_DATA), of
`data_lines()`, with and without parsing of special tokens, and writes tests/fixtures/tokenizer_ids.json: one
hash per line, and one for all the text, so that a changed text is told from a changed tokenizer.
tests/models/test_tokenizer.py compares our ids with them, without llama.cpp. Data sets are never copied: only
hashes of ids are kept."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
TEXT_FILE = FIXTURES / "tokenizer_text.txt"
IDS_FILE = FIXTURES / "tokenizer_ids.json"

_ALPHABETS = (
    "abcABC  \t\n\r 0123456789.,;:!?'\"-()[]{}",
    " \u00a0\u2003\u3000\u200b\u0085\u2028\u180e\ufeff\x0b\x0c\x1c\x1f \t\n\r",
    "éüñçßøÅłžæ e\u0301o\u0308n\u0303",
    "日本語中文한국어ひらがなカタカナ。、「」 ",
    "🎉🏳\ufe0f\u200d🌈👩\u200d👧😀👍🏽 a",
    "١٢٣½²ⅣⅫ①০१२३ 0123",
    "'s 't 're 've 'm 'll 'd 'S 'LL ’s don't I'm",
    "αβγ Жщя שלום مرحبا ไทย हिन्दी",
    "<|im_end|> <|im_start|> <|endoftext|>",
    "_*#@&%$+=<>/\\|~^`",
)


def generated_lines() -> list[str]:
    """More than 2,000 lines that need no data: real prose, languages and code written for this project, the
    same with digits, white space and case disturbed, and random strings. The same on every Python version."""
    real = [line for line in TEXT_FILE.read_text(encoding="utf-8").split("\n") if line]
    source = random.Random(2024)

    def pick(limit: int) -> int:  # Random.random() is the method whose sequence is promised to stay
        return int(source.random() * limit)

    def number() -> str:
        return str(pick(10 ** (1 + pick(9))))

    def between_words(line: str, make: Callable[[], str]) -> str:
        words = line.split(" ")
        at = pick(len(words) + 1)
        return " ".join([*words[:at], make(), *words[at:]])

    lines = list(real)
    for line in real:
        lines.append("  " * pick(5) + "\t" * pick(3) + between_words(line, number) + " " * pick(4))
        lines.append(between_words(line, lambda: " " * (1 + pick(6)) + number() + "\n" * pick(3)))
        lines.append(line.upper() if pick(2) else line.replace(" ", "  ").replace(".", ".\r\n\r\n"))
    for _ in range(700):
        letters = "".join(_ALPHABETS[pick(len(_ALPHABETS))] for _ in range(1 + pick(3)))
        lines.append("".join(letters[pick(len(letters))] for _ in range(1 + pick(40))))
    return lines


def data_lines(folder: Path) -> dict[str, list[str]]:
    """Lines of public data sets, by the name of the file; only of those that `folder` has."""
    found = {}
    for name, (read, wanted) in _DATA_FILES.items():
        if (folder / name).is_file():
            lines = [line for line in read(folder / name) if line.strip()]
            found[name] = [lines[index * len(lines) // wanted] for index in range(min(wanted, len(lines)))]
    return found


def _text_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").split("\n")


def _json_fields(field: str) -> Callable[[Path], list[str]]:
    def read(path: Path) -> list[str]:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return [json.loads(line)[field][:2000] for line in raw.decode("utf-8").split("\n") if line]

    return read


# File in the data folder -> how to read it, and how many of its lines (evenly spread).
_DATA_FILES: dict[str, tuple[Callable[[Path], list[str]], int]] = {
    "gsm8k/test.jsonl": (_json_fields("question"), 1319),
    "humaneval/HumanEval.jsonl.gz": (_json_fields("prompt"), 164),
    "c4_demo/c4_demo.jsonl": (_json_fields("text"), 150),
    "wiki_demo/wiki_demo.txt": (_text_lines, 150),
    "debian_jargon/jargon.txt": (_text_lines, 200),
    "gutenberg_moby/moby_2701.txt": (_text_lines, 200),
    "tinyshakespeare/input.txt": (_text_lines, 100),
}


def text_hash(lines: Sequence[str]) -> str:
    """One hash for all lines, in order."""
    return hashlib.sha256("\0".join(lines).encode("utf-8")).hexdigest()


def ids_hash(parsed: Sequence[int], plain: Sequence[int]) -> str:
    """Hash of the ids of one line, with special tokens parsed and taken as text."""
    return hashlib.sha256(f"{list(parsed)} {list(plain)}".encode()).hexdigest()[:8]


def main() -> None:
    """Tokenise with llama.cpp and write the fixture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="the GGUF file of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("POMONA_DATA"), help="folder of public data sets"
    )
    arguments = parser.parse_args()

    import llama_cpp

    llama = llama_cpp.Llama(model_path=str(arguments.model), vocab_only=True, verbose=False)

    def ids(line: str, special: bool) -> list[int]:
        return list(llama.tokenize(line.encode("utf-8"), add_bos=False, special=special))

    sets = {"generated": generated_lines(), **(data_lines(Path(arguments.data)) if arguments.data else {})}
    recorded = {
        name: {
            "text": text_hash(lines),
            "ids": [ids_hash(ids(line, True), ids(line, False)) for line in lines],
        }
        for name, lines in sets.items()
    }
    fixture = {
        "peer": f"llama-cpp-python {llama_cpp.__version__}",
        "model_sha256": hashlib.sha256(arguments.model.read_bytes()).hexdigest(),
        "sets": recorded,
    }
    IDS_FILE.write_text(
        json.dumps(fixture, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8"
    )
    print(f"{IDS_FILE}: {', '.join(f'{len(lines)} lines of {name}' for name, lines in sets.items())}")


if __name__ == "__main__":
    main()
