"""Captions from an audio-language model and CLAP filtering, with tiny random models of the real classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_models
import torch
from console import fails, killed_once, runner
from tiny_models import noise

from ezaudio.data import captioning, filtering
from ezaudio.data.captioning import PROMPT, Captioner
from ezaudio.data.filtering import Clap, filter_manifest, manifest_name, score_manifest
from ezaudio.data.manifest import Row, read_manifest, write_manifest
from ezaudio.runtime.errors import InputError

run = runner("ezaudio-data")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_qwen2_audio(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Twelve clips, one of them no sound and one absent, in a folder below."""
    (tmp_path / "clips").mkdir()
    for index in range(12):
        soundfile.write(tmp_path / "clips" / f"{index}.wav", noise(index, 16000), 16000)
    (tmp_path / "clips" / "3.wav").write_text("no sound")
    (tmp_path / "clips" / "7.wav").unlink()
    rows = [Row(f"{index}.wav", f"sound {'abcdefghijkl'[index]}", "train", {"id": str(index)}) for index in range(12)]
    write_manifest(tmp_path / "clips" / "m.csv", rows)
    return tmp_path / "clips" / "m.csv"


def test_similarity_is_that_of_the_model(clap: Path) -> None:
    judge = Clap(str(clap))
    clips = [noise(0, 48000, 1.0), noise(1, 48000, 0.3), noise(2, 48000, 10.0)]
    captions = ["rain", "a dog barks", "x" * 400]  # longer than the model's positions: cut
    together = judge.similarity(clips, captions)
    alone = [float(judge.similarity([clip], [caption])[0]) for clip, caption in zip(clips, captions, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    text = judge.processor.tokenizer(["rain"], return_tensors="pt")
    sound = judge.processor.feature_extractor(clips[:1], sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        output = judge.model(**text, **sound)
    expected = torch.nn.functional.cosine_similarity(output.audio_embeds, output.text_embeds)
    assert alone[0] == pytest.approx(float(expected), abs=1e-6)


def test_filter_writes_a_manifest_for_each_threshold(tmp_path: Path, manifest: Path, clap: Path) -> None:
    scores, skipped = score_manifest(read_manifest(manifest), str(clap), tmp_path / "s.jsonl", batch_size=5)
    known = sorted(score for score in scores if score is not None)
    assert len(known) == 10
    assert [Path(path).name for path in skipped.reasons] == ["3.wav", "7.wav"]
    low, high = (known[1] + known[2]) / 2, (known[6] + known[7]) / 2
    out = tmp_path / "filtered"
    result = run("filter", manifest, "-o", out, "--model", clap, "--threshold", high, "--threshold", low, "-q")
    assert f"{manifest_name(low)}: " in result.stdout
    assert (out / "histogram.png").read_bytes().startswith(b"\x89PNG")
    kept = read_manifest(out / manifest_name(high))
    assert len(kept) == sum(score >= high for score in known) == 3
    for row in kept.rows:
        index = int(row.others["id"])
        assert float(row.others["clap"]) == pytest.approx(scores[index], abs=1e-4)
        assert row.caption == f"sound {'abcdefghijkl'[index]}"
        assert kept.path_of(row).is_file()
    assert sum(len(line) > 0 for line in (out / "scores.jsonl").read_text().splitlines()) == 11


def test_near_thresholds_have_manifests_of_their_own(tmp_path: Path, manifest: Path, clap: Path) -> None:
    assert [manifest_name(t) for t in (0.35, 0.4, -1.0)] == ["at_0.35.jsonl", "at_0.40.jsonl", "at_-1.00.jsonl"]
    kept, _ = filter_manifest(read_manifest(manifest), tmp_path / "out", str(clap), (-0.999, -0.998))
    assert kept == {-0.999: 10, -0.998: 10}
    assert sorted(p.name for p in (tmp_path / "out").glob("at_*.jsonl")) == ["at_-0.998.jsonl", "at_-0.999.jsonl"]


def test_scores_are_computed_once(tmp_path: Path, manifest: Path, clap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = read_manifest(manifest)
    kept, _ = filter_manifest(content, tmp_path / "out", str(clap), (-1.0,))
    assert kept == {-1.0: 10}
    for index in (3, 7):  # mended files are scored, and only those
        soundfile.write(manifest.parent / f"{index}.wav", noise(index, 16000), 16000)
    asked = []
    similarity = Clap.similarity
    monkeypatch.setattr(Clap, "similarity", lambda self, c, t: asked.extend(t) or similarity(self, c, t))
    assert filter_manifest(content, tmp_path / "out", str(clap), (-1.0,))[0] == {-1.0: 12}
    assert asked == ["sound d", "sound h"]
    assert filter_manifest(content, tmp_path / "out", str(clap), (-1.0, 1.0))[0] == {-1.0: 12, 1.0: 0}
    assert len(asked) == 2
    with pytest.raises(InputError, match=r"other settings \(model\)"):
        filter_manifest(content, tmp_path / "out", "another", (0.0,))


def test_the_papers_thresholds_are_the_default() -> None:
    assert filtering.THRESHOLDS == (0.35, 0.40, 0.45)
    assert filtering.DEFAULT_MODEL == "laion/larger_clap_general"
    help_text = run("filter", "--help").stdout
    assert "laion/larger_clap_general" in help_text
    assert "0.35, 0.4, 0.45" in " ".join(help_text.split())


def test_nothing_readable_or_no_model_is_one_line(tmp_path: Path, manifest: Path, clap: Path) -> None:
    write_manifest(tmp_path / "none.csv", [Row("gone.wav", "x")])
    fails(run("filter", tmp_path / "none.csv", "-o", tmp_path / "out", "--model", clap, "-q"), "none of 1 files")
    (tmp_path / "nothing").mkdir()
    for command in ("filter", "caption"):
        output = tmp_path / ("out2" if command == "filter" else "out.csv")
        result = run(command, manifest, "-o", output, "--model", tmp_path / "nothing", "-q")
        fails(result, "cannot be loaded", "name a Hub model or a local folder")


def test_batches_of_captions_equal_single_ones(qwen: Path) -> None:
    captioner = Captioner(str(qwen), PROMPT, 6)
    assert "<|AUDIO|>" in captioner.text
    assert captioner.text.rstrip().endswith("assistant")
    clips = [noise(0, 16000, 0.3), noise(1, 16000, 1.1)]
    assert captioner.describe(clips) == [captioner.describe([clip])[0] for clip in clips]


def test_a_killed_captioning_loses_nothing(
    tmp_path: Path, manifest: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioning, "MAX_NEW_TOKENS", 6)

    def command(output: Path) -> list[str]:
        return ["caption", str(manifest), "--model", str(qwen), "--batch-size", "1", "-q", "-o", str(output)]

    journal = tmp_path / "q.jsonl.finished.jsonl"
    partly = tmp_path / "q.jsonl"
    killed_once(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 4, "ezaudio-data", *command(partly))
    finished = journal.read_bytes()
    finished = finished[: finished.rindex(b"\n") + 1]
    assert 4 <= finished.count(b"\n") < 11
    result = run(*command(tmp_path / "q.jsonl"))
    assert result.exit_code == 0, result.stderr
    assert journal.read_bytes().startswith(finished)
    assert run(*command(tmp_path / "whole.jsonl")).exit_code == 0
    assert (tmp_path / "q.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    assert rows[0]["old_caption"] == "sound a"
    assert rows[0]["audio_path"] == "clips/0.wav"
    assert all(row["caption"] for row in rows)


def test_files_of_one_name_in_two_folders_are_not_mixed_up(
    tmp_path: Path, clap: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rendering names them: what is known of one manifest's files is not said of another's."""
    monkeypatch.setattr(captioning, "MAX_NEW_TOKENS", 6)
    monkeypatch.setattr(Captioner, "describe", lambda self, clips: [f"of {len(clip)} samples" for clip in clips])
    scores = []
    for index, name in enumerate(("one", "other")):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "0.wav", noise(index, 16000, 0.4 + 0.1 * index), 16000)
        write_manifest(tmp_path / name / "m.csv", [Row("0.wav", "a sound")])
        content = read_manifest(tmp_path / name / "m.csv")
        scores += score_manifest(content, str(clap), tmp_path / "s.jsonl")[0]
        result = run("caption", tmp_path / name / "m.csv", "--model", qwen, "-o", tmp_path / "q.jsonl", "-q")
        assert result.exit_code == 0, result.output
        (row,) = read_manifest(tmp_path / "q.jsonl").rows
        assert (row.audio_path, row.caption) == (f"{name}/0.wav", f"of {(6400, 8000)[index]} samples")
    assert scores[0] != scores[1]
