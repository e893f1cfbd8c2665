"""`ezaudio-run` interrupted, or without room for what it makes: whole files alone are left."""

import contextlib
import errno
import logging
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import click
import pytest
import soundfile
from click.testing import CliRunner
from console import fails, largest_file, listen_to_interrupts

from ezaudio.runtime.command import Command, FloatRange, errors_only
from ezaudio.runtime.errors import InputError

RATE = 24000
SCRIPT = Path(sys.executable).with_name("ezaudio-run")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, terminals and limits")


def test_unwritable_folder(make):
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        os.mkdir("locked", 0o500)
        locked = "locked"
    elif sys.platform == "linux":
        locked = "/sys"  # refuses even root
    else:
        pytest.skip("no folder that refuses root")
    for arguments in (["-o", locked], ["-o", f"{locked}/a.wav"], ["--spectrogram", locked]):
        fails(make("rain", *arguments), f"'{locked}' cannot be written (Permission denied)")
    assert sorted(os.listdir()) in ([], ["locked"])


@posix
def test_a_failed_write_is_one_line_and_no_file(make):
    with largest_file(3000):
        result = make("rain", "--duration", "0.1")
    fails(result, "'rain.wav' cannot be written (File too large)")
    assert sorted(os.listdir()) == []
    assert make("rain", "--duration", "0.1", "-o", "a.wav").exit_code == 0
    before = Path("a.wav").read_bytes()
    with largest_file(3000):
        result = make("a dog", "--duration", "0.1", "-o", "a.wav")
    fails(result, "'a.wav' cannot be written (File too large)")
    assert sorted(os.listdir()) == ["a.wav"]
    assert Path("a.wav").read_bytes() == before


@posix
def test_no_room_for_what_it_prints_is_one_line(tmp_path):
    result = subprocess.run(
        ["sh", "-c", f"ulimit -f 0; '{SCRIPT}' --help > help.txt"], cwd=tmp_path, stderr=PIPE, text=True
    )
    assert result.returncode == 2
    assert result.stderr == "Error: no room to write (File too large): free some, or write elsewhere\n"


def of_interrupt(message: str) -> ImportError:
    """What a module in C makes of Ctrl-C while it loads."""
    error = ImportError(message)
    error.__cause__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MemoryError(), 2, "Error: there is not enough memory for this: "),
        (OSError(errno.ENOSPC, "No space left", "a.bin"), 2, "Error: no room to write 'a.bin' (No space left): "),
        (of_interrupt("initialization failed"), 130, "Interrupted: no unfinished file was left."),
        (OSError(errno.EBADF, "a defect"), 1, ""),
        (ImportError("a defect"), 1, ""),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, code, line):
    @click.command(cls=Command)
    def command() -> None:
        raise error

    result = CliRunner().invoke(command)
    assert result.exit_code == code
    assert (result.exception is error) == (code == 1)
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == (code != 1)


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_holds_back_what_is_logged(quiet):
    logger = logging.getLogger("ezaudio.runtime.backends")

    @click.command(cls=Command)
    @click.option("--quiet", is_flag=True, callback=errors_only)
    def command(quiet: bool) -> None:
        click.echo(logger.isEnabledFor(logging.WARNING))

    assert CliRunner().invoke(command, ["--quiet"] * quiet).stdout == f"{not quiet}\n"
    assert logger.isEnabledFor(logging.WARNING)


def test_a_line_can_be_read():
    @click.command(cls=Command)
    def command() -> None:
        raise InputError("no weights:" + "".join(f"\n  missing: {name}" for name in range(9000)))

    result = CliRunner().invoke(command)
    fails(result, "Error: no weights: missing: 0 missing: 1 ", " … ", " missing: 8999\n")
    assert len(result.stderr) < 1100


def test_a_number_that_is_none_is_in_no_range():
    @click.command(cls=Command)
    @click.option("--share", type=FloatRange(0, 1))
    def command(share: float) -> None:
        click.echo(share)

    assert CliRunner().invoke(command, ["--share", "0.5"]).stdout == "0.5\n"
    fails(CliRunner().invoke(command, ["--share", "nan"]), "nan is no number")
    fails(CliRunner().invoke(command, ["--share", "inf"]), "is not in the range 0<=x<=1")


@posix
@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1 2"])
def test_streams_that_are_closed_do_not_matter(tmp_path, closed):
    redirections = " ".join(f"{number}>&-" for number in closed.split())
    command = f"'{SCRIPT}' rain --duration 0.1 --steps 1 -o a.wav {redirections}"
    result = subprocess.run(["sh", "-c", command], cwd=tmp_path)
    assert result.returncode == 0
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == RATE // 10


@posix
def test_prompts_from_a_closed_stdin_are_none():
    result = subprocess.run(["sh", "-c", f"'{SCRIPT}' --prompts-file - <&-"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: --prompts-file: '-' has no prompts, only blank lines and comments: write one a line\n"
    )


@posix
def test_ctrl_c_while_it_samples_leaves_no_file(debug_bundle, tmp_path):
    import fcntl
    import termios

    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a width, or no bar is drawn
    command = [SCRIPT, "rain", "--bundle", debug_bundle, "--spectrogram", "rain.png"]
    command += ["--duration", "30", "--steps", "1000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=PIPE, stderr=end, preexec_fn=listen_to_interrupts) as running:
        os.close(end)
        shown = b""
        while not re.search(rb"[1-9]\d*/1000", shown):  # the progress bar
            shown += os.read(terminal, 4096)
        running.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(terminal, 4096):
                shown += data
        assert running.stdout.read() == b""
    os.close(terminal)
    assert running.returncode == 130
    assert b"Interrupted: no unfinished file was left." in shown
    assert b"Traceback" not in shown
    assert os.listdir(tmp_path) == []


@posix
def test_ctrl_c_between_sounds_keeps_whole_files_only(debug_bundle, tmp_path):
    command = [SCRIPT, "rain", "--bundle", debug_bundle, "--duration", "1", "--variations", "10000", "--format", "flac"]
    options = {"cwd": tmp_path, "stdout": PIPE, "stderr": PIPE, "text": True, "preexec_fn": listen_to_interrupts}
    with subprocess.Popen(command, **options) as running:
        for _ in range(3):
            assert "rain" in running.stdout.readline()
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert stderr == "\nInterrupted: no unfinished file was left.\n"  # ^C stands before the line break
    made = sorted(os.listdir(tmp_path))
    assert len(made) >= 3
    for name in made:
        assert len(soundfile.read(tmp_path / name)[0]) == RATE


@posix
def test_ctrl_c_while_it_waits_for_prompts(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [SCRIPT, "--prompts-file", pipe]
    with (
        subprocess.Popen(command, cwd=tmp_path, stdout=PIPE, stderr=PIPE, preexec_fn=listen_to_interrupts) as waiting,
        open(pipe, "wb"),  # returns once the script reads
    ):
        waiting.send_signal(signal.SIGINT)
        _, stderr = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert stderr == b"\nInterrupted: no unfinished file was left.\n"
    assert os.listdir(tmp_path) == ["pipe"]
