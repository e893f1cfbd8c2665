"""Published caption sets and labels joined with a folder of audio: Auto-ACD's captions, AudioSet's strong labels.

Both name clips by YouTube id; how files are named differs from one download to the next, so several forms are tried.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ezaudio.data.manifest import MAX_CAPTION_CHARS, MAX_LINE_CHARS, Row
from ezaudio.runtime.errors import InputError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
ACD_COLUMNS = ("youtube_id", "caption")
STRONG_COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
YOUTUBE_ID_CHARS = 11
VGGSOUND_SECOND = re.compile(r"_0\d{5}")  # another stretch of a video may be AudioSet's
MAX_EVENTS = 200


class AudioFolder:
    """Sound files below a folder by the id in their name: ID, YID (as AudioSet downloads have it), ID_anything."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"no folder '{folder}': expected one with sound files named after their clips' ids")
        self.folder = folder
        self.by_stem: dict[str, Path] = {}
        self.by_video: dict[str, Path] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                self.by_stem.setdefault(path.stem, path)
                bare = path.stem[1:] if path.stem.startswith("Y") and _is_video(path.stem[1:]) else path.stem
                if _is_video(bare) and not VGGSOUND_SECOND.fullmatch(bare[YOUTUBE_ID_CHARS:]):
                    self.by_video.setdefault(bare[:YOUTUBE_ID_CHARS], path)
        if not self.by_stem:
            raise InputError(f"'{folder}' has no sound file: expected {', '.join(AUDIO_SUFFIXES)}")

    def find(self, clip_id: str) -> Path | None:
        """The file of a clip, by its whole id first; by the video alone only where the id names no second."""
        for stem in (clip_id, f"Y{clip_id}"):
            if stem in self.by_stem:
                return self.by_stem[stem]
        return self.by_video.get(clip_id) if len(clip_id) == YOUTUBE_ID_CHARS else None


def _is_video(stem: str) -> bool:
    return len(stem) == YOUTUBE_ID_CHARS or stem[YOUTUBE_ID_CHARS : YOUTUBE_ID_CHARS + 1] == "_"


def merge_captions(captions: Path, audio: AudioFolder, split: str) -> tuple[list[Row], int]:
    """Rows for the clips of an Auto-ACD file whose audio is there, and how many have none.

    Auto-ACD is a CSV of youtube_id and caption. An id of VGGSound ends with the second it starts at, as in
    oPRC3zComfA_000117, one of AudioSet does not. Some ids come twice with different captions: both are kept, equal
    rows once.

    Raises:
        InputError: no such file, other columns, or not one clip with audio.
    """
    rows: dict[tuple[str, str], Row] = {}
    missing = 0
    for number, record in _table(captions, ACD_COLUMNS, ","):
        clip_id, caption = record["youtube_id"].strip(), " ".join(record["caption"].split())
        if not clip_id or not caption or len(caption) > MAX_CAPTION_CHARS:
            raise InputError(
                f"'{captions}', line {number}: expected an id and a caption of at most {MAX_CAPTION_CHARS}"
            )
        path = audio.find(clip_id)
        if path is None:
            missing += 1
        else:
            rows[clip_id, caption] = Row(str(path.absolute()), caption, split, {"id": clip_id})
    if not rows:
        raise InputError(f"none of {missing} clips of '{captions}' has a sound file in '{audio.folder}'")
    return list(rows.values()), missing


@dataclass(frozen=True, slots=True)
class Event:
    """A labelled stretch of a clip, in seconds."""

    start_s: float
    end_s: float
    label: str


def read_strong_labels(path: Path, names: Path) -> dict[str, list[Event]]:
    """Events of each segment of AudioSet's temporally strong labels (`audioset_train_strong.tsv`), in order of time.

    Args:
        names: `mid_to_display_name.tsv`: a label's id and its name on each line.

    Raises:
        InputError: missing or damaged files, or a label without a name.
    """
    display = {record["mid"]: record["name"] for _, record in _table(names, ("mid", "name"), "\t", header=False)}
    segments: dict[str, list[Event]] = {}
    for number, record in _table(path, STRONG_COLUMNS, "\t"):
        segment, start, end, label = (record[name] for name in STRONG_COLUMNS)
        try:
            event = Event(float(start), float(end), display[label])
        except ValueError as error:
            raise InputError(f"'{path}', line {number}: times {start!r} and {end!r} are no seconds") from error
        except KeyError as error:
            raise InputError(f"'{path}', line {number}: label {label!r} has no name in '{names}'") from error
        if not 0 <= event.start_s <= event.end_s <= 3600 or not segment:
            raise InputError(f"'{path}', line {number}: expected 0 <= start <= end, got {start} and {end}")
        segments.setdefault(segment, []).append(event)
    if not segments:
        raise InputError(f"'{path}' has no rows: expected columns {', '.join(STRONG_COLUMNS)}")
    for segment, events in segments.items():
        if len(events) > MAX_EVENTS:
            raise InputError(
                f"'{path}': segment {segment} has {len(events)} events, at most {MAX_EVENTS} are written out"
            )
        events.sort(key=lambda event: (event.start_s, event.end_s))
    return segments


def video_of(segment: str) -> str:
    """Id of a segment's video: AudioSet writes "b0RFKhbpFJA_30000", the start in ms behind the id."""
    return segment[:YOUTUBE_ID_CHARS] if _is_video(segment) else segment


def _table(
    path: Path, columns: tuple[str, ...], delimiter: str, header: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines with their number. CSV may quote, other files do not. Without a header, `columns` name the fields."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
            reader = csv.DictReader(
                file, None if header else list(columns), delimiter=delimiter, quoting=quoting, strict=True
            )
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"'{path}' has no column {', '.join(missing)}: expected {', '.join(columns)}")
            for record in reader:
                if None in record or None in record.values() or sum(map(len, record.values())) > MAX_LINE_CHARS:
                    raise InputError(f"'{path}', line {reader.line_num}: expected {', '.join(columns)}")
                yield reader.line_num, record
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' cannot be read: {str(error).splitlines()[0]}") from error
