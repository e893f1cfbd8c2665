"""Files of the Hugging Face Hub, through huggingface_hub: cached, resumed, with a progress bar."""

from __future__ import annotations

from pathlib import Path

from ezaudio.runtime.errors import BundleError, MissingExtraError


def download(repo_id: str, filename: str) -> Path:
    """The local path of one file of a Hub repository, downloaded unless the cache has it.

    Raises:
        BundleError: no network, offline mode, no such file or repository, no room; one line that says what to do.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{error.name} is not installed: pip install huggingface-hub") from error
    try:
        return Path(hf_hub_download(repo_id, filename))
    except Exception as error:  # the HTTP library below, and so its exceptions, differs between versions
        raise BundleError(
            f"cannot get {filename} of {repo_id} from the Hugging Face Hub: {_reason(error)};"
            " or give local files: --checkpoint FOLDER (EzAudio), --text-encoder FOLDER (FLAN-T5)"
        ) from error


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    match error:
        case errors.LocalEntryNotFoundError():
            if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
                return "not in the cache, and HF_HUB_OFFLINE forbids downloads: unset it"
            return "not in the cache, and the Hub does not answer: check the network and try again"
        case errors.EntryNotFoundError():
            return "no such file in the repository"
        case errors.GatedRepoError():
            return "access is restricted: ask for it on the repository's page and log in with 'hf auth login'"
        case errors.RepositoryNotFoundError():
            return "no such repository, or a private one"
    return " ".join(str(error).split())[:300] or type(error).__name__
