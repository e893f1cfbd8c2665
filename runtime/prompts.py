"""Prompts as a command is given them: checked, and read from a file."""

from __future__ import annotations

import sys

from ezaudio.runtime.errors import InputError
from ezaudio.runtime.settings import MAX_PROMPT_CHARS

MAX_PROMPTS_FILE_BYTES = 1_000_000


def check_prompts(prompts: tuple[str, ...]) -> None:
    """Raises InputError where there is none, or one that cannot be encoded."""
    if not prompts:
        raise InputError('no prompt: name one, as in ezaudio-run "a dog barks"; ezaudio-run --help has more examples')
    for number, prompt in enumerate(prompts, start=1):
        which = f"prompt {number} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
        if not prompt.strip():
            raise InputError(f'{which} is blank: describe a sound, as in ezaudio-run "a dog barks"')
        if len(prompt) > MAX_PROMPT_CHARS:
            raise InputError(f"{which} has {len(prompt):,} characters, at most {MAX_PROMPT_CHARS:,} fit: shorten it")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise InputError(f"{which} is not valid UTF-8: check the encoding of your terminal")


def read_prompts_file(name: str) -> tuple[str, ...]:
    """One prompt a line, blank lines and those that begin with # left out; - is stdin. Raises InputError."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_PROMPTS_FILE_BYTES + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(MAX_PROMPTS_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"--prompts-file: '{name}' cannot be read ({error.strerror}): name a text file") from error
    if len(data) > MAX_PROMPTS_FILE_BYTES:
        raise InputError(f"--prompts-file: '{name}' is larger than {MAX_PROMPTS_FILE_BYTES:,} bytes: split it")
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"--prompts-file: line {line} of '{name}' is not UTF-8: save the file as UTF-8") from error
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise InputError(f"--prompts-file: '{name}' has no prompts, only blank lines and comments: write one a line")
    return prompts
