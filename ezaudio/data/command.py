"""What the commands of `ezaudio-data` share. Nothing heavy is imported."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ezaudio.runtime.errors import MissingExtraError

if TYPE_CHECKING:
    from tqdm import tqdm

NEEDED = ("torch", "transformers", "scipy", "safetensors", "tokenizers")


def check_train_extra() -> None:
    """Raises MissingExtraError unless what training needs is installed. Imports nothing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'this command needs {", ".join(missing)}: pip install "ezaudio[train]"')


def progress_bar(unit: str, total: int, quiet: bool) -> tqdm:
    """A bar on stderr that hides where there is no terminal."""
    from tqdm import tqdm

    return tqdm(total=total, unit=f" {unit}", leave=False, disable=True if quiet else None, smoothing=0.05)
