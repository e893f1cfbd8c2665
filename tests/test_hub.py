"""Downloads from the Hugging Face Hub, and what is said when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from console import one_line
from huggingface_hub import errors as hub_errors

from ezaudio import hub
from ezaudio.runtime.errors import BundleError


def test_offline_hub_is_one_line(tmp_path: Path) -> None:
    code = (
        "from ezaudio.hub import download\n"
        "from ezaudio.runtime.errors import BundleError\n"
        "try: download('OpenSound/EzAudio', 'ckpts/s3/ezaudio_s3_l.pt')\n"
        "except BundleError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "cannot get ckpts/s3/ezaudio_s3_l.pt of OpenSound/EzAudio from the Hugging Face Hub: not in the cache, and"
        " HF_HUB_OFFLINE forbids downloads: unset it; or give local files: --checkpoint FOLDER (EzAudio),"
        " --text-encoder FOLDER (FLAN-T5)\n"
    )


RESPONSE = SimpleNamespace(status_code=404, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (hub_errors.LocalEntryNotFoundError("no"), "check the network and try again"),
        (hub_errors.RemoteEntryNotFoundError("no", response=RESPONSE), "no such file in the repository"),
        (hub_errors.GatedRepoError("no", response=RESPONSE), "access is restricted"),
        (hub_errors.RepositoryNotFoundError("no", response=RESPONSE), "no such repository, or a private one"),
        (OSError(28, "No space left\non device"), "No space left on device"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hub_failures_are_one_line(error: Exception, reason: str, monkeypatch) -> None:
    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(BundleError) as caught:
        hub.download("owner/name", "a/b.pt")
    message = one_line(caught)
    assert message.startswith("cannot get a/b.pt of owner/name from the Hugging Face Hub: ")
    assert reason in message


def test_downloads_return_the_path(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo_id, filename: f"/cache/{repo_id}/{filename}")
    assert hub.download("owner/name", "a/b.pt") == Path("/cache/owner/name/a/b.pt")
