"""What a data recipe may say: inputs, steps in order, tasks and where they run. Unknown keys are refused.

    name: laptop-web
    inputs:
      - {name: pages, path: "${POMONA_DATA}/html_trafilatura/cache", kind: html}
    steps:
      - extract: {}
      - gopher_quality: {min_words: 40}
      - deduplicate: {}
    tasks: 2

`${NAME}` in a path is an environment variable, or one of PYTHON_PACKAGES (site-packages) and PYTHON_LIBRARY
(the standard library); relative paths start from the recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pomona.errors import PomonaError

_MAX_RECIPE_BYTES = 1 << 20
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NAME = r"^[a-z0-9][a-z0-9_.-]{0,63}$"

Kind = Literal["html", "jsonl", "text", "python", "docstrings", "metadata"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(Settings):
    """A source. kind: html pages; jsonl rows; text files; python: source files; docstrings: those of Python
    files; metadata: the descriptions of installed Python packages.

    html: whether texts are pages, to be extracted (by default those of kind html). lines: every line of a
    text file is a document. license: of its documents. Files smaller than `min_bytes` are left out, and no
    more than `max_files` are taken, evenly spread. An `optional` source may be missing.
    """

    name: str = Field(pattern=_NAME)
    path: str
    kind: Kind
    html: bool | None = None
    lines: bool = False
    optional: bool = False
    license: str | None = None
    text_key: str = "text"
    glob: list[str] = []
    exclude: list[str] = []
    min_bytes: Count = 0
    max_files: int | None = Field(default=None, ge=1)
    max_document_bytes: int = Field(default=16 << 20, ge=1024)


class Extract(Settings):
    """Main content of HTML pages (AFM_REPORT 2.2, step 1; Safari's reader and Boilerpipe there, trafilatura
    here); other documents pass. precision: rather too little text than boilerplate. A page that takes more
    than `seconds` is dropped.
    """

    precision: bool = True
    deduplicate: bool = True
    min_characters: Count = 80
    seconds: float = Field(default=20.0, gt=0)


class Language(Settings):
    """Keeps documents of these languages (ISO 639-1) whose score is high enough."""

    keep: list[str] = Field(default=["en"], min_length=1)
    min_score: Share = 0.65


class GopherQuality(Settings):
    """Quality rules of Gopher (Rae et al. 2021, A.1.1)."""

    min_words: Count = 50
    max_words: Count = 100_000
    min_word_length: float = 3
    max_word_length: float = 10
    max_symbol_ratio: Share = 0.1
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    min_alphabetic_words: Share = 0.8
    min_stop_words: Count = 2


class GopherRepetition(Settings):
    """Repetition rules of Gopher (Table A1); shares of lines, paragraphs and their characters. ngrams: factor
    on the thresholds of n-grams; documentation repeats itself more than prose does."""

    max_duplicate_lines: Share = 0.3
    max_duplicate_paragraphs: Share = 0.3
    max_duplicate_line_characters: Share = 0.2
    max_duplicate_paragraph_characters: Share = 0.2
    ngrams: float = Field(default=1.0, gt=0)


class C4(Settings):
    """Line and page rules of C4 (Raffel et al. 2020, 2.2). Lines that break a rule are cut out."""

    terminal_punctuation: bool = True
    min_sentences: int = 5
    min_line_words: int = 3
    curly_bracket: bool = True
    javascript: bool = True
    lorem_ipsum: bool = True
    policy: bool = True


class FineWeb(Settings):
    """The three rules that FineWeb adds (Penedo et al. 2024, 3.6), and the share of new lines.
    allow_unpunctuated: texts with no punctuated line at all pass, such as articles without line breaks."""

    min_punctuated_lines: Share = 0.12
    allow_unpunctuated: bool = False
    max_short_lines: Share = 0.67
    short_line: Count = 30
    max_duplicate_characters: Share = 0.01
    max_new_lines: float = 0.3


class Classifier(Settings):
    """Keeps documents whose score under a model of `pomona data classifier` lies in [at_least, at_most].

    The model-based quality filter of AFM_REPORT 2.2, step 4; with other labels also one for safety or math.
    """

    model: str
    at_least: Share = 0.5
    at_most: Share = 1.0


class Safety(Settings):
    """Drops pages with too many words of the built-in list of profanity or of `lists` (a word or phrase per
    line); unsafe phrases drop a page at once. (AFM_REPORT 2.2, step 2; the lists are ours.)
    """

    max_profanity: Share = 0.005
    max_profane_words: Count = 10
    lists: list[str] = []
    phrases: list[str] = []
    builtin: bool = True


class Pii(Settings):
    """Replaces what identifies a person, and drops pages that hold more than `max_items` of it."""

    email: bool = True
    phone: bool = True
    ip: bool = True
    card: bool = True
    iban: bool = True
    ssn: bool = True
    secret: bool = True
    max_items: Count = 20


class Deduplicate(Settings):
    """Global fuzzy de-duplication (AFM_REPORT 2.2, step 3; numbers are ours). Word n-grams, bands x rows
    MinHash values; documents that agree in a band are duplicates if they share `min_similarity` of their
    n-grams (Jaccard, estimated from all values).
    """

    ngram: int = Field(default=3, ge=1, le=20)
    bands: int = Field(default=25, ge=1, le=256)
    rows: int = Field(default=5, ge=1, le=32)
    min_similarity: Share = 0.5
    seed: Count = 1


class Benchmark(Settings):
    """Texts to keep out. A .jsonl or .json file (all strings, or those under `keys`), .csv, .txt (a text per
    line), or a folder of such.
    """

    name: str = Field(pattern=_NAME)
    path: str
    keys: list[str] = []


class Decontaminate(Settings):
    """Drops a document that shares an n-gram of `shortest` to `longest` words with a benchmark, unless the
    corpus has that n-gram `common` times or more (AFM_REPORT 2.3; occurrences, lower-case words: ours).

    rule: "any" is the report's; "longest" takes of each benchmark text only its n-grams of `longest` words,
    or the whole text where it is shorter: for corpora in which no ordinary phrase is common yet.
    """

    benchmarks: list[Benchmark] = Field(min_length=1)
    shortest: int = Field(default=4, ge=1)
    longest: int = Field(default=13, le=50)
    common: int = Field(default=1000, ge=1)
    rule: Literal["any", "longest"] = "any"

    @model_validator(mode="after")
    def _ordered(self) -> Decontaminate:
        if self.shortest > self.longest:
            raise ValueError("shortest is more than longest")
        return self


class CodeLicense(Settings):
    """Keeps code under these licences (SPDX names) in these programming languages (AFM_REPORT 2.5). The
    licence is that of the document's metadata, else the one its text names; without one it is dropped.
    """

    allow: list[str] = [
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT"),
        *("MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
    ]
    languages: list[str] = []


class Mathematics(Settings):
    """Keeps documents with enough mathematics (AFM_REPORT 2.6): tags and templates of the page, or LaTeX
    commands, or Unicode symbols per thousand characters. keep: "math", or "other" for the rest.
    """

    min_tags: Count = 3
    min_symbols: float = 2.0
    keep: Literal["math", "other"] = "math"


class Length(Settings):
    """Drops documents shorter or longer than this, in characters."""

    min_characters: Count = 1
    max_characters: Count = 10_000_000


STEPS: dict[str, type[Settings]] = {
    "extract": Extract,
    "language": Language,
    "length": Length,
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "c4": C4,
    "fineweb": FineWeb,
    "classifier": Classifier,
    "safety": Safety,
    "pii": Pii,
    "code_license": CodeLicense,
    "mathematics": Mathematics,
    "deduplicate": Deduplicate,
    "decontaminate": Decontaminate,
}


class Slurm(Settings):
    """How tasks are handed to Slurm. `time` as sbatch writes it; `venv` is activated first."""

    partition: str
    time: str = "24:00:00"
    cpus_per_task: int = Field(default=1, ge=1)
    mem_per_cpu_gb: int = Field(default=4, ge=1)
    qos: str = "normal"
    venv: str | None = None
    max_array_size: int = Field(default=1001, ge=1)
    sbatch: dict[str, str] = {}


class Ray(Settings):
    """How tasks are handed to a Ray cluster that runs already."""

    cpus_per_task: int = Field(default=1, ge=1)
    mem_per_cpu_gb: float = Field(default=4, gt=0)
    tasks_per_job: int = Field(default=1, ge=1)


class Executor(Settings):
    """Where tasks run, `workers` at a time. Changing it does not change what comes out."""

    kind: Literal["local", "slurm", "ray"] = "local"
    workers: int = Field(default=1, ge=1)
    slurm: Slurm | None = None
    ray: Ray = Ray()

    @model_validator(mode="after")
    def _complete(self) -> Executor:
        if self.kind == "slurm" and self.slurm is None:
            raise ValueError("slurm: give at least its partition")
        return self


class Step(Settings):
    """One step of a recipe, under its name."""

    name: str
    settings: Any

    @model_validator(mode="before")
    @classmethod
    def _of_one_key(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and set(value) == {"name", "settings"}:
            name, given = value["name"], value["settings"]
        elif isinstance(value, str):
            name, given = value, {}
        elif isinstance(value, Mapping) and len(value) == 1:
            [(name, given)] = value.items()
        else:
            raise ValueError("a step is one name with its settings, as `- length: {min_characters: 200}`")
        if name not in STEPS:
            raise ValueError(f"no step is called {name}; there are {', '.join(STEPS)}")
        return {"name": name, "settings": STEPS[name].model_validate(given or {})}


class Recipe(Settings):
    """A whole recipe. tasks: pieces that the work is cut into, each of which is done or not."""

    name: str = Field(pattern=_NAME)
    inputs: list[Input] = Field(min_length=1)
    steps: list[Step] = []
    tasks: int = Field(default=1, ge=1, le=100_000)
    executor: Executor = Executor()

    @field_validator("inputs")
    @classmethod
    def _names(cls, inputs: list[Input]) -> list[Input]:
        if len({one.name for one in inputs}) != len(inputs):
            raise ValueError("two inputs have one name")
        return inputs

    def identity(self) -> dict[str, Any]:
        """What decides the output: everything but the executor."""
        value = self.model_dump(mode="json", exclude={"executor"})
        value["steps"] = [{step.name: step.settings.model_dump(mode="json")} for step in self.steps]
        return value

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def load_recipe(path: Path) -> Recipe:
    """A recipe out of a YAML file. PomonaError: no such file, no YAML, or something that is no recipe."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PomonaError(f"{path}: cannot be read ({error}); check the path") from error
    if len(raw) > _MAX_RECIPE_BYTES:
        raise PomonaError(f"{path}: is larger than 1 MiB, which no recipe is; give another file")
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise PomonaError(f"{path}: is no YAML ({error}); mend it") from error
    if not isinstance(value, dict):
        raise PomonaError(f"{path}: holds no recipe, which begins with `name:`; see docs/data.md")
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "settings")
        raise PomonaError(f"{path}: {place}: {first['msg']}; correct it, see docs/data.md") from error


def resolve(text: str, base: Path) -> Path:
    """A path of a recipe that lies in `base`. PomonaError for a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name in ("PYTHON_PACKAGES", "PYTHON_LIBRARY"):
            return sysconfig.get_path("purelib" if name == "PYTHON_PACKAGES" else "stdlib")
        if not os.environ.get(name):
            raise PomonaError(f"{text}: the environment variable {name} is not set; set it to a folder")
        return os.environ[name]

    return base / Path(_VARIABLE.sub(value, text)).expanduser()


def first_difference(old: Any, new: Any, place: str = "") -> str | None:
    """Where two JSON values differ first, as "steps.2.c4.min_sentences: 5 -> 3"; None if nowhere."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            here = f"{place}.{key}" if place else str(key)
            if key not in old or key not in new:
                return f"{here}: {'was not there' if key not in old else 'is gone'}"
            if (found := first_difference(old[key], new[key], here)) is not None:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list):
        for index, (one, other) in enumerate(zip(old, new, strict=False)):
            if (found := first_difference(one, other, f"{place}.{index}")) is not None:
                return found
        return None if len(old) == len(new) else f"{place}: {len(old)} entries -> {len(new)}"
    return None if old == new else f"{place}: {json.dumps(old)[:60]} -> {json.dumps(new)[:60]}"
