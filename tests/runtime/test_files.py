import errno
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from imta_jax.errors import ExistingFileError, FilePermissionError, StorageError, message_of
from imta_jax.runtime.array_files import write_npz
from imta_jax.runtime.files import (
    append_or_restore,
    create_folder,
    delete_file,
    replacing,
    write_atomically,
    write_json,
)
from imta_jax.runtime.json_files import read_json, read_json_or_none


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_reported_with_the_path(tmp_path):
    path = tmp_path / "folder" / "file"
    size, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for write in (write_atomically, append_or_restore):
            with pytest.raises(OSError, match="File too large") as caught:
                write(path, bytes(2000))
            assert message_of(caught.value) == f"{path}: File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    with pytest.raises(StorageError) as caught, replacing(path):
        raise StorageError(28, "the disk is full")
    assert str(caught.value) == "the disk is full"


def test_a_file_in_place_of_a_folder_and_the_reverse_are_errors_with_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExistingFileError, match=rf"{tmp_path}/file is a file.*delete"):
        write_atomically(tmp_path / "file" / "below" / "a", "")
    with pytest.raises(ExistingFileError, match=rf"{tmp_path}/folder is a folder.*delete"):
        write_atomically(tmp_path / "folder", "")


@pytest.mark.parametrize("module", [(os, "replace"), (Path, "mkdir")])
def test_a_folder_that_may_not_be_written_is_named(module, tmp_path, monkeypatch):
    def deny(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(*module, deny)
    with pytest.raises(FilePermissionError, match=rf"{tmp_path}/new.*writable") as caught:
        write_atomically(tmp_path / "new" / "file", "")
    assert caught.value.errno == errno.EACCES


def test_the_old_file_is_read_until_the_write_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        # `cli.run` deletes the temporary files of a killed run by this pattern.
        assert temporary.match(".*.partial")
    assert path.read_text() == "new"


@pytest.mark.parametrize("content", [b"\x00\xff", "text, é"])
def test_bytes_and_text_are_written_and_the_folder_is_created(tmp_path, content):
    path = tmp_path / "a" / "b"
    write_atomically(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_writers_of_one_file_do_not_share_a_temporary_file(tmp_path):
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        assert one != other
        for path in (one, other):
            path.touch()


def test_json_is_indented_and_ends_with_a_newline(tmp_path):
    path = tmp_path / "value.json"
    write_json(str(path), {"a": [1, 2.5]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5]}
    assert path.read_text().startswith("{\n ") and path.read_text().endswith("}\n")


def test_strict_json_rejects_nan_and_writes_nothing(tmp_path: Path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "value.json", float("nan"), allow_nan=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "results.json").mkdir()
    for read in (read_json, read_json_or_none):
        with pytest.raises(FileExistsError, match=r"results.json is a folder; expected a file"):
            read(tmp_path / "results.json", "evaluate again")
    with pytest.raises(FileExistsError, match=r"results.json is a folder; expected a file"):
        write_npz(tmp_path / "results.json", a=np.zeros(1))
    delete_file(tmp_path / "results.json")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_link_to_nothing_in_place_of_a_folder_is_named_and_a_file_is_replaced(tmp_path):
    link = tmp_path / "report"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"report is a broken link to '.*; .* the link$"):
        create_folder(link / "data")
    write_atomically(link, "text")
    assert link.read_text() == "text" and not link.is_symlink()
    delete_file(link)
    delete_file(link)
    assert not list(tmp_path.iterdir())
