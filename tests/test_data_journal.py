"""Journals: what is finished stays, whatever stops the work."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from console import one_line

from ezaudio.data.journal import Journal
from ezaudio.runtime.errors import InputError


def test_a_torn_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, {"a": 1}) as journal:
        journal.append([{"key": "x", "n": 1}, {"key": "y", "n": 2}])
        with pytest.raises(InputError, match="in use by another process"):
            Journal(path, {"a": 1})
    whole = path.read_bytes()
    for torn in (b'{"key": "z", "n"', b'{"key": "z", "n": 3}'):
        path.write_bytes(whole + torn)
        with Journal(path, {"a": 1}) as journal:
            assert list(journal.records) == ["x", "y"]
            journal.append([{"key": "z", "n": 4}])
        with Journal(path, {"a": 1}) as journal:
            assert journal.records["z"]["n"] == 4
    path.write_bytes(whole[: whole.index(b"\n") - 3])
    with Journal(path, {"a": 2}) as journal:  # even the first line was torn: nothing was finished
        assert journal.records == {}


def test_a_file_system_without_locks_is_not_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mock of Lustre as it is usually mounted."""

    def refuse(*given: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    fcntl = pytest.importorskip("fcntl", reason="no POSIX locks")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with Journal(tmp_path / "j.jsonl", {"a": 1}) as journal:
        journal.append([{"key": "x"}])


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that is always full")
def test_a_journal_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "filled.jsonl"
    journal = Journal(path, {"a": 1})
    journal.append([{"key": "x"}])
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), journal._file.fileno())
    with pytest.raises(InputError, match=r"written \(No space left on device\)") as error, journal:
        journal.append([{"key": "y"}])
    one_line(error)
    with Journal(path, {"a": 1}) as journal:
        assert list(journal.records) == ["x"]


def test_a_journal_without_items_takes_other_settings(tmp_path: Path) -> None:
    """As after a model's name that was mistyped."""
    for name in ("mdoel", "model"):
        with Journal(tmp_path / "j.jsonl", {"model": name}) as journal:
            assert journal.records == {}
    journal = Journal(tmp_path / "j.jsonl", {"model": "model"})
    journal.append([{"key": "x"}])
    journal.close()
    with Journal(tmp_path / "j.jsonl", {"model": "model"}) as journal:
        assert journal.records == {"x": {"key": "x"}}


def test_a_damaged_or_foreign_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    for content, message in {
        '{"settings": {"a": 1}}\n{"key": "x"\n{"key": "y"}\n': "line 2 is damaged",
        '{"key": "x"}\n': "no record of finished work",
        '{"settings": {"a": 1}}\n{"x": 1}\n': "line 2 is damaged",
        "[]\n": "no record of finished work",
        '{"settings": {"a": 2, "b": 1}}\n{"key": "x"}\n': r"other settings \(a, b\)",
    }.items():
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            Journal(path, {"a": 1})
        assert path.read_text() == content
    with pytest.raises(InputError, match="cannot be written"):
        Journal(tmp_path / "none" / "j.jsonl", {})
