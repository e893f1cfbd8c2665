"""What the tests of the commands share."""

from __future__ import annotations

import signal


def listen_to_interrupts() -> None:
    """For Popen's preexec_fn: a shell starts background jobs with SIGINT ignored, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
