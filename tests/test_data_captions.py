"""Captions from published sets and from a language model behind a real local endpoint that misbehaves."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from chat_endpoint import Answer, Endpoint, completion
from console import fails, killed_once, runner

from ezaudio.data import chat, writing
from ezaudio.data.caption_sets import AudioFolder, Event, merge_captions, read_strong_labels
from ezaudio.data.chat import ChatClient, ChatError, EndpointError
from ezaudio.data.manifest import read_manifest
from ezaudio.data.writing import clean, filled, read_prompt, write_captions
from ezaudio.runtime.errors import InputError

run = runner("ezaudio-data")


def sound(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(2400, np.float32), 24000)
    return path


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """Files named in the ways that downloads of AudioSet and VGGSound have."""
    folder = tmp_path / "audio"
    for name in (
        "oPRC3zComfA_000117",
        "-abcdefghij",
        "YaaaaaaaaaaA",
        "sub/bbbbbbbbbbB_30_40",
        "ddddddddddD_000050",
        "notes on it",
    ):
        sound(folder / f"{name}.wav")
    (folder / "readme.txt").write_text("")
    return folder


def test_auto_acd_is_joined_with_the_files(tmp_path: Path, audio: Path) -> None:
    captions = tmp_path / "train.csv"
    captions.write_text(
        "youtube_id,caption\n"
        'oPRC3zComfA_000117,"A dog, barking."\n'
        "oPRC3zComfA_000117,Another caption\n"
        "oPRC3zComfA_000117,Another caption\n"
        "oPRC3zComfA_000999,Another second of that video\n"
        "-abcdefghij,Rain\n"
        "aaaaaaaaaaA,Wind\n"
        "bbbbbbbbbbB,Waves\n"
        "cccccccccc0,Not here\n"
        "ddddddddddD,Another stretch of a video of VGGSound\n"
    )
    rows, missing = merge_captions(captions, AudioFolder(audio), "train")
    assert missing == 3
    assert [(Path(row.audio_path).name, row.caption) for row in rows] == [
        ("oPRC3zComfA_000117.wav", "A dog, barking."),
        ("oPRC3zComfA_000117.wav", "Another caption"),
        ("-abcdefghij.wav", "Rain"),
        ("YaaaaaaaaaaA.wav", "Wind"),
        ("bbbbbbbbbbB_30_40.wav", "Waves"),
    ]
    result = run("merge", captions, "--audio", audio, "-o", tmp_path / "acd.jsonl", "--split", "val")
    assert "5 captions; 3 have no sound file" in result.stdout
    manifest = read_manifest(tmp_path / "acd.jsonl", "val")
    assert manifest.rows[4].audio_path == "audio/sub/bbbbbbbbbbB_30_40.wav"
    assert manifest.rows[0].others == {"id": "oPRC3zComfA_000117"}
    assert all(manifest.path_of(row).is_file() for row in manifest.rows)


def test_bad_caption_sets_are_one_line(tmp_path: Path, audio: Path) -> None:
    out = tmp_path / "m.jsonl"
    captions = tmp_path / "c.csv"
    for content, message in {
        "id,caption\nx,y\n": "has no column youtube_id",
        "youtube_id,caption\nzzzzzzzzzzz,y\n": "none of 1 clips",
        "youtube_id,caption\nx\n": "line 2: expected youtube_id, caption",
        "youtube_id,caption\nx,\n": "line 2: expected an id and a caption",
        "youtube_id,caption\n": "none of 0 clips",
    }.items():
        captions.write_text(content)
        fails(run("merge", captions, "--audio", audio, "-o", out), message)
    fails(run("merge", tmp_path / "no.csv", "--audio", audio, "-o", out), "cannot be read")
    fails(run("merge", captions, "--audio", tmp_path / "none", "-o", out), "no folder")
    (tmp_path / "empty").mkdir()
    fails(run("merge", captions, "--audio", tmp_path / "empty", "-o", out), "has no sound file")
    assert not out.exists()


def labels(folder: Path, segments: int) -> tuple[Path, Path]:
    """AudioSet's two files for this many segments."""
    names, strong = folder / "mid_to_display_name.tsv", folder / "strong.tsv"
    names.write_text('/m/0bt9lr\tDog\n/m/06mb1\tRain\n/m/x\t"Vehicle horn, car horn\n')
    lines = ["segment_id\tstart_time_seconds\tend_time_seconds\tlabel"]
    for index in range(segments):
        lines += [f"s{index:010d}_30000\t2.5\t3.25\t/m/0bt9lr", f"s{index:010d}_30000\t0.000\t10.000\t/m/06mb1"]
    strong.write_text("\n".join(lines) + "\n")
    return strong, names


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
def test_a_file_name_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / os.fsdecode(b"aaaaaaaaaaa_\xff.wav")).touch()
    (tmp_path / "acd.csv").write_text("youtube_id,caption\naaaaaaaaaaa,a dog\n")
    result = run("merge", tmp_path / "acd.csv", "--audio", tmp_path / "audio", "-o", tmp_path / "m.jsonl")
    fails(result, r"audio_path 'audio/aaaaaaaaaaa_\udcff.wav' is not UTF-8 text: rename or rewrite it")
    assert not (tmp_path / "m.jsonl").exists()


def test_strong_labels_become_a_prompt(tmp_path: Path) -> None:
    strong, names = labels(tmp_path, 2)
    segments = read_strong_labels(strong, names)
    assert list(segments) == ["s0000000000_30000", "s0000000001_30000"]
    assert segments["s0000000000_30000"] == [Event(0, 10, "Rain"), Event(2.5, 3.25, "Dog")]
    prompt = filled(read_prompt(None), segments["s0000000000_30000"])
    assert "0.00-10.00 Rain\n2.50-3.25 Dog\n" in prompt
    assert "{events}" not in prompt
    (tmp_path / "own.txt").write_text("Say it: {events}")
    assert filled(read_prompt(tmp_path / "own.txt"), [Event(0, 1, "Dog")]) == "Say it: 0.00-1.00 Dog"
    (tmp_path / "own.txt").write_text("Say it")
    with pytest.raises(InputError, match=r"expected \{events\}"):
        read_prompt(tmp_path / "own.txt")
    for line, message in {
        "a\tx\t1\t/m/06mb1": "are no seconds",
        "a\t0\t1\t/m/none": "has no name",
        "a\t2\t1\t/m/06mb1": "expected 0 <= start <= end",
        "a\tnan\t1\t/m/06mb1": "expected 0 <= start <= end",
        "a\t1": "line 2: expected segment_id",
    }.items():
        strong.write_text(f"segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n{line}\n")
        with pytest.raises(InputError, match=message):
            read_strong_labels(strong, names)


@pytest.fixture
def endpoint() -> Iterator[Callable[[Callable[[str, int], Answer]], Endpoint]]:
    made = []

    def make(answer: Callable[[str, int], Answer]) -> Endpoint:
        made.append(Endpoint(answer))
        return made[-1]

    yield make
    for each in made:
        each.server.shutdown()
        each.server.server_close()


Make = Callable[[Callable[[str, int], Answer]], Endpoint]


def client(url: str, **settings: Any) -> ChatClient:
    defaults: dict[str, Any] = {"requests_per_minute": 1e6, "timeout_s": 5.0, "first_wait_s": 0.001}
    return ChatClient(url, "some-llm", "EZAUDIO_TEST_KEY", **{**defaults, **settings})


TROUBLE: dict[str, Answer] = {
    "429": (429, {"Retry-After": "0"}, b""),
    "429 with a date": (429, {"Retry-After": formatdate(0, usegmt=True)}, b""),
    "500": (500, {}, b"oh no"),
    "524": (524, {}, b"a proxy's own"),
    "503": (503, {"Retry-After": "soon"}, b""),
    "no json": (200, {}, b"<html>"),
    "cut json": (200, {}, b'{"choices": [{"mess'),
    "other json": (200, {}, b'["choices"]'),
    "empty": completion("  "),
    "half a character": completion("A dog \ud83d"),
    "no choice": (200, {}, b'{"choices": []}'),
    "too large": (200, {}, b'"' + b" " * 1_100_000 + b'"'),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_is_tried_again(endpoint: Make, trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EZAUDIO_TEST_KEY", "secret")
    server = endpoint(lambda prompt, count: TROUBLE[trouble] if count < 3 else completion("A dog barks.", (7, 3)))
    reply = client(server.url).ask("say")
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("A dog barks.", 7, 3)
    assert len(server.requests) == 3
    assert server.requests[0]["model"] == "some-llm"
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_a_slow_or_absent_endpoint_is_tried_again_and_given_up(endpoint: Make) -> None:
    def slow(prompt: str, count: int) -> Answer:
        time.sleep(0.4 if count == 1 else 0)
        return completion("late")

    server = endpoint(slow)
    assert client(server.url, timeout_s=0.15).ask("say").text == "late"
    assert len(server.requests) == 2
    broken = endpoint(lambda prompt, count: TROUBLE["500"])
    with pytest.raises(ChatError, match="no usable answer in 3 tries, the last: HTTP 500"):
        client(broken.url, max_tries=3).ask("say")
    with pytest.raises(ChatError, match="no usable answer in 2 tries"):
        client("http://127.0.0.1:1/v1", max_tries=2).ask("say")
    with pytest.raises(InputError, match="is no address"):
        client("file:///etc/passwd")


def test_retry_after_is_waited_for(endpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server = endpoint(lambda p, count: (429, {"Retry-After": "0.3"}, b"") if count == 1 else completion("x"))
    begin = time.monotonic()
    client(server.url).ask("say")
    assert 0.3 <= time.monotonic() - begin < 3
    assert chat._retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert 50 < (chat._retry_after_s(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    assert chat._retry_after_s("whenever") is None


def test_requests_keep_to_the_rate(endpoint: Make) -> None:
    server = endpoint(lambda prompt, count: completion("x"))
    limited = client(server.url, requests_per_minute=1200.0)
    begin = time.monotonic()
    threads = [threading.Thread(target=limited.ask, args=(str(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begin >= 0.25  # five gaps of 50 ms


@pytest.mark.parametrize(("status", "headers"), [(401, {}), (404, {}), (302, {"Location": "http://127.0.0.1:1/"})])
def test_a_refusal_ends_the_run_and_hides_the_key(
    endpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str]
) -> None:
    monkeypatch.setenv("EZAUDIO_TEST_KEY", "secret")
    server = endpoint(lambda prompt, count: (status, headers, b""))
    with pytest.raises(EndpointError, match=f"HTTP {status}.*EZAUDIO_TEST_KEY is set") as caught:
        write_captions({"a": [Event(0, 1, "Dog")]}, client(server.url), tmp_path / "j.jsonl")
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 1
    assert "secret" not in (tmp_path / "j.jsonl").read_text()


@pytest.mark.parametrize("key", ["secret\r", "secret\n", "sécret"])
def test_what_no_header_can_hold_is_no_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EZAUDIO_TEST_KEY", key)
    with pytest.raises(InputError, match="EZAUDIO_TEST_KEY holds more than a key: a line end, or no ASCII") as error:
        client("http://127.0.0.1:1/v1")
    assert key not in str(error.value)


def test_answers_are_cleaned() -> None:
    assert clean('  "A dog\n barks."  ') == "A dog barks."
    for bad in ('""', "x" * 501):
        with pytest.raises(ChatError, match="is no caption"):
            clean(bad)


def test_a_failed_clip_is_tried_by_the_next_run_only(endpoint: Make, tmp_path: Path) -> None:
    segments = {f"s{n}": [Event(0, 1, f"Sound {n}")] for n in range(8)}
    working = False

    def answer(prompt: str, count: int) -> Answer:
        return completion(f"heard {prompt[-1]}") if working or "Sound 3" not in prompt else (400, {}, b"")

    server = endpoint(answer)
    captions, report = write_captions(segments, client(server.url), tmp_path / "j.jsonl", "{events}")
    assert captions == {f"s{n}": f"heard {n}" for n in range(8) if n != 3}
    assert "HTTP 400" in report.failures["s3"]
    assert (report.written, report.prompt_tokens, report.completion_tokens) == (7, 700, 70)
    working = True
    captions, report = write_captions(segments, client(server.url), tmp_path / "j.jsonl", "{events}")
    assert list(captions) == list(segments)
    assert (report.written, report.prompt_tokens) == (8, 800)
    assert set(server.asked.values()) == {1, 2}
    with pytest.raises(InputError, match=r"other settings \(prompt\)"):
        write_captions(segments, client(server.url), tmp_path / "j.jsonl", "other {events}")


def test_too_many_failures_end_the_run(endpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MAX_FAILURES", 5)
    server = endpoint(lambda prompt, count: (400, {}, b""))
    segments = {f"s{n}": [Event(0, 1, f"Sound {n}")] for n in range(50)}
    with pytest.raises(InputError, match="5 clips in a row got no caption"):
        write_captions(segments, client(server.url), tmp_path / "j.jsonl")
    assert len(server.requests) < 12


def write_command(folder: Path, url: str) -> list[str]:
    strong, names = folder / "strong.tsv", folder / "mid_to_display_name.tsv"
    command = ["write", str(strong), "--names", str(names), "--audio", str(folder / "audio"), "--base-url", url]
    command += ["--model", "some-llm", "--requests-per-minute", "6000", "--parallel", "4", "-q"]
    return [*command, "-o", str(folder / "written.csv")]


def test_a_killed_run_asks_for_nothing_twice(endpoint: Make, tmp_path: Path) -> None:
    labels(tmp_path, 60)
    for index in range(60):
        sound(tmp_path / "audio" / f"Ys{index:010d}.wav")

    def answer(prompt: str, count: int) -> Answer:
        time.sleep(0.02)
        return completion(f"Caption number {len(server.requests)}")

    server = endpoint(answer)
    command = write_command(tmp_path, server.url)
    journal = tmp_path / "written.csv.finished.jsonl"
    killed_once(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 20, "ezaudio-data", *command)
    before = len(server.requests)
    assert 20 <= before < 60
    kept = journal.read_bytes()
    result = run(*command, "--prices", 1, 2)
    assert result.exit_code == 0, result.stderr
    assert journal.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])
    # Answered but not yet written when the kill came: at most one request a thread is asked for again.
    assert 60 <= len(server.requests) <= 60 + 4
    assert "60 captions, 6,000 + 600 tokens, 0.01 at the given prices" in result.stdout
    manifest = read_manifest(tmp_path / "written.csv")
    assert len(manifest) == 60
    assert manifest.rows[5].audio_path == "audio/Ys0000000005.wav"
    again = run(*command)
    assert again.exit_code == 0
    assert len(server.requests) <= 64
    shown = run(*command, "--show-prompt")
    assert "2.50-3.25 Dog" in shown.stdout


def test_write_reports_bad_input_in_one_line(tmp_path: Path) -> None:
    labels(tmp_path, 1)
    sound(tmp_path / "audio" / "other.wav")
    fails(run(*write_command(tmp_path, "http://127.0.0.1:1/v1")), "none of 1 segments", "has a sound file")
    sound(tmp_path / "audio" / "s0000000000.wav")
    fails(run(*write_command(tmp_path, "localhost")), "'localhost' is no address")
    assert not (tmp_path / "written.csv").exists()
