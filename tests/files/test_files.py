"""Files that appear whole or not at all, and fingerprints: files/atomic.py."""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from files import atomic
from files.atomic import keep, replacing, sha256, sweep, unchanged, write_text
from files.logs import close_logger, open_logger
from files.tensors import load_tensors, save_tensors
from utils import get_logger, lock_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_a_crash_while_writing_leaves_the_old_file_and_no_temporary_one(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as file:
        file.write(b"half of the n")
        assert len(list(tmp_path.iterdir())) == 2  # the new content lies beside the old file
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["os.fsync", "os.chmod", "os.replace"])
def test_a_crash_after_writing_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, moment):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def crash(*args):
        raise OSError("input/output error")

    monkeypatch.setattr(moment, crash)
    with pytest.raises(OSError, match="input/output error"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_crash_before_there_was_a_file_leaves_an_empty_folder(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_the_old_file_is_read_until_the_block_ends_and_the_new_one_is_anyones_to_read(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_content_is_on_disk_before_it_gets_its_name_and_the_name_after(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: events.append("fsync") or fsync(handle))
    monkeypatch.setattr("os.replace", lambda a, b: events.append("replace") or replace(a, b))
    write_text(tmp_path / "a.txt", "")
    assert events == ["fsync", "replace", "fsync"]  # file, name, folder


def test_text_is_written_as_it_is(tmp_path):
    write_text(tmp_path / "a.txt", "à\n\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa0\n\r\n"


def test_a_fingerprint_is_the_sha_256_of_all_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "BLOCK", 8)
    for content in (b"", b"12345678", bytes(range(100))):
        (tmp_path / "a").write_bytes(content)
        assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_log_goes_to_the_console_and_to_its_file_and_to_nothing_of_an_earlier_command(tmp_path, capsys):
    open_logger("one of the tests", tmp_path / "new" / "a.log").info("first")
    logger = open_logger("one of the tests", tmp_path / "b.log", logging.WARNING)
    logger.info("too quiet")
    logger.warning("second")
    open_logger("one of the tests").info("third")
    assert capsys.readouterr().out == "first\nsecond\nthird\n"
    assert (tmp_path / "new" / "a.log").read_text().endswith(" INFO first\n")
    assert (tmp_path / "b.log").read_text().endswith(" WARNING second\n")
    close_logger(logger)
    assert logger.handlers == []


def start_writing(path):
    """A process of this test's own that has written half of `path` and waits."""
    code = (
        "import sys; from files.atomic import replacing\n"
        f"with replacing({str(path)!r}) as file:\n"
        "    file.write(b'half'); file.flush(); print('wrote', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"wrote\n"
    return process


def test_a_sweep_takes_what_a_killed_process_left_and_nothing_of_a_living_one_or_of_others(tmp_path):
    killed = start_writing(tmp_path / "metrics.json")
    killed.kill()
    killed.wait()
    (left,) = tmp_path.iterdir()
    living = start_writing(tmp_path / "metrics.json")
    try:
        (kept,) = set(tmp_path.iterdir()) - {left}
        others = [tmp_path / name for name in (".metrics.lock", "notes.tmp", ".notes.tmp", ".a.ABCDEFGH.tmp")]
        for path in others:
            path.touch()
        (tmp_path / ".folder.abcdefgh.tmp").mkdir()
        (tmp_path / ".link.abcdefgh.tmp").symlink_to(others[0])
        assert sweep(tmp_path) == [left.name]
        assert not left.exists() and kept.exists() and all(path.exists() for path in others)
    finally:
        living.communicate()
    assert (tmp_path / "metrics.json").read_bytes() == b"half"
    assert not kept.exists() and len(list(tmp_path.iterdir())) == len(others) + 3


def test_a_writer_whose_file_was_swept_before_it_was_locked_takes_another(tmp_path, monkeypatch):
    lock, swept = fcntl.flock, []

    def sweep_first(handle, how):
        if how == fcntl.LOCK_EX and not swept:
            (found,) = tmp_path.glob(".*.tmp")
            found.unlink()
            swept.append(found)
        return lock(handle, how)

    monkeypatch.setattr("fcntl.flock", sweep_first)
    write_text(tmp_path / "a.txt", "whole")
    assert swept and (tmp_path / "a.txt").read_text() == "whole"


@contextlib.contextmanager
def small_disk():
    """Files cannot grow beyond 4000 bytes; around one write only, for pytest's own report may be a longer file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_with_path_bytes_what_is_intact_and_how_to_go_on(tmp_path):
    path = tmp_path / "image_adapter.pth"
    with pytest.raises(OSError) as error, small_disk():
        save_tensors(path, {"weights": torch.zeros(5000)})
    assert error.value.errno == errno.EFBIG and not list(tmp_path.iterdir())
    for part in (
        str(path),
        "20000 bytes are needed",
        "bytes are free",
        "no half file is left",
        "same command",
    ):
        assert part in str(error.value)
    save_tensors(path, {"weights": torch.zeros(5)})
    with pytest.raises(OSError, match="the image_adapter.pth of before is intact"), small_disk():
        save_tensors(path, {"weights": torch.zeros(5000)})
    assert load_tensors(path)["weights"].shape == (5,) and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="cannot write .*b.txt"), small_disk():
        write_text(tmp_path / "b.txt", "x" * 5000)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("moment", ["tempfile.mkstemp", "os.fsync", "os.replace", "pathlib.Path.mkdir"])
def test_every_way_a_file_cannot_be_written_names_it_and_the_way_on(tmp_path, monkeypatch, number, moment):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(moment, refuse)
    with pytest.raises(
        OSError, match=f"cannot write .*a.pth: .*{os.strerror(number)}.*same command"
    ) as error:
        save_tensors(tmp_path / "a.pth", {"epoch": 1})
    monkeypatch.undo()
    assert error.value.errno == number and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/run: .*same command"):
        lock_run(tmp_path / "file" / "run")
    with pytest.raises(OSError, match=r"cannot write .*file/run/test.log: .*same command"):
        get_logger(tmp_path / "file" / "run", "test.log")


def test_an_error_that_is_not_of_writing_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="^no picture$"), replacing(tmp_path / "a") as file:
        file.write(b"x")
        raise FileNotFoundError("no picture")


def test_a_kept_file_has_both_names_also_where_links_are_unknown(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "one")
    keep(tmp_path / "a", tmp_path / "b")
    write_text(tmp_path / "a", "two")
    assert (tmp_path / "b").read_text() == "one"

    def unknown(*args):
        raise PermissionError(errno.EPERM, "links are unknown here")

    monkeypatch.setattr("os.link", unknown)
    keep(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "two" and len(list(tmp_path.iterdir())) == 2


def test_a_file_written_to_while_it_is_read_is_refused_and_one_that_is_replaced_stays_what_was_opened(
    tmp_path,
):
    path = tmp_path / "a"
    write_text(path, "first")
    with unchanged(path) as file:
        write_text(path, "other")
        assert file.read() == b"first"
    with pytest.raises(ValueError, match="replaced or written to while"), unchanged(path, same_name=True):
        write_text(path, "third")
    with pytest.raises(ValueError, match="a was written to while it was read"), unchanged(path):
        path.write_text("longer")
