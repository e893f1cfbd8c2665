"""An object in a process of its own: libraries in one process change each other's speed.

The official decoder takes 2.1 s where another library left the allocator with memory to give, and 4 to 8 s where it
runs alone, as its users run it: then every tensor is new memory that the system clears page by page.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import click
import numpy as np

from ezaudio.config import VAEConfig
from ezaudio.runtime.decoding import decode_parts
from ezaudio.runtime.denoising import Graphs


class _Failure(NamedTuple):
    reason: str


class Elsewhere:
    """`make(*args)` in another process, and its methods from here. Where it waits it uses no core.

    Raises:
        click.ClickException: with what went wrong there.
    """

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, args), daemon=True)
        self._process.start()
        other.close()
        self._answer()

    def call(self, method: str, *args: Any) -> Any:
        self._pipe.send((method, args))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join(10)
            raise click.ClickException(f"a process ended with status {self._process.exitcode}") from None
        if isinstance(answer, _Failure):
            raise click.ClickException(answer.reason)
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(30)


def _end_with_parent() -> None:
    """A parent that is killed in the middle of a call leaves nobody to read the answer."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _serve(pipe: Connection, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        made = make(*args)
        pipe.send(None)
        while True:
            method, given = pipe.recv()
            pipe.send(getattr(made, method)(*given))
    except EOFError:
        return
    except click.ClickException as error:
        pipe.send(_Failure(error.message))
    except Exception as error:  # noqa: BLE001  told by the other side, and this one ends
        pipe.send(_Failure(f"{type(error).__name__}: {error}"))


class BundleDecoder:
    """The decoder of a bundle on a backend, all cores."""

    def __init__(self, folder: Path, backend: str) -> None:
        from ezaudio.runtime.backends import open_sessions
        from ezaudio.runtime.manifest import read_manifest

        self._manifest = read_manifest(folder, verify=False)
        self._sessions = open_sessions(backend, folder, self._manifest, None)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """(1, C, L) → samples (1, T)."""
        return decoded(self._sessions, self._manifest.config.vae, latents)


def decoded(sessions: Graphs, vae: VAEConfig, latents: np.ndarray) -> np.ndarray:
    """(1, C, L) → samples (1, T), as a clip's are made: in parts that bound its memory."""

    def whole(part: np.ndarray) -> np.ndarray:
        return sessions.run("decoder", latents=part)["audio"]

    return decode_parts(whole, latents, latents.shape[2] * vae.hop, vae)[None]
