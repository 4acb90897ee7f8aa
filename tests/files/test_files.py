"""Files that appear whole or not at all, and fingerprints: files/atomic.py."""

import hashlib
import logging
import os

import pytest

from files import atomic
from files.atomic import replacing, sha256, write_text
from files.logs import close_logger, open_logger


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
