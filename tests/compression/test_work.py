"""The work folder: keeps what belongs to the job, throws away the rest, has whole files or none."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from pomona.compression.work import WorkFolder
from pomona.errors import PomonaError


def test_what_was_written_is_read_again_by_the_same_job(tmp_path: Path) -> None:
    first = WorkFolder(tmp_path / "x.work", {"bits": 4})
    first.write_json("a.json", {"b": [1, 2]})
    first.write_arrays("c.npz", {"d": np.arange(3, dtype=np.uint8)})
    again = WorkFolder(tmp_path / "x.work", {"bits": 4})
    assert again.read_json("a.json") == {"b": [1, 2]}
    arrays = again.read_arrays("c.npz")
    assert arrays is not None
    np.testing.assert_array_equal(arrays["d"], [0, 1, 2])


def test_another_job_finds_nothing(tmp_path: Path) -> None:
    WorkFolder(tmp_path / "x.work", {"bits": 4}).write_json("a.json", 1)
    assert WorkFolder(tmp_path / "x.work", {"bits": 3}).read_json("a.json") is None


def test_a_folder_that_no_compression_made_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(PomonaError, match="is no work folder of a compression"):
        WorkFolder(tmp_path / "mine", {})
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_an_empty_folder_may_become_one(tmp_path: Path) -> None:
    assert WorkFolder(tmp_path, {"bits": 4}).path == tmp_path


@pytest.mark.parametrize("content", [b"", b"{", b"PK\x03\x04 no zip", b"\x80\x04pickle"])
def test_damaged_files_count_as_missing(tmp_path: Path, content: bytes) -> None:
    work = WorkFolder(tmp_path / "x.work", {})
    (work.path / "a").write_bytes(content)
    assert work.read_json("a") is None
    assert work.read_arrays("a") is None


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "x.work", {})
    np.savez(work.path / "a.npz", x=np.array([print], dtype=object))
    assert work.read_arrays("a.npz") is None


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "x.work", {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            work.write_arrays("c.npz", {"d": np.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in work.path.iterdir()) == ["pomona-work.json"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PomonaError, match="cannot be written"):
        WorkFolder(tmp_path / "file" / "x.work", {})
