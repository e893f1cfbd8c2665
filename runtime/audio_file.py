"""Audio files that carry the settings they were made with: WAV, FLAC, OGG (Vorbis) and MP3.

The settings are one line of JSON, ASCII-escaped, in the comment field of each format (WAV: LIST/INFO `ICMT`). Equal
samples and settings give equal bytes. Three formats get help towards that:

- WAV is written here: libsndfile loses comments beyond 2 KB and then makes files that it cannot open.
- OGG gets a stream serial number made of the settings, where libsndfile draws a random one.
- MP3 gets an ID3v2.3 tag written here: libsndfile stores UTF-8 as if it were Latin-1.

A clip that is louder than full scale is turned down to it, by its peak; 32-bit WAV keeps its level. Integer formats
hold round_half_even(x · (2^(bits-1) - 1)), the product exact in float64.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ezaudio.runtime.errors import InputError
from ezaudio.runtime.naming import replace_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUPPORTED_FORMATS: dict[str, tuple[int, ...]] = {"wav": (16, 24, 32), "flac": (16, 24), "ogg": (), "mp3": ()}
"""File extension → bit depths to choose from (32 is float); none where the format has no bit depth."""

MAX_METADATA_BYTES = 256 * 1024
MAX_TITLE_CHARS = 200
BLOCK_FRAMES = 65536  # Vorbis in libsndfile overflows the stack when a long clip comes in one call

# Control and format characters, other spaces, tags, lone surrogates. Code points and no categories: a language without
# Unicode tables gives the same title.
_NOT_IN_TITLES = re.compile(
    "[\x00-\x20\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]+"
)

# At 24 kHz mono: Vorbis about 90 kbit/s, MP3 128 kbit/s constant. Both arguments need soundfile 0.13.
_ENCODERS: dict[str, dict[str, Any]] = {
    "flac": {"format": "FLAC"},
    "ogg": {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.1},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.2},
}


def audio_format(path: str | Path) -> str:
    """Format named by the extension of `path`, one of SUPPORTED_FORMATS. Raises InputError for any other."""
    extension = Path(path).suffix.lower().removeprefix(".")
    if extension not in SUPPORTED_FORMATS:
        expected = ", ".join(f".{name}" for name in SUPPORTED_FORMATS)
        if not extension:
            raise InputError(f"'{path}' has no extension, expected one of {expected}; a folder has to exist (mkdir -p)")
        raise InputError(f"'{path}' has unknown format '.{extension}', expected one of {expected}: rename the output")
    return extension


def check_bit_depth(format: str, bit_depth: int) -> None:
    """Raises InputError unless files of `format` can hold samples of `bit_depth`."""
    depths = SUPPORTED_FORMATS[format]
    if bit_depth not in depths:
        expected = " or ".join(map(str, depths)) if depths else "none, it compresses with loss"
        raise InputError(f"{format} has no bit depth {bit_depth}: expected {expected}; wav has 16, 24 and 32")


def write_audio(
    path: str | Path, samples: NDArray[np.floating], sample_rate: int, metadata: dict[str, Any], bit_depth: int = 16
) -> None:
    """Writes one mono clip, whole or not at all, in the format of the extension of `path`; replaces an existing file.

    Args:
        samples: (T,) or (1, T), full scale ±1; louder ones are turned down to it, but in 32-bit WAV.
        sample_rate: Hz.
        metadata: settings to store, as JSON; its "prompt" becomes the title. `read_settings` gives them back.
        bit_depth: 16, 24 or 32 (float) for WAV, 16 or 24 for FLAC; OGG and MP3 have none and ignore it.

    Raises:
        InputError: unknown extension, bit depth that the format lacks, bad samples, or a file that cannot be written.
    """
    replace_file(Path(path), encode_audio(samples, sample_rate, audio_format(path), metadata, bit_depth))


def encode_audio(
    samples: NDArray[np.floating], sample_rate: int, format: str, metadata: dict[str, Any], bit_depth: int = 16
) -> bytes:
    """The bytes of the file that `write_audio` writes."""
    import numpy as np

    if SUPPORTED_FORMATS[format]:
        check_bit_depth(format, bit_depth)
    mono = np.asarray(samples, dtype=np.float32)
    if mono.ndim == 2 and mono.shape[0] == 1:
        mono = mono[0]
    if mono.ndim != 1 or not mono.size:
        raise InputError(f"samples have shape {np.shape(samples)}, expected one mono clip: (T,) or (1, T)")
    if not np.isfinite(mono).all():
        raise InputError("samples contain NaN or infinity: nothing was written; try other settings or another seed")
    comment, title = encode_metadata(metadata), _title(metadata)
    software = f"ezaudio {metadata.get('ezaudio', '')}".strip()

    if (format, bit_depth) != ("wav", 32):
        mono = within_full_scale(mono)
    if format == "wav":
        return _encode_wav(mono, sample_rate, bit_depth, {"INAM": title, "ISFT": software, "ICMT": comment})
    return _encode_with_libsndfile(mono, sample_rate, format, bit_depth, title, software, comment)


def within_full_scale(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples whose peak is beyond ±1, divided by it; others as they are."""
    import numpy as np

    peak = np.abs(samples).max()
    return samples / peak if peak > 1 else samples


def quantize(samples: NDArray[np.float32], bits: int) -> NDArray[np.int32]:
    """round_half_even(x · (2^(bits-1) - 1)) of samples within ±1, product in float64. Shape as given."""
    import numpy as np

    return np.rint(samples.astype(np.float64) * (2 ** (bits - 1) - 1)).astype(np.int32)


def encode_metadata(metadata: dict[str, Any]) -> str:
    """Settings as one line of ASCII JSON. Raises InputError when it is larger than a file of ours may carry."""
    text = json.dumps(metadata, allow_nan=False)
    if len(text) > MAX_METADATA_BYTES:
        raise InputError(f"the settings take {len(text)} bytes, at most {MAX_METADATA_BYTES} fit: shorten the prompt")
    return text


def read_settings(path: str | Path) -> dict[str, Any]:
    """The `metadata` that `write_audio` stored in `path`. Raises InputError for any other file."""
    try:
        with open(path, "rb") as file:
            is_wav = file.read(4) == b"RIFF" and file.read(8)[4:] == b"WAVE"
            text = _wav_comment(file) if is_wav else _comment_by_libsndfile(file)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"'{path}' cannot be read ({reason}): name an audio file made by ezaudio") from error
    if len(text) > MAX_METADATA_BYTES:
        raise InputError(f"the comment in '{path}' is larger than {MAX_METADATA_BYTES} bytes: ezaudio did not write it")
    try:
        metadata = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or "ezaudio" not in metadata:
        raise InputError(f"'{path}' carries no ezaudio settings: expected a wav, flac, ogg or mp3 file made by ezaudio")
    return metadata


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _title(metadata: dict[str, Any]) -> str:
    """The prompt on one line, without what no tag can hold or what could steer a terminal."""
    text = _NOT_IN_TITLES.sub(" ", str(metadata.get("prompt", ""))).strip(" ")
    return text[:MAX_TITLE_CHARS].rstrip(" ")


def _chunk(name: str, body: bytes) -> bytes:
    return struct.pack("<4sI", name.encode(), len(body)) + body + b"\0" * (len(body) % 2)


def _encode_wav(mono: NDArray[np.float32], sample_rate: int, bit_depth: int, info: dict[str, str]) -> bytes:
    if bit_depth == 32:
        data = mono.astype("<f4").tobytes()
    else:
        little_endian = quantize(mono, bit_depth).astype("<i4").view("u1").reshape(-1, 4)
        data = little_endian[:, : bit_depth // 8].tobytes()
    width, code = bit_depth // 8, 3 if bit_depth == 32 else 1
    layout = struct.pack("<HHIIHH", code, 1, sample_rate, sample_rate * width, width, bit_depth)
    chunks = _chunk("fmt ", layout + (b"\0\0" if code == 3 else b""))
    if code == 3:
        chunks += _chunk("fact", struct.pack("<I", mono.size))
    chunks += _chunk("data", data)  # INFO comes last: readers that expect samples at byte 44 find them
    chunks += _chunk("LIST", b"INFO" + b"".join(_chunk(key, text.encode() + b"\0") for key, text in info.items()))
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


def _encode_with_libsndfile(
    mono: NDArray[np.float32], sample_rate: int, format: str, bit_depth: int, title: str, software: str, comment: str
) -> bytes:
    import soundfile

    frames: NDArray[np.int32] | NDArray[np.float32]
    if format == "flac":
        subtype = {"subtype": f"PCM_{bit_depth}"}
        frames = quantize(mono, bit_depth) << (32 - bit_depth)  # libsndfile keeps the high bits of an int32
    else:
        subtype, frames = {}, mono
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, 1, **_ENCODERS[format], **subtype) as file:
        if format != "mp3":
            file.title, file.software, file.comment = title, software, comment
        for start in range(0, len(frames), BLOCK_FRAMES):
            file.write(frames[start : start + BLOCK_FRAMES])
    data = buffer.getvalue()
    if format == "ogg":
        return _with_ogg_serial(data, zlib.crc32(comment.encode()))
    return _id3_tag(title, software, comment) + data if format == "mp3" else data


def _id3_tag(title: str, software: str, comment: str) -> bytes:
    """ID3v2.3: title in UTF-16 (big endian: its byte order mark cannot look like an MPEG frame), the rest in ASCII."""
    frames = b""
    for name, body in (
        ("TIT2", b"\1" + b"\xfe\xff" + title.encode("utf-16-be")),
        ("TSSE", b"\0" + software.encode("ascii", "replace")),
        ("COMM", b"\0eng\0" + comment.encode()),
    ):
        frames += struct.pack(">4sIH", name.encode(), len(body), 0) + body
    size = bytes(len(frames) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frames


def _with_ogg_serial(data: bytes, serial: int) -> bytes:
    """Ogg pages with another stream serial number (RFC 3533 section 6: number at byte 14, CRC of the page at 22)."""
    pages, start = [], 0
    while start < len(data):
        segments = data[start + 26]
        size = 27 + segments + sum(data[start + 27 : start + 27 + segments])
        page = bytearray(data[start : start + size])
        page[14:18], page[22:26] = struct.pack("<I", serial), bytes(4)
        page[22:26] = struct.pack("<I", _ogg_crc(page))
        pages.append(bytes(page))
        start += size
    return b"".join(pages)


def _ogg_crc(page: bytearray) -> int:
    crc, table = 0, _ogg_crc_table()
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ table[crc >> 24 ^ byte]
    return crc


@cache
def _ogg_crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << 24
        for _ in range(8):
            crc = crc << 1 & 0xFFFFFFFF ^ (0x04C11DB7 if crc >> 31 else 0)
        table.append(crc)
    return tuple(table)


def _wav_comment(file: BinaryIO) -> str:
    """ICMT of a RIFF file read up to its first chunk; "" without one. Sample data is skipped, not read."""
    while len(header := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", header)
        if name == b"LIST" and file.read(4) == b"INFO":
            end = file.tell() + size - 4
            while file.tell() < end and len(header := file.read(8)) == 8:
                name, size = struct.unpack("<4sI", header)
                if name == b"ICMT":
                    return file.read(min(size, MAX_METADATA_BYTES + 2)).rstrip(b"\0").decode("utf-8", "replace")
                file.seek(size + size % 2, 1)
        else:
            file.seek(size + size % 2 - (4 if name == b"LIST" else 0), 1)
    return ""


def _comment_by_libsndfile(file: BinaryIO) -> str:
    import soundfile

    file.seek(0)
    try:
        with soundfile.SoundFile(file) as audio:
            return str(audio.comment)
    except (soundfile.LibsndfileError, TypeError, UnicodeError):
        return ""
