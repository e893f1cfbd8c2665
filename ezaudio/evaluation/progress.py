"""How long work goes on: what reports it, and bars for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tqdm import tqdm

Progress = Callable[[str, int, int], object]  # what is being done, how much of it is, out of how much


def silent(what: str, done: int, total: int) -> None:
    """Reports nothing."""


@contextmanager
def bars() -> Iterator[Progress]:
    """One bar after the other on stderr, none where there is no terminal."""
    with ExitStack() as stack:
        open_bars: dict[str, tqdm[None]] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in open_bars:
                stack.close()
                open_bars.clear()
                bar = tqdm(total=total, desc=what, leave=False, disable=None, smoothing=0.05)
                open_bars[what] = stack.enter_context(bar)
            bar = open_bars[what]
            bar.update(done - bar.n)
            if done >= total:
                stack.close()
                open_bars.clear()

        yield report
