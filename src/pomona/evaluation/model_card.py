"""The card of an exported model: README.md in the hub's form, with figures that stand in its files.

    cards = Cards.of(source, exported, results)
    cards.write(exported)

A card says what the directory's own files say: config.json, pomona.json, compression_report.json, the
records of the adapters, and results that `pomona eval` wrote. No figure is written here by hand; what no file
tells is said not to be known. The data statement, DATA.md, is data_statement.py's. AFM report, section 8; the
form follows Mitchell et al., "Model Cards for Model Reporting" (arXiv:1810.03993).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pomona.adapters.metadata import AdapterRecord, read_record
from pomona.errors import PomonaError
from pomona.evaluation.results import EvalResult, row_name, write_text
from pomona.models.config import ModelConfig
from pomona.models.model_directory import PROVENANCE_FILE, read_json_object
from pomona.models.palettized import describe
from pomona.runtime.adapter_file import read_adapter
from pomona.runtime.model import ADAPTERS_FOLDER, RECOVERY

CARD, STATEMENT = "README.md", "DATA.md"
REPORT = "compression_report.json"
LONGEST = 400  # characters of a text out of a record
NOT_KNOWN = "not recorded in the model's files"


@dataclass(frozen=True)
class AdapterFacts:
    """rank: of the low-rank matrices. record: its pomona.json, None without one."""

    name: str
    rank: int
    record: AdapterRecord | None


@dataclass(frozen=True)
class Cards:
    """What is known of a model. report: of its compression, {} for a model that was never compressed.
    fingerprints: of the model that was exported, and of the written one."""

    name: str
    config: ModelConfig
    provenance: Mapping[str, Any]
    report: Mapping[str, Any]
    parameters: int
    fingerprints: tuple[str, str]
    adapters: tuple[AdapterFacts, ...]
    results: tuple[EvalResult, ...]

    @classmethod
    def of(cls, source: Path, exported: Path, results: Sequence[Path] = ()) -> Cards:
        """source: the model that was exported, whose report and record count. exported: the new directory.

        PomonaError: a result of another model, or a file that is none.
        """
        config = ModelConfig.from_directory(source)
        marks = (describe(source).fingerprint, describe(exported).fingerprint)
        found = []
        for path in results:
            result = EvalResult.read(path)
            if result.fingerprint not in marks:
                raise PomonaError(
                    f"{path}: is a result of {one_line(result.model)} with fingerprint "
                    f"{one_line(result.fingerprint)}, not of {source.resolve().name}; give one of this model"
                )
            found.append(result)
        folder = exported / ADAPTERS_FOLDER
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        adapters = tuple(
            AdapterFacts(name, read_adapter(folder / name, config, marks[1]).rank, read_record(folder / name))
            for name in names
        )
        provenance, report = source / PROVENANCE_FILE, source / REPORT
        return cls(
            source.resolve().name,
            config,
            read_json_object(provenance) if provenance.is_file() else {},
            read_json_object(report) if report.is_file() else {},
            sum(math.prod(shape) for shape in config.tensor_shapes().values()),
            marks,
            adapters,
            tuple(found),
        )

    def write(self, directory: Path) -> None:
        from pomona.evaluation.data_statement import statement

        write_text(directory / CARD, card(self))
        write_text(directory / STATEMENT, statement(self))


def card(about: Cards) -> str:
    """README.md: metadata in YAML, then the text."""
    import yaml

    head = yaml.safe_dump(_metadata(about), sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{head}---",
        f"# {text(about.name)}",
        _summary(about),
        "## Use\n\n" + _use(about),
        "## Compression\n\n" + _compression(about),
        "## Adapters\n\n" + _adapters(about),
        "## Evaluation\n\n" + _evaluation(about),
        "## Limits\n\n" + _LIMITS,
        "## Safety\n\n" + _SAFETY,
        "## Provenance\n\n" + _provenance(about),
    ]
    return "\n\n".join(parts) + "\n"


_LIMITS = """- A small model errs: it invents facts, sources and figures, and it miscounts and miscalculates.
- Compression changes answers, most of all in long reasoning; where there is an adapter `recovery`, it belongs
  to the model.
- What languages it can, and how well, depends on the base model; nothing here adds a language.
- Figures above hold for the tasks, prompts and numbers of items that they name, and for nothing else."""

_SAFETY = """- Not for decisions about people, health, law, money or safety unless people check each answer.
- A base without alignment, or an adapter for one task, refuses nothing by itself; put a guard before and
  behind it.
- Content that the model reads can hold instructions. Features should give it as data, and check what comes
  out.
- Programs and commands that it writes are untrusted; run them in a sandbox or not at all.
- No test of safety is part of this card unless a result above names one."""


def _metadata(about: Cards) -> dict[str, Any]:
    found: dict[str, Any] = {}
    licence = about.provenance.get("license")
    found["license"] = (
        licence.lower() if isinstance(licence, str) and _LICENCE.fullmatch(licence) else "other"
    )
    if about.provenance.get("kind") == "hub":
        found["base_model"] = one_line(about.provenance.get("source"))
    found["library_name"] = "transformers"
    found["pipeline_tag"] = "text-generation"
    found["tags"] = ["pomona"] + ["palettized"] * bool(about.report) + ["lora"] * bool(about.adapters)
    if about.results:
        results = [_indexed(result) for result in about.results]
        found["model-index"] = [{"name": about.name, "results": [one for row in results for one in row]}]
    return found


_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{1,63}")


def _indexed(result: EvalResult) -> list[dict[str, Any]]:
    """In the form of the hub's model-index."""
    rows = dict(result.rows())
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": one_line(name), "type": one_line(name).split()[0]},
            "metrics": [{"type": "accuracy", "name": _metric(result, name), "value": round(one.value, 4)}],
        }
        for name, one in rows.items()
    ]


def _metric(result: EvalResult, row: str) -> str:
    return one_line(next(task.metric for task in result.tasks if row_name(task) == row))


def _summary(about: Cards) -> str:
    source = about.provenance.get("source")
    config = about.config
    lines = [
        f"A language model of {about.parameters:,} parameters ({text(config.model_type)}: "
        f"{config.num_hidden_layers} layers, width {config.hidden_size:,}, vocabulary "
        f"{config.vocab_size:,}, context {config.max_position_embeddings:,} tokens), written by "
        "`pomona export`.",
        f"- base model: {text(source) if source else NOT_KNOWN}",
        f"- licence: {text(about.provenance.get('license')) or NOT_KNOWN}",
    ]
    if note := about.provenance.get("license_note"):
        lines.append(f"- about the licence: {text(note)}")
    return lines[0] + "\n\n" + "\n".join(lines[1:]) + f"\n- data: see [{STATEMENT}]({STATEMENT})"


def _use(about: Cards) -> str:
    lines = ["The directory is a plain Hugging Face checkpoint in 16 bit. With transformers and PEFT:", ""]
    lines += ["```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines += ['model = AutoModelForCausalLM.from_pretrained("DIRECTORY")']
    lines += ['tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")']
    if about.adapters:
        names = [one.name for one in about.adapters]
        name = RECOVERY if RECOVERY in names else names[0]
        lines += ["from peft import PeftModel", ""]
        lines += [f'model = PeftModel.from_pretrained(model, "DIRECTORY/adapters/{name}")']
    return "\n".join([*lines, "```"])


def _compression(about: Cards) -> str:
    report = about.report
    if not report:
        return "This model was never compressed."
    rows = [
        ("bits per weight, projections", figure(report.get("projection_bits_per_weight"), ".2f")),
        ("bits per weight, whole file", figure(report.get("file_bits_per_weight"), ".2f")),
        ("bytes, compressed", figure(report.get("file_bytes"), ",.0f")),
        ("bytes before", figure(report.get("source_bytes"), ",.0f")),
        ("KL to the model before, predicted, nats per token", figure(report.get("predicted_kl"), ".4f")),
        ("KL to the model before, measured, nats per token", figure(report.get("measured_kl"), ".4f")),
    ]
    options = report.get("options")
    method = options.get("method") if isinstance(options, Mapping) else None
    words = "The weights are de-quantised ones: they hold what the compressed model holds, in 16 bit."
    table = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([words, "", "| | |", "|---|---:|", *table, f"| method | {text(method) or NOT_KNOWN} |"])


def _adapters(about: Cards) -> str:
    if not about.adapters:
        return "There are none."
    lines = ["| adapter | task | rank | licence | held-out figures |", "|---|---|---:|---|---|"]
    for one in about.adapters:
        record = one.record
        task = text(record.task) if record and record.task else NOT_KNOWN
        licence = text(record.license) if record and record.license else NOT_KNOWN
        lines.append(f"| `{one.name}` | {task} | {one.rank} | {licence} | {_held_out(record)} |")
    return "\n".join(lines)


def _held_out(record: AdapterRecord | None) -> str:
    """The numbers that the adapter's record gives of its result and metrics."""
    if record is None:
        return NOT_KNOWN
    found = []
    for part in (record.result, record.metrics):
        found += [f"{text(name)} {value}" for name, value in numbers(part or {})]
    return "; ".join(found[:8]) or NOT_KNOWN


def _evaluation(about: Cards) -> str:
    if not about.results:
        return (
            "No results were given. `pomona eval --out FILE` writes them, and `pomona export --results FILE` "
            "puts them here."
        )
    parts = []
    for result in about.results:
        who = f"with the adapter `{text(result.adapter)}`" if result.adapter else "without an adapter"
        limit = "all items" if result.limit is None else f"the first {result.limit:,} items of each task"
        harness = f", lm-eval {text(result.lm_eval)}" if result.lm_eval else ""
        template = ", chat template" if result.template else ""
        parts.append(
            f"Suite `{text(result.suite)}`, {who}: {limit}{template}{harness}, {text(result.date)}.\n\n"
            "| task | worked examples | value | interval (95 %) | items |\n|---|---:|---:|---:|---:|\n"
            + "\n".join(_rows(result))
        )
    return "\n\n".join(parts)


def _rows(result: EvalResult) -> list[str]:
    shots = {row_name(task): task.shots for task in result.tasks}
    return [
        f"| {text(name)} | {shots[name]} | {100 * one.value:.2f} % "
        f"| {100 * one.low:.2f} .. {100 * one.high:.2f} | {one.rows:,} |"
        for name, one in result.rows()
    ]


def _provenance(about: Cards) -> str:
    keys = ("kind", "source", "revision", "package", "file", "file_sha256")
    known = [(key, about.provenance.get(key)) for key in keys if about.provenance.get(key)]
    lines = [f"- {key}: `{text(value)}`" for key, value in known]
    before, after = about.fingerprints
    marks = [f"- fingerprint of the model that was exported: `{before}`", f"- of this directory: `{after}`"]
    return "\n".join([*lines, *marks])


# --- words and figures out of files


def numbers(value: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    """(path, figure) of the numbers in nested objects; lists are left out."""
    found: list[tuple[str, str]] = []
    for key, item in value.items():
        place = f"{path}.{key}" if path else str(key)
        if isinstance(item, Mapping):
            found += numbers(item, place)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            found.append((place, figure(item, ",.0f" if isinstance(item, int) else ".4f")))
    return found


def figure(value: Any, form: str) -> str:
    """A number of a file, or that it has none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return NOT_KNOWN
    return format(value, form)


def one_line(value: Any) -> str:
    """A text out of a file without control characters, in one line and not too long."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(value or ""))
    plain = " ".join(plain.split())
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}…"


def text(value: Any) -> str:
    """The same as Markdown that says just that: no markup, no HTML, no links, no new cell of a table."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", one_line(value)) if value is not None else ""
