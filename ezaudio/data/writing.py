"""Captions that a language model writes from the temporal labels of a clip."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ezaudio.data.caption_sets import Event
from ezaudio.data.chat import ChatClient, ChatError, Reply
from ezaudio.data.journal import Journal
from ezaudio.runtime.errors import InputError

MAX_CAPTION_CHARS = 500
MAX_PROMPT_BYTES = 20_000
MAX_FAILURES = 20
PATIENCE_S = 5.0

PROMPT = """\
Below are the sounds of a short recording, each with its start and end in seconds, in the order in which they begin.

{events}

Write one English sentence of 5 to 30 words that describes what is heard, as a person who listens would put it. Say what
follows what and what happens at the same time, where the times show it. A sound that lasts for most of the
recording is in the background. Name only sounds of the list; do not write any times, numbers of seconds or labels, and
do not guess at a place, a picture or a reason. Answer with the sentence alone, without quotation marks.
"""


@dataclass(slots=True)
class WritingReport:
    """What a run did. Tokens are those of all captions, of earlier runs as well."""

    written: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def read_prompt(path: Path | None) -> str:
    """A template that holds {events}; None: the one above."""
    if path is None:
        return PROMPT
    try:
        data = path.read_bytes()[: MAX_PROMPT_BYTES + 1]
        template = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' cannot be read: expected a prompt in UTF-8 with {{events}} in it") from error
    if "{events}" not in template or len(data) > MAX_PROMPT_BYTES:
        raise InputError(f"'{path}': expected {{events}} where the labels go, and at most {MAX_PROMPT_BYTES} bytes")
    return template


def filled(template: str, events: Sequence[Event]) -> str:
    """The prompt for a clip: a line "0.00-2.35 Dog" for each event."""
    lines = [f"{event.start_s:.2f}-{event.end_s:.2f} {event.label}" for event in events]
    return template.replace("{events}", "\n".join(lines))


def clean(text: str) -> str:
    """The caption in an answer: one line, without quotation marks. Raises ChatError where it is none."""
    caption = " ".join(text.split()).strip("\"'“”‘’ ")
    if not caption or len(caption) > MAX_CAPTION_CHARS or "{events}" in caption:
        raise ChatError(f"an answer of {len(caption)} characters is no caption, expected 1 to {MAX_CAPTION_CHARS}")
    return caption


def write_captions(
    segments: Mapping[str, Sequence[Event]],
    client: ChatClient,
    journal_path: Path,
    template: str = PROMPT,
    parallel: int = 4,
    progress: Callable[[WritingReport], None] = lambda report: None,
) -> tuple[dict[str, str], WritingReport]:
    """One caption for each segment; what the journal has is not asked for again, what failed is when it runs again.

    Args:
        progress: told the state after every answer, the first time with what was there before.

    Raises:
        EndpointError: the endpoint refuses every request.
        InputError: MAX_FAILURES clips in a row got no caption, or the journal belongs to another run.
    """
    settings = {"model": client.model, "prompt": hashlib.sha256(template.encode()).hexdigest()}
    report = WritingReport()

    def ask(segment: str) -> tuple[str, Reply]:
        reply = client.ask(filled(template, segments[segment]))
        return clean(reply.text), reply

    with Journal(journal_path, settings) as journal:
        for record in journal.records.values():
            _count(report, record["prompt_tokens"], record["completion_tokens"])
        progress(report)
        left = iter([segment for segment in segments if segment not in journal])
        pool = ThreadPoolExecutor(parallel)
        running: dict[Future[tuple[str, Reply]], str] = {}
        failed_in_row = 0
        try:
            while True:
                # No more than the threads can take: a run that is stopped has few requests under way.
                running |= {pool.submit(ask, segment): segment for segment in islice(left, parallel - len(running))}
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                _keep(journal, {future: running[future] for future in done}, report)
                for future in done:
                    segment, error = running.pop(future), future.exception()
                    failed_in_row = 0 if error is None else failed_in_row + 1
                    if isinstance(error, ChatError):
                        report.failures[segment] = str(error)
                        if failed_in_row >= MAX_FAILURES:
                            raise InputError(
                                f"{failed_in_row} clips in a row got no caption, the last: {error}"
                            ) from error
                    elif error is not None:
                        raise error
                progress(report)
        finally:
            client.stop()
            if running:  # what is being answered is paid for
                done, _ = wait(running, timeout=PATIENCE_S)
                _keep(journal, {future: running[future] for future in done}, report)
            pool.shutdown(wait=False, cancel_futures=True)
        return {s: journal.records[s]["caption"] for s in segments if s in journal}, report


def _keep(journal: Journal, done: Mapping[Future[tuple[str, Reply]], str], report: WritingReport) -> None:
    """Write the answers of finished requests to disk."""
    records = []
    for future, segment in done.items():
        if not future.cancelled() and future.exception() is None:
            caption, reply = future.result()
            tokens = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
            records.append({"key": segment, "caption": caption, **tokens})
            _count(report, **tokens)
    if records:
        journal.append(records)


def _count(report: WritingReport, prompt_tokens: int, completion_tokens: int) -> None:
    report.written += 1
    report.prompt_tokens += prompt_tokens
    report.completion_tokens += completion_tokens
