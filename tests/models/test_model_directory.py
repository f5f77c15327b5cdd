"""ModelDirectoryWriter: a model directory is whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from pomona.errors import PomonaError
from pomona.models.model_directory import ModelDirectoryWriter, copy_files, read_json_object, write_json
from pomona.models.safetensors_file import SafetensorsWriter, TensorSpec


def fill(directory: Path, text: str = "{}") -> None:
    (directory / "config.json").write_text(text)
    (directory / "adapters" / "a").mkdir(parents=True)
    (directory / "adapters" / "a" / "adapter_config.json").write_text("{}")


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - 3600, time.time() - 3600))


def test_the_target_appears_at_the_end_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "models" / "m"
    with ModelDirectoryWriter(target) as writer:
        fill(writer.path)
        assert writer.path.parent == target.parent  # a rename within one file system is atomic
        assert not target.exists()
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*.json")) == [
        "adapters/a/adapter_config.json",
        "config.json",
    ]
    assert os.listdir(target.parent) == ["m"]
    with pytest.raises(RuntimeError, match="inside its with block"):
        _ = writer.path


def test_the_directory_has_the_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    with ModelDirectoryWriter(tmp_path / "m") as writer:
        fill(writer.path)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "m")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1), PomonaError("x"), OSError()]
)
def test_any_exception_passes_through_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, ModelDirectoryWriter(tmp_path / "m") as writer:
        fill(writer.path)
        raise error
    assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_an_existing_target_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(PomonaError, match="already exists"):
        ModelDirectoryWriter(tmp_path / "m")
    (tmp_path / "file").touch()
    with pytest.raises(PomonaError, match="already exists"):
        ModelDirectoryWriter(tmp_path / "file")
    with pytest.raises(PomonaError, match="not a directory"):
        ModelDirectoryWriter(tmp_path / "file", overwrite=True)


def test_overwrite_replaces_a_model_and_keeps_it_if_the_work_fails(tmp_path: Path) -> None:
    target = tmp_path / "m"
    with ModelDirectoryWriter(target) as writer:
        fill(writer.path, "old")
    with pytest.raises(ZeroDivisionError), ModelDirectoryWriter(target, overwrite=True) as writer:
        fill(writer.path, "new")
        raise ZeroDivisionError
    assert (target / "config.json").read_text() == "old"
    with ModelDirectoryWriter(target, overwrite=True) as writer:
        (writer.path / "config.json").write_text("new")
    assert (target / "config.json").read_text() == "new"
    assert os.listdir(target) == ["config.json"]  # replaced, not merged
    assert os.listdir(tmp_path) == ["m"]


def test_overwrite_restores_the_old_model_if_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m"
    with ModelDirectoryWriter(target) as writer:
        fill(writer.path, "old")
    rename = os.rename
    calls = 0

    def fails_once(source: Path, destination: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(KeyboardInterrupt), ModelDirectoryWriter(target, overwrite=True) as writer:
        fill(writer.path, "new")
    assert calls == 3
    assert (target / "config.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["m"]


def test_overwrite_never_deletes_what_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with pytest.raises(PomonaError, match=r"being no model directory \(it has no config\.json\)"):
        ModelDirectoryWriter(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    with ModelDirectoryWriter(tmp_path / "empty", overwrite=True) as writer:
        fill(writer.path)
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    with ModelDirectoryWriter(tmp_path / "real") as writer:
        fill(writer.path, "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with ModelDirectoryWriter(tmp_path / "link", overwrite=True) as writer:
        fill(writer.path, "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").read_text() == "new"


def test_a_target_made_by_someone_else_in_the_meantime_is_not_touched(tmp_path: Path) -> None:
    with (
        pytest.raises(PomonaError, match="already exists"),
        ModelDirectoryWriter(tmp_path / "m") as writer,
    ):
        fill(writer.path, "mine")
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "config.json").write_text("theirs")
    assert (tmp_path / "m" / "config.json").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_target_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(PomonaError, match="not a usable name"):
        ModelDirectoryWriter(name)


def test_a_parent_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = ModelDirectoryWriter(tmp_path / "file" / "m")
    with pytest.raises(PomonaError, match="cannot be written"), writer:
        pytest.fail("the block must not run")


# --- disk full


def test_too_little_space_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match=r"needs 1000000000\.0 GB, and .* are free on that disk"):
        ModelDirectoryWriter(tmp_path / "a" / "m", need_bytes=10**18)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs Linux' /dev/full, a device that is always full"
)
def test_a_full_disk_names_the_target_and_the_space_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "m"
    with pytest.raises(PomonaError) as caught, ModelDirectoryWriter(target) as directory:
        fill(directory.path)
        path = directory.path / "model.safetensors"
        path.symlink_to("/dev/full")
        with SafetensorsWriter(path, [TensorSpec("a", "F32", (100_000,))]) as weights:
            weights.write("a", np.zeros(100_000, np.float32))
    message = str(caught.value)
    assert message.startswith(f"{target}: the disk is full (")
    assert " free), nothing was kept; free some space" in message
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_a_file_size_limit_is_met_in_a_real_process(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel itself refuse the write, in the middle of a tensor."""
    program = f"""
        import resource, signal
        from pathlib import Path
        from pomona.errors import PomonaError
        from pomona.models.presets import preset
        from pomona.models.random_init import random_model
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else it ends the process; now write() gives EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            random_model(preset("afm-nano"), Path({str(tmp_path / "m")!r}))
        except PomonaError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.startswith(f"{tmp_path / 'm'}: a file grew past the size limit")
    assert "ulimit -f" in done.stdout
    assert os.listdir(tmp_path) == []


# --- interrupted and killed processes

WRITER = """
    import sys, time
    from pathlib import Path
    from pomona.models.model_directory import ModelDirectoryWriter
    with ModelDirectoryWriter(Path(sys.argv[1])) as writer:
        (writer.path / "config.json").write_text("{}")
        print("started", flush=True)
        time.sleep(60)
"""


def interrupted(target: Path, number: signal.Signals) -> int:
    """Start a writer, send the signal in the middle of its work, give its exit status."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        return process.wait(timeout=60)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    assert interrupted(tmp_path / "m", signal.SIGINT) != 0
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_goes_with_the_next_writer(tmp_path: Path) -> None:
    interrupted(tmp_path / "m", signal.SIGKILL)
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".m.partial-")
    make_old(leftover)
    with ModelDirectoryWriter(tmp_path / "m") as writer:
        fill(writer.path)
    assert os.listdir(tmp_path) == ["m"]


def test_the_work_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with ModelDirectoryWriter(tmp_path / "m") as first:
        fill(first.path)
        make_old(first.path)
        with pytest.raises(ZeroDivisionError), ModelDirectoryWriter(tmp_path / "m"):
            raise ZeroDivisionError
    assert (tmp_path / "m" / "config.json").exists()


def test_a_model_set_aside_by_a_killed_overwrite_is_kept_until_the_target_is_there(tmp_path: Path) -> None:
    aside = tmp_path / ".m.replaced-1234"
    aside.mkdir()
    make_old(aside)
    with pytest.raises(ZeroDivisionError), ModelDirectoryWriter(tmp_path / "m"):
        raise ZeroDivisionError
    assert aside.exists()
    with ModelDirectoryWriter(tmp_path / "m") as writer:
        fill(writer.path)
    assert aside.exists()
    with ModelDirectoryWriter(tmp_path / "m", overwrite=True) as writer:
        fill(writer.path)
    assert not aside.exists()


# --- the small files


def test_json_is_written_and_read(tmp_path: Path) -> None:
    value = {"z": 1, "a": ["é", None, {"b": 0.5}]}
    write_json(tmp_path / "x.json", value)
    assert read_json_object(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_text(encoding="utf-8").startswith('{\n  "z": 1')


def test_a_huge_file_is_not_read_as_json(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(PomonaError, match="larger than"):
        read_json_object(tmp_path / "x.json")


def test_only_the_named_files_are_copied_and_links_are_followed(tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.mkdir()
    target.mkdir()
    (tmp_path / "blob").write_text("tokens")
    (source / "tokenizer.json").symlink_to(tmp_path / "blob")  # the hub's cache is made of such links
    (source / "other").touch()
    assert copy_files(source, target, ("tokenizer.json", "absent.json")) == ["tokenizer.json"]
    assert not (target / "tokenizer.json").is_symlink()
    assert (target / "tokenizer.json").read_text() == "tokens"
    assert os.listdir(target) == ["tokenizer.json"]
