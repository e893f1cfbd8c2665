import os
import shutil
import sys
from pathlib import Path

import pytest
from filelock import FileLock

# The helper modules of the tests are imported by name whichever folder pytest starts from.
sys.path.insert(0, str(Path(__file__).parent))


def _shared_folder(factory: pytest.TempPathFactory) -> Path:
    """One folder a run for all of its processes, and never that of an earlier run."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def debug_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of the debug model with a ControlNet, random weights, fp32: exported once for all processes."""
    from ezaudio.checkpoints import open_source
    from ezaudio.export.bundle import export_bundle

    shared = _shared_folder(tmp_path_factory)
    folder = shared / "debug-fp32"
    with FileLock(shared / "debug-fp32.lock"):
        if not folder.exists():
            export_bundle(open_source("debug", controlnet="energy", random_weights=True), folder)
    return folder


@pytest.fixture
def own_debug_bundle(debug_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the debug bundle that a test may damage."""
    return Path(shutil.copytree(debug_bundle, tmp_path / "debug-copy"))


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the official code's tiny models, exported once for all test processes."""
    import golden

    from ezaudio.export.bundle import export_bundle

    shared = _shared_folder(tmp_path_factory)
    folder = shared / "golden-fp32"
    with FileLock(shared / "golden-fp32.lock"):
        if not folder.exists():
            export_bundle(golden.source(shared / "golden-weights"), folder)
    return folder
