"""Captions from an audio-language model of the Qwen2-Audio class, in batches, resumed where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ezaudio.data.dataset import SkipReport
from ezaudio.data.journal import Journal
from ezaudio.data.manifest import Manifest, Row
from ezaudio.data.pretrained import load_pretrained
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.sound_file import Audio, read_start

PROMPT = "Describe the sounds of this recording in one short English sentence. Do not describe what is not heard."
MAX_DURATION_S = 30.0
MAX_NEW_TOKENS = 64


class Captioner:
    """Greedy captions of clips. `model` is a Hub name or a folder."""

    def __init__(self, model: str, prompt: str, max_new_tokens: int) -> None:
        from transformers import AutoModelForMultimodalLM, AutoProcessor

        self.model, self.processor = load_pretrained(AutoModelForMultimodalLM, AutoProcessor, model, dtype="auto")
        self.processor.tokenizer.padding_side = "left"  # answers begin where the prompts end
        self.sample_rate = int(self.processor.feature_extractor.sampling_rate)
        self.max_new_tokens = max_new_tokens
        message = {"role": "user", "content": [{"type": "audio", "audio_url": ""}, {"type": "text", "text": prompt}]}
        self.text = self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)

    @torch.no_grad()
    def describe(self, clips: list[Audio]) -> list[str]:
        """One caption for each clip (T,) at `sample_rate`, on one line."""
        inputs: Any = self.processor(
            text=[self.text] * len(clips),
            audio=clips,
            sampling_rate=self.sample_rate,
            return_tensors="pt",
            padding=True,
        )
        inputs = inputs.to(self.model.device)
        for name, value in inputs.items():
            if torch.is_floating_point(value):
                inputs[name] = value.to(self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        answers = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(answer.split()) for answer in answers]


def caption_manifest(
    manifest: Manifest,
    model: str,
    journal_path: Path,
    prompt: str = PROMPT,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[list[Row], SkipReport]:
    """Rows with new captions for every clip that can be read; the old caption stays in the column "old_caption".
    Their paths start at the journal's folder.

    Raises:
        BundleError: the model cannot be loaded.
        InputError: not one clip can be read, or the journal belongs to another run.
    """
    settings = {"model": model, "prompt": hashlib.sha256(prompt.encode()).hexdigest()}
    skipped = SkipReport()
    # Paths as they are from the journal: in two manifests one name can be of two files.
    folder = journal_path.parent
    moved = manifest.moved_to(folder)
    paths = list(dict.fromkeys(row.audio_path for row in moved))
    with Journal(journal_path, settings) as journal:
        left = [path for path in paths if path not in journal]
        progress(len(paths) - len(left))
        captioner = Captioner(model, prompt, MAX_NEW_TOKENS) if left else None
        for start in range(0, len(left), batch_size):
            clips: dict[str, Audio] = {}
            for path in left[start : start + batch_size]:
                assert captioner is not None
                try:
                    clips[path] = read_start(folder / path, MAX_DURATION_S, captioner.sample_rate)
                except InputError as error:
                    skipped.extend([(path, str(error))])
            if clips and captioner is not None:
                answers = captioner.describe(list(clips.values()))
                journal.append({"key": path, "caption": text} for path, text in zip(clips, answers, strict=True))
            progress(min(batch_size, len(left) - start))
        captions = {path: journal.records[path]["caption"] for path in paths if path in journal}
    if not captions:
        raise InputError(f"none of {len(paths)} files can be read: {next(iter(skipped.reasons.values()))}")
    rows = [
        Row(row.audio_path, captions[row.audio_path], row.split, {**row.others, "old_caption": row.caption})
        for row in moved
        if captions.get(row.audio_path)
    ]
    return rows, skipped
