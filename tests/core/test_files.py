"""Files that are written: whole or not at all, with the mode they had, by links and devices too."""

import errno
import os
import stat
from pathlib import Path

import pytest
from cmm import _files


def test_a_new_file_has_the_mode_that_the_umask_says(tmp_path):
    for umask in (0o022, 0o077):
        before = os.umask(umask)
        try:
            with _files.replacing(tmp_path / f"{umask}") as file:
                file.write(b"new")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{umask}").stat().st_mode) == 0o666 & ~umask


def test_a_file_that_is_replaced_has_the_mode_of_the_old_one(tmp_path):
    for mode in (0o600, 0o664, 0o751):
        (tmp_path / "file").touch()
        (tmp_path / "file").chmod(mode)
        with _files.replacing(tmp_path / "file") as file:
            file.write(b"new")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_links_devices_and_pipes_are_written_to(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    with _files.replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    with _files.replacing(Path("/dev/null")) as file:
        file.write(b"new")
    assert not Path("/dev/null").is_file()
    with open(tmp_path / "open", "wb") as file:  # another name of an open file is that file
        name = Path(f"/dev/fd/{file.fileno()}")
        if name.exists():
            with _files.replacing(name) as same:
                same.write(b"new")
            assert os.fstat(file.fileno()).st_size == 3


def test_an_error_of_writing_names_the_file(tmp_path):
    (tmp_path / "old").write_bytes(b"old")

    def half(error):
        with _files.replacing(tmp_path / "old") as file:
            file.write(b"half")
            raise error

    for error, said in (
        (OSError(errno.ENOSPC, "No space left on device"), r"No space left on device: '.*old'"),
        (OSError("3 requested and 1 written"), r"old cannot be written: 3 requested"),  # NumPy's has no number
    ):
        with pytest.raises(OSError, match=said):
            half(error)
    with pytest.raises(ZeroDivisionError):
        half(ZeroDivisionError())
    with pytest.raises(IsADirectoryError, match=str(tmp_path)), _files.replacing(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="none/x"), _files.replacing(tmp_path / "none" / "x"):
        pass
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"old": b"old"}


def test_what_cannot_be_written_is_known_before(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert _files.is_writable(tmp_path / "file")
    assert _files.is_writable(tmp_path / "new")
    assert _files.is_writable(Path("/dev/null"))
    assert not _files.is_writable(tmp_path)
    assert not _files.is_writable(tmp_path / "none" / "new")
    for closed in (tmp_path, tmp_path / "file"):  # root may write anywhere
        monkeypatch.setattr("os.access", lambda path, mode, closed=closed: os.fspath(path) != os.fspath(closed))
        assert not _files.is_writable(tmp_path / "file")
    monkeypatch.undo()
