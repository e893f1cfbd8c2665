"""Manifests: which sound file has which caption. CSV, JSON Lines or Parquet, told apart by their extension.

Columns are audio_path, caption and split; the last may be missing ("train"), and others are kept as text. A relative
audio_path starts at the manifest's folder, so that a data set can be moved as a whole.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ezaudio.runtime.errors import InputError, MissingExtraError
from ezaudio.runtime.naming import replace_file

COLUMNS = ("audio_path", "caption", "split")
FORMATS = (".csv", ".jsonl", ".parquet")
DEFAULT_SPLIT = "train"
MAX_LINE_CHARS = 65_536
MAX_CAPTION_CHARS = 4_000
MAX_PATH_CHARS = 4_096


@dataclass(frozen=True, slots=True)
class Row:
    """A sound file and its caption. `audio_path` is as the manifest has it; `Manifest.path_of` resolves it."""

    audio_path: str
    caption: str
    split: str = DEFAULT_SPLIT
    others: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, str]:
        return {"audio_path": self.audio_path, "caption": self.caption, "split": self.split, **self.others}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The rows of a file, in its order. `folder` is where relative paths start."""

    rows: tuple[Row, ...]
    folder: Path
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """Of paths and captions in their order: a run that was begun with others would not go on as it was."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(f"{row.audio_path}\0{row.caption}\0".encode())
        return digest.hexdigest()[:16]

    def path_of(self, row: Row) -> Path:
        return self.folder / row.audio_path

    def moved_to(self, folder: Path) -> list[Row]:
        """Rows for a manifest in another folder: paths relative to that one where they lie below it, else absolute."""
        here, there = self.folder.absolute(), folder.absolute()
        return [
            Row(_from_folder(here / row.audio_path, there), row.caption, row.split, dict(row.others))
            for row in self.rows
        ]


def read_manifest(path: Path, split: str | None = None) -> Manifest:
    """Reads and checks every row; no sound file is touched.

    Args:
        split: keep the rows of this split only. None: all.

    Raises:
        InputError: no such file, another format, a row that is none (its line is named), or no rows left.
        MissingExtraError: Parquet without pyarrow.
    """
    path = Path(path)
    suffix = manifest_format(path)
    if not path.is_file():
        raise InputError(f"no manifest '{path}': expected a file of {', '.join(FORMATS)} with {', '.join(COLUMNS)}")
    try:
        records = {".csv": _csv_records, ".jsonl": _json_records, ".parquet": _parquet_records}[suffix](path)
        rows = [_row(record, f"'{path}', {place}") for place, record in records]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' cannot be read ({str(error).splitlines()[0]}): expected UTF-8 text") from error
    kept = rows if split is None else [row for row in rows if row.split == split]
    if not kept:
        found = ", ".join(sorted({row.split for row in rows})[:10])
        reason = f"has no row of split '{split}' (it has: {found})" if rows else "has no rows"
        raise InputError(f"'{path}' {reason}: add rows with {', '.join(COLUMNS)}")
    return Manifest(tuple(kept), path.parent, path.name)


def write_manifest(path: Path, rows: Iterable[Row]) -> int:
    """Writes the file whole or not at all and returns the number of rows. All other columns are kept.

    Raises:
        InputError: another format, or a file that cannot be written.
        MissingExtraError: Parquet without pyarrow.
    """
    suffix = manifest_format(path)
    records = [row.to_dict() for row in rows]
    for record in records:
        _check_text(record, f"'{path}' cannot be written")
    columns = list(dict.fromkeys([*COLUMNS, *(name for record in records for name in record)]))
    if suffix == ".jsonl":
        data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    elif suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        data = text.getvalue().encode()
    else:
        _check_parquet_extra()
        import pyarrow
        import pyarrow.parquet

        sink = io.BytesIO()
        table = pyarrow.table({name: [record.get(name, "") for record in records] for name in columns})
        pyarrow.parquet.write_table(table, sink)
        data = sink.getvalue()
    replace_file(path, data)
    return len(records)


def manifest_format(path: Path) -> str:
    """Extension of a manifest, one of FORMATS. Raises InputError for others, MissingExtraError without pyarrow."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"manifest '{path}' has extension '{suffix}': expected one of {', '.join(FORMATS)}")
    if suffix == ".parquet":
        _check_parquet_extra()
    return suffix


def _check_parquet_extra() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError('Parquet needs pyarrow, which is not installed: pip install "ezaudio[parquet]"')


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        number = 0
        while line := file.readline(MAX_LINE_CHARS + 1):
            number += 1
            if len(line) > MAX_LINE_CHARS:
                raise InputError(f"'{path}', line {number} is longer than {MAX_LINE_CHARS} characters: no manifest")
            yield line


def _csv_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(_lines(path), strict=True)
    try:
        missing = [name for name in COLUMNS[:2] if name not in (reader.fieldnames or ())]
        if missing and reader.fieldnames:
            raise InputError(f"'{path}' has no column {' and '.join(missing)}: its first line must name the columns")
        for record in reader:
            if None in record or None in record.values():
                raise InputError(f"'{path}', line {reader.line_num} has not as many fields as there are columns")
            yield f"line {reader.line_num}", record
    except csv.Error as error:
        raise InputError(f"'{path}', after line {reader.line_num}: no CSV ({error})") from error


def _json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"'{path}', line {number} is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"'{path}', line {number} holds {type(record).__name__}: expected a JSON object a line")
        yield f"line {number}", record


def _parquet_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"row {number}", record
    except pyarrow.ArrowException as error:
        raise InputError(f"'{path}' cannot be read as Parquet: {str(error).splitlines()[0][:200]}") from error


def _row(record: dict[str, Any], place: str) -> Row:
    values = {}
    for name, value in record.items():
        if value is None:
            continue
        if not isinstance(value, (str, int, float)):
            raise InputError(f"{place}: column {name} holds {type(value).__name__}, expected text or a number")
        values[str(name)] = str(value)
    _check_text(values, place)
    for name, limit in (("audio_path", MAX_PATH_CHARS), ("caption", MAX_CAPTION_CHARS)):
        if name not in values:
            raise InputError(f"{place}: no {name}, expected {', '.join(COLUMNS)}")
        if len(values[name]) > limit or "\0" in values[name]:
            raise InputError(f"{place}: {name} is longer than {limit} characters or holds a zero byte")
    if not values["audio_path"].strip():
        raise InputError(f"{place}: audio_path is empty")
    audio_path, caption = values.pop("audio_path"), " ".join(values.pop("caption").split())
    return Row(audio_path, caption, values.pop("split", "") or DEFAULT_SPLIT, values)


def _check_text(values: dict[str, str], place: str) -> None:
    """Raises InputError for half characters: of JSON's escapes, or of a file name in another encoding."""
    try:
        "".join((*values, *values.values())).encode()
    except UnicodeEncodeError as error:
        name = next(name for name, value in values.items() if any("\ud800" <= c <= "\udfff" for c in name + value))
        raise InputError(f"{place}: {name} {values[name][:200]!r} is not UTF-8 text: rename or rewrite it") from error


def _from_folder(path: Path, folder: Path) -> str:
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        return path.as_posix()
