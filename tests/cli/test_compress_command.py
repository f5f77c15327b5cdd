"""`pomona compress`: where the result goes, what is refused early, what is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@dataclass(frozen=True)
class FakeReport:
    projection_bits_per_weight: float = 4.04
    file_bits_per_weight: float = 4.91
    file_bytes: int = 82_600_000
    source_bytes: int = 269_000_000
    seconds: float = 12.34
    predicted_kl: float | None = 0.25
    measured_kl: float | None = 0.26

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@pytest.fixture
def compressed(fake_module: Callable[..., None]) -> list[dict[str, Any]]:
    """What the compressor was asked."""
    calls: list[dict[str, Any]] = []

    def compress(
        source: Path,
        target: Path,
        *,
        progress: Callable[..., None],
        notice: Callable[[str], None],
        **options: Any,
    ) -> FakeReport:
        notice("about 24 minutes on 2 cores")
        progress("palettise", 1, 2)
        calls.append({"source": source, "target": target, **options})
        return FakeReport()

    fake_module("pomona.compression.compress", compress=compress)
    return calls


def test_the_result_lies_beside_the_source_in_the_cache(
    pomona: Command, compressed: list[Any], put_model: Callable[..., Path], cli_models: Path
) -> None:
    source = put_model("smol")
    outcome = pomona("compress", "smol")
    assert outcome.code == 0, outcome.err
    assert compressed == [
        {
            "source": source,
            "target": cli_models / "smol-4bit",
            "bits": None,
            "size": None,
            "max_kl": None,
            "method": None,
            "allocation": None,
            "table_columns": None,
            "calibration": "self",
            "constraints": None,
            "embedding_bits": None,
            "work": None,
            "threads": None,
            "overwrite": False,
        }
    ]
    for words in (
        "KL 0.2500 nats per token predicted, measured 0.2600",
        "82.6 MB, before 269 MB",
        "4.04 in the projections",
        "4.91 in the whole file",
        "12.3 s",
    ):
        assert words in outcome.out
    assert outcome.out.endswith("Try: pomona run smol-4bit\n")
    assert outcome.err == "about 24 minutes on 2 cores\npalettise ...\n"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ((), "smol-4bit"),
        (("--bits", "3"), "smol-3bit"),
        (("--bits", "3.0"), "smol-3bit"),
        (("--bits", "3.5"), "smol-3.5bit"),
        (("--bits", "2"), "smol-2bit"),
        (("--size", "70MB"), "smol-70MB"),
        (("--max-kl", "0.1"), "smol-kl0.1"),
        (("--name", "mine", "--bits", "3.5"), "mine"),
    ],
)
def test_the_name_of_the_result(
    pomona: Command,
    compressed: list[Any],
    put_model: Callable[..., Path],
    cli_models: Path,
    options: tuple[str, ...],
    name: str,
) -> None:
    put_model("smol")
    assert pomona("compress", "smol", *options).code == 0
    assert compressed[0]["target"] == cli_models / name


@pytest.mark.parametrize("bits", [4, 3.5, 3, 2.25, 2])
def test_bits_reach_the_compressor(
    pomona: Command, compressed: list[Any], put_model: Callable[..., Path], bits: float
) -> None:
    put_model("smol")
    assert pomona("compress", "smol", "--bits", str(bits)).code == 0
    assert compressed[0]["bits"] == bits


def test_a_directory_named_by_a_dot_still_has_a_name(
    pomona: Command,
    compressed: list[Any],
    put_model: Callable[..., Path],
    cli_models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(put_model("smol"))
    assert pomona("compress", ".").code == 0
    assert compressed[0]["target"] == cli_models / "smol-4bit"


def test_every_option_reaches_the_compressor(
    pomona: Command, compressed: list[Any], put_model: Callable[..., Path], tmp_path: Path
) -> None:
    put_model("smol")
    text = tmp_path / "notes.txt"
    text.write_text("words")
    out = tmp_path / "out"
    line = f"--out {out} --bits 2 --table-columns 192 --calibration {text} --threads 2 --overwrite "
    line += f"--method weighted --allocation error --constraints {text} --work {tmp_path / 'w'} "
    line += "--embedding-bits 3"
    assert pomona("compress", "smol", *line.split()).code == 0
    (call,) = compressed
    assert call["target"] == out
    assert (call["bits"], call["table_columns"], call["calibration"]) == (2, 192, str(text))
    assert (call["method"], call["allocation"], call["embedding_bits"]) == ("weighted", "error", 3)
    assert (call["constraints"], call["work"]) == (text, tmp_path / "w")
    assert (call["threads"], call["overwrite"]) == (2, True)


@pytest.mark.parametrize(("size", "nbytes"), [("70MB", 70_000_000), ("64MiB", 64 << 20), ("5000", 5000)])
def test_a_size_is_read_with_its_unit(
    pomona: Command, compressed: list[Any], put_model: Callable[..., Path], size: str, nbytes: int
) -> None:
    put_model("smol")
    assert pomona("compress", "smol", "--size", size).code == 0
    assert compressed[0]["size"] == nbytes


@pytest.mark.parametrize("choice", ["self", "none"])
def test_two_kinds_of_calibration_need_no_file(
    pomona: Command, compressed: list[Any], put_model: Callable[..., Path], choice: str
) -> None:
    put_model("smol")
    assert pomona("compress", "smol", "--calibration", choice).code == 0
    assert compressed[0]["calibration"] == choice


def test_json_is_the_report_and_where_the_model_is(
    pomona: Command, compressed: list[Any], put_model: Callable[..., Path], cli_models: Path
) -> None:
    put_model("smol")
    assert pomona("compress", "smol", "--json").json == {
        "name": "smol-4bit",
        "directory": str(cli_models / "smol-4bit"),
        **asdict(FakeReport()),
    }


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--out", "x", "--name", "y"), "--out and --name"),
        (("--name", "../y"), "not a plain name"),
        (("--name", ".hidden"), "not a plain name"),
        (("--table-columns", "100"), "multiple of 64"),
        (("--calibration", "absent.txt"), "absent.txt: no such calibration text"),
        (("--bits", "four"), "--bits"),
        (("--size", "large"), "--size large: is no size; write it as 70MB or 64MiB"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    pomona: Command,
    compressed: list[Any],
    put_model: Callable[..., Path],
    options: tuple[str, ...],
    complaint: str,
) -> None:
    put_model("smol")
    outcome = pomona("compress", "smol", *options)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert compressed == []


def test_a_source_that_is_not_there_says_how_to_get_it(
    pomona: Command, compressed: list[Any], cli_models: Path
) -> None:
    outcome = pomona("compress", "smollm2-135m")
    assert outcome.code == 2
    assert "pomona pull smollm2-135m" in outcome.err
