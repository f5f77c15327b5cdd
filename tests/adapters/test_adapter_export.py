"""Exported adapters: clean, complete, the same bytes every time, and good to add again."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from adapter_samples import adapter_for, edit_weights, tiny_model

from pomona.adapters import store
from pomona.adapters.export import export
from pomona.errors import PomonaError

NAMES = ["LICENSE", "README.md", "adapter_config.json", "adapter_model.safetensors", "pomona.json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the adapter `summarize`, whose trainer left a path in it."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(folder / "tiny")
    store.add(model, adapter_for(model, folder / "summarize", base_model_name_or_path="/home/me/secret"))
    return model


def test_a_directory_has_everything_and_no_path_of_this_machine(model: Path, tmp_path: Path) -> None:
    target = export(model, "summarize", tmp_path / "out")
    assert sorted(path.name for path in target.iterdir()) == NAMES
    assert json.loads((target / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert not [path for path in target.iterdir() if b"/home/me" in path.read_bytes()]
    source = model / "adapters" / "summarize" / "adapter_model.safetensors"
    assert (target / "adapter_model.safetensors").read_bytes() == source.read_bytes()
    assert (target / "LICENSE").read_text() == "The licence of the base.\n"
    page = (target / "README.md").read_text()
    record = json.loads((target / "pomona.json").read_text())
    assert record["base_fingerprint"] in page and "licence: apache-2.0" in page
    assert record["sha256"] == store.file_hashes(target)


def test_what_was_exported_can_be_added_and_loaded_by_peft(model: Path, tmp_path: Path) -> None:
    from peft import PeftConfig

    target = export(model, "summarize", tmp_path / "out")
    assert PeftConfig.from_pretrained(str(target)).r == 4
    assert store.add(model, target, name="again", overwrite=True).problem is None
    store.remove(model, "again")


def test_the_adapters_own_licence_goes_before_the_bases(model: Path, tmp_path: Path) -> None:
    own = model / "adapters" / "summarize" / "LICENSE"
    own.write_text("its own\n")
    try:
        assert (export(model, "summarize", tmp_path / "out") / "LICENSE").read_text() == "its own\n"
    finally:
        own.unlink()


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".zip"])
def test_an_archive_is_the_same_every_time(model: Path, tmp_path: Path, ending: str) -> None:
    first = export(model, "summarize", tmp_path / f"one{ending}")
    (model / "adapters" / "summarize" / "pomona.json").touch()
    second = export(model, "summarize", tmp_path / f"two{ending}")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one{ending}", f"two{ending}"]


def test_a_tar_holds_plain_files_of_nobody_in_one_folder(model: Path, tmp_path: Path) -> None:
    with tarfile.open(export(model, "summarize", tmp_path / "a.tar.gz")) as archive:
        entries = archive.getmembers()
        assert [entry.name for entry in entries] == [f"summarize/{name}" for name in NAMES]
        assert all(entry.isfile() and entry.mode == 0o644 for entry in entries)
        assert {(e.mtime, e.uid, e.gid, e.uname, e.gname) for e in entries} == {(0, 0, 0, "", "")}
        archive.extractall(tmp_path / "out", filter="data")
    assert store.add(model, tmp_path / "out" / "summarize", name="again", overwrite=True).problem is None
    store.remove(model, "again")


def test_a_zip_holds_the_same(model: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(export(model, "summarize", tmp_path / "a.zip")) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"summarize/{name}" for name in NAMES]
        weights = archive.read("summarize/adapter_model.safetensors")
    assert weights == (model / "adapters" / "summarize" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_what_is_there_is_replaced_only_when_asked(model: Path, tmp_path: Path, name: str) -> None:
    export(model, "summarize", tmp_path / name)
    with pytest.raises(PomonaError, match="already exists"):
        export(model, "summarize", tmp_path / name)
    export(model, "summarize", tmp_path / name, overwrite=True)


def test_a_damaged_adapter_is_not_handed_on(model: Path, tmp_path: Path) -> None:
    store.add(model, model / "adapters" / "summarize", name="broken", overwrite=True)
    edit_weights(model / "adapters" / "broken", float("inf"))
    with pytest.raises(PomonaError, match="not finite"):
        export(model, "broken", tmp_path / "out.zip")
    assert list(tmp_path.iterdir()) == []
    store.remove(model, "broken")
