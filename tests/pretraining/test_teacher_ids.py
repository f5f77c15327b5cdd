"""The file of a teacher's tokens: records by sequence, what they belong to, and what is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pomona.data.mixture import PackedMixture, Source
from pomona.data.packed_tokens import PackedWriter
from pomona.errors import PomonaError
from pomona.pretraining.teacher_ids import IDS, RECORD, MixtureTeacher, TeacherIds, open_mixture_teacher

LENGTH, VOCABULARY = 8, 50
TEACHER = "a" * 32


def packed(folder: Path, documents: int = 20, seed: int = 0, vocab_size: int = VOCABULARY) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    writer = PackedWriter(folder, vocab_size=vocab_size, separator=0, tokenizer="b" * 64)
    for _ in range(documents):
        writer.add(rng.integers(1, vocab_size, 9).tolist())
    writer.finish()
    return folder


def mixture(*folders: Path, length: int = LENGTH, windows: int = 60) -> PackedMixture:
    sources = [Source(folder, 1.0, folder.name) for folder in folders]
    return PackedMixture(sources, sequence_length=length, seed=3, length=windows)


def opened(cache: Path, windows: PackedMixture, create: bool = True, **changes: Any) -> MixtureTeacher:
    return open_mixture_teacher(
        windows, cache, **({"teacher": TEACHER, "precision": "float32"} | changes), create=create
    )


def fill(teacher: MixtureTeacher, indices: list[int]) -> None:
    """As if the teacher always said the token itself."""
    teacher.put(indices, np.stack([teacher.windows[index][:-1] for index in indices]))


@pytest.fixture
def teacher(tmp_path: Path) -> MixtureTeacher:
    return opened(tmp_path / "cache", mixture(packed(tmp_path / "web"), packed(tmp_path / "code", seed=1)))


def test_what_was_put_is_given_by_window(teacher: MixtureTeacher) -> None:
    missing = teacher.missing(0, 1)
    fill(teacher, missing)
    for index in range(len(teacher.windows)):
        assert np.array_equal(teacher(index), teacher.windows[index][:-1])


def test_a_sequence_is_asked_for_once_in_all_epochs(teacher: MixtureTeacher) -> None:
    sequences = sum(teacher.windows.sequences.values())
    assert len(teacher.missing(0, 1)) == sequences < len(teacher.windows)
    fill(teacher, teacher.missing(0, 1)[:10])
    assert len(teacher.missing(0, 1)) == sequences - 10


def test_processes_share_the_windows(teacher: MixtureTeacher) -> None:
    parts = [teacher.missing(rank, 3) for rank in range(3)]
    assert all(index % 3 == rank for rank, part in enumerate(parts) for index in part)
    for part in parts:
        fill(teacher, part)
    assert teacher.missing(0, 1) == []


def test_another_order_or_another_mixture_finds_the_same_records(
    teacher: MixtureTeacher, tmp_path: Path
) -> None:
    fill(teacher, teacher.missing(0, 1))
    other = PackedMixture(
        [replace(teacher.windows.sources[1], weight=9.0)], sequence_length=LENGTH, seed=77, length=40
    )
    again = opened(tmp_path / "cache", other, create=False)
    assert again.missing(0, 1) == []
    assert np.array_equal(again(5), other[5][:-1])


def test_what_is_not_there_yet_is_said(teacher: MixtureTeacher) -> None:
    with pytest.raises(PomonaError, match="run the stage again"):
        teacher(0)
    with pytest.raises(IndexError):
        teacher.ids["web"][10_000]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": "c" * 32}, r"teacher: \"aaaaaa"),
        ({"precision": "bfloat16"}, "precision"),
    ],
)
def test_the_tokens_of_another_teacher_are_refused(
    teacher: MixtureTeacher, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(PomonaError, match=f"something else.*{said}.*choose another distill.cache"):
        opened(tmp_path / "cache", teacher.windows, **change)


def test_the_tokens_for_other_data_are_refused(teacher: MixtureTeacher, tmp_path: Path) -> None:
    fill(teacher, teacher.missing(0, 1))
    before = (tmp_path / "cache" / f"web-{LENGTH}" / IDS).read_bytes()
    other = mixture(packed(tmp_path / "new" / "web", seed=9))
    with pytest.raises(PomonaError, match=r"something else.*data"):
        opened(tmp_path / "cache", other)
    assert (tmp_path / "cache" / f"web-{LENGTH}" / IDS).read_bytes() == before


def test_other_lengths_lie_beside(teacher: MixtureTeacher, tmp_path: Path) -> None:
    opened(tmp_path / "cache", mixture(tmp_path / "web", length=16, windows=5))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["code-8", "web-16", "web-8"]


def test_a_damaged_record_is_missing_and_the_others_stay(teacher: MixtureTeacher, tmp_path: Path) -> None:
    fill(teacher, teacher.missing(0, 1))
    place = teacher.windows.locate(4)
    record = teacher.ids[place.source].identity.record.itemsize
    path = tmp_path / "cache" / f"{place.source}-{LENGTH}" / IDS
    with path.open("r+b") as file:
        file.seek(place.sequence * record + 6)
        file.write(b"\x31")
    assert {teacher.windows.locate(i).sequence for i in teacher.missing(0, 1)} == {place.sequence}
    with pytest.raises(PomonaError, match=f"no sound record of sequence {place.sequence}"):
        teacher(4)


def test_a_record_in_anothers_place_is_none(teacher: MixtureTeacher, tmp_path: Path) -> None:
    fill(teacher, teacher.missing(0, 1))
    path = tmp_path / "cache" / f"web-{LENGTH}" / IDS
    size = teacher.ids["web"].identity.record.itemsize
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.write(data[size : 2 * size] + data[:size])
    assert [teacher.ids["web"].has(sequence) for sequence in (0, 1, 2)] == [False, False, True]


def test_a_file_of_another_length_is_refused(teacher: MixtureTeacher, tmp_path: Path) -> None:
    with (tmp_path / "cache" / f"web-{LENGTH}" / IDS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(PomonaError, match="remove the folder"):
        opened(tmp_path / "cache", teacher.windows)


def test_ids_that_do_not_fit_are_no_records(teacher: MixtureTeacher) -> None:
    for ids in (np.full((1, LENGTH), VOCABULARY), np.full((1, LENGTH), -1), np.zeros((1, 4), int)):
        with pytest.raises(ValueError, match=r"outside|shape"):
            teacher.ids["web"].put([0], ids)


def test_large_vocabularies_have_four_bytes(tmp_path: Path) -> None:
    teacher = opened(tmp_path / "cache", mixture(packed(tmp_path / "big", vocab_size=70_000)))
    fill(teacher, teacher.missing(0, 1))
    assert teacher.ids["big"].identity.dtype.itemsize == 4
    assert max(int(teacher(index).max()) for index in range(20)) > 65_535


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["teacher", "data", "sequences", "version", "vocab_size", "more"]),
    st.one_of(st.none(), st.integers(-2, 1 << 70), st.text(max_size=8), st.lists(st.integers(), max_size=2)),
)
def test_a_foreign_index_gives_one_error(teacher: MixtureTeacher, key: str, value: Any) -> None:
    ids = teacher.ids["web"]
    raw = ids.identity.model_dump()
    if raw.get(key) == value:
        return
    (ids.folder / RECORD).write_text(json.dumps(raw | {key: value}))
    with pytest.raises(PomonaError) as error:
        TeacherIds(ids.folder, ids.identity)
    assert "\n" not in str(error.value)
