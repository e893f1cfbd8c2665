"""Models of others through transformers: Hub name or folder, weights as safetensors, and no code of theirs is run."""

from __future__ import annotations

from typing import Any

from ezaudio.runtime.errors import BundleError


def load_pretrained(model_class: Any, processor_class: Any, name: str, **settings: Any) -> tuple[Any, Any]:
    """The model in eval mode on the GPU, if there is one, and its processor.

    Where a repository has a pickle only (laion/larger_clap_general), transformers takes the Hub's converted copy.

    Raises:
        BundleError: no such model, no network, or files that do not fit the class.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar a weight file; downloads have their own
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = model_class.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **settings)
        processor = processor_class.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"model '{name}' cannot be loaded ({reason}): name a Hub model or a local folder") from error
    return model.to(device).eval(), processor
