"""Finished work on disk: append-only JSON Lines that survive a kill at any moment.

The first line holds the settings of the run, every other line one finished item with its "key". A batch is written and
synced before the next one begins; a last line that a kill tore is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from ezaudio.runtime.errors import InputError

if sys.platform != "win32":
    import fcntl


def is_locked(file: IO[Any], how: Literal["flock", "lockf"]) -> bool:
    """Whether another process has locked an open file; where none has, this one does until the file is closed.

    Args:
        how: processes that are forked off share the lock of `flock`, and not that of `lockf`.
    """
    if sys.platform != "win32":
        try:
            getattr(fcntl, how)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:  # a file system without locks, as clusters have: it is not in use for that
            return False
    return False


class Journal:
    """Opens or continues a journal and holds a lock on it until it is closed.

    Args:
        path: of the file; its folder must exist.
        settings: what the items depend on, JSON values. A journal with items of other settings is refused.

    Raises:
        InputError: no journal, one of other settings, damaged before its end, or in use by another process.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        try:
            self._file = open(path, "a+b")  # noqa: SIM115  closed by close()
        except OSError as error:
            raise InputError(f"'{path}' cannot be written ({error.strerror or error}): name another place") from error
        try:
            if is_locked(self._file, "flock"):
                raise InputError(f"'{path}' is in use by another process: wait for it, or name another")
            self._read(settings)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Adds items, each with its "key", and returns when they are on disk."""
        batch = list(records)
        self._write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in batch).encode())
        self.records |= {record["key"]: record for record in batch}

    def close(self) -> None:
        with suppress(OSError):  # of what could not be written, which has been told
            self._file.close()

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"'{self.path}' cannot be written ({error.strerror or error}): free some room") from error

    def _read(self, settings: dict[str, Any]) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop()
        if torn:
            self._file.truncate(self._file.tell() - len(torn))
            self._file.seek(0, os.SEEK_END)
        if not lines:
            self._write(json.dumps({"settings": settings}).encode() + b"\n")
            return
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                records.append(record["settings" if number == 1 else "key"] and record)
            except (ValueError, RecursionError, LookupError, TypeError) as error:
                problem = "this is no record of finished work" if number == 1 else f"line {number} is damaged"
                raise InputError(f"'{self.path}': {problem}; name another place, or remove it to begin anew") from error
        before = records[0]["settings"]
        if before != settings and len(records) == 1:  # nothing is finished: a model's name was mistyped, say
            self._file.truncate(0)
            self._write(json.dumps({"settings": settings}).encode() + b"\n")
        elif before != settings:
            changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
            raise InputError(
                f"'{self.path}' was made with other settings ({', '.join(changed)}): give those, or name another place"
            )
        self.records = {record["key"]: record for record in records[1:]}
