"""Output files: how they are named after a prompt, where they go, and how they are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from ezaudio.runtime.errors import InputError

MAX_STEM_CHARS = 60
MAX_STEM_BYTES = 180  # 60 letters of any living script; file systems stop at 255
RESERVED_STEMS = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # Windows


def file_stem(prompt: str) -> str:
    """File name without extension for a prompt: lower-case words joined by "_", never empty, valid on every system.

    Accents are folded ("é" to "e"); letters of other scripts are kept; everything else, so any dot, slash or space,
    only separates words. Whole words up to 60 characters.
    """
    text = unicodedata.normalize("NFKC", prompt).lower().replace("'", "").replace("’", "")
    folded = "".join(_fold(character) for character in text)
    words = re.sub("(?<=[a-z0-9])[\u0300-\u036f]+", "", folded).split()
    stem = _cut(words[0]) if words else "sound"
    for word in words[1:]:
        longer = f"{stem}_{word}"
        if longer != _cut(longer):
            break
        stem = longer
    return f"{stem}_sound" if stem in RESERVED_STEMS else stem


def _fold(character: str) -> str:
    base = unicodedata.normalize("NFKD", character)
    if base[0].isascii():
        return base[0] if base[0].isalnum() else " "
    return character if unicodedata.category(character)[0] in "LMN" else " "


def _cut(text: str) -> str:
    return text[:MAX_STEM_CHARS].encode()[:MAX_STEM_BYTES].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where outputs go: the file `name` in `folder`, or, when `name` is None, files there named after the prompt."""

    folder: Path
    name: str | None = None

    @classmethod
    def parse(cls, given: str | None, flag: str, num_files: int = 1) -> Destination:
        """Reads FILE|FOLDER (a folder exists or ends with a slash; None is the current one) and checks it is writable.

        Args:
            flag: the option that `given` came from, for the messages.

        Raises:
            InputError: no such folder, a folder that cannot be written to, a target that is not a regular file, or one
                file named for several.
        """
        if given is None:
            folder, name = Path(), None
        elif not given.strip():
            raise InputError(f"{flag} is blank: name a file, or a folder that exists")
        elif os.path.isdir(given) or given.endswith(tuple(filter(None, (os.sep, os.altsep)))):
            folder, name = Path(given), None
        else:  # a link is followed, so that what it points to is replaced and not the link
            target = Path(os.path.realpath(given)) if os.path.islink(given) else Path(given)
            folder, name = target.parent, target.name
        if not os.path.exists(folder):  # a path that may not be looked at is none, where Path would raise
            raise InputError(f"{flag}: no folder '{folder}': create it (mkdir -p '{folder}') or name another")
        if not os.path.isdir(folder):
            raise InputError(f"{flag}: '{folder}' is a file, expected a folder: name another")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise _not_writable(folder, error) from error
        if name is not None:
            if num_files > 1:
                fix = "name a folder that exists (mkdir sounds, then sounds/)"
                raise InputError(f"{flag}: '{given}' is one file, but {num_files} are to be written: {fix}")
            _check_target(folder / name, flag)
        return cls(folder, name)

    def write(self, stem: str, suffix: str, data: bytes) -> Path:
        """Writes one output and returns its path: replaces the named file, else takes the first free stem, stem-2, …"""
        if self.name is not None:
            return replace_file(self.folder / self.name, data)
        return create_file(self.folder, stem, suffix, data)


def _check_target(path: Path, flag: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _not_writable(path, error) from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{flag}: '{path}' exists and is not a regular file: name another")


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, unless they are there. Raises InputError when it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"'{path}' cannot be made ({error.strerror or error}): name another folder") from error


def replace_file(path: Path, data: bytes) -> Path:
    """Writes `path` whole or not at all; an existing file is replaced. Raises InputError when it cannot be written."""
    try:
        temporary = _write_temporary(path.parent, data)
        try:
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise _not_writable(path, error) from error
    return path


def create_file(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Like `replace_file`, under the first of stem, stem-2, stem-3 … that no other file has, nor takes meanwhile."""
    try:
        temporary = _write_temporary(folder, data)
        try:
            return next(path for path in _numbered(folder, stem, suffix) if _rename_to_new(temporary, path))
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _not_writable(folder / f"{stem}{suffix}", error) from error


def _numbered(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    return (folder / f"{stem}{number}{suffix}" for number in chain([""], (f"-{n}" for n in count(2))))


def _rename_to_new(temporary: Path, path: Path) -> bool:
    """True when `temporary` became `path`, False when something of that name exists. `os.rename` would replace it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EINVAL):
            raise
        if os.path.lexists(path):  # a file system without hard links: two processes at once may still collide here
            return False
        os.replace(temporary, path)
    return True


def _write_temporary(folder: Path, data: bytes) -> Path:
    """A new hidden file in `folder`, with the permissions of an ordinary file (`tempfile` gives 0600)."""
    path = folder / f".ezaudio-{secrets.token_hex(8)}.tmp"
    try:
        with open(path, "xb") as file:
            file.write(data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _not_writable(path: Path, error: OSError) -> InputError:
    return InputError(f"'{path}' cannot be written ({error.strerror or error}): free it or name another place")
