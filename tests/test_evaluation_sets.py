"""FD, KL, IS and CLAP of sets of sounds: the numbers against their definitions, the command with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import tiny_models
from console import fails, runner
from tiny_models import noise

from ezaudio.data.filtering import Clap
from ezaudio.data.manifest import Row, write_manifest
from ezaudio.evaluation import sets
from ezaudio.evaluation.metrics import frechet_distance, inception_score, kl_divergence
from ezaudio.evaluation.sets import Heard, Tagger, compare
from ezaudio.runtime.audio_file import write_audio
from ezaudio.runtime.errors import InputError

CAPTIONS = ("rain", "a dog barks", "a bell")

run = runner("ezaudio-data")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tagger(tmp_path_factory.mktemp("tagger"))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Three clips with their prompts in them, as ezaudio-run writes them."""
    folder = tmp_path / "made"
    folder.mkdir()
    for index, caption in enumerate(CAPTIONS):
        metadata = {"ezaudio": "0", "prompt": caption}
        write_audio(folder / f"{index}.wav", noise(index, 24000), 24000, metadata=metadata)
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Four clips of two splits; "a bell" has two, "rain" none."""
    folder = tmp_path / "recorded"
    folder.mkdir()
    captions = ("a dog barks", "a bell", "a bell", "wind")
    for index in range(4):
        soundfile.write(folder / f"{index}.flac", noise(10 + index, 16000), 16000)
    rows = [Row(f"{i}.flac", text, "test" if i < 3 else "train", {}) for i, text in enumerate(captions)]
    write_manifest(folder / "m.csv", rows)
    return folder / "m.csv"


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits)
    return raised / raised.sum(1, keepdims=True)


def test_divergence_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 6, 4))
    p, q = softmax(a), softmax(b)
    assert kl_divergence(a, b) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-12)
    assert kl_divergence(a, a + 300) == pytest.approx(0, abs=1e-12)
    assert kl_divergence(np.array([[1e4, 0]]), np.array([[0, 1e4]])) == pytest.approx(1e4)


def test_inception_score_is_its_definition() -> None:
    logits = np.random.default_rng(1).standard_normal((8, 5))
    p = softmax(logits)
    assert inception_score(logits) == pytest.approx(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()), rel=1e-12)
    assert inception_score(np.tile(logits[:1], (4, 1))) == pytest.approx(1)
    assert inception_score(1e4 * np.eye(7)) == pytest.approx(7)
    with pytest.raises(InputError, match="NaN or infinity"):
        inception_score(np.array([[np.nan, 0.0]]))


def test_the_tagger_hears_each_clip_alone(tagger: Path) -> None:
    listener = Tagger(str(tagger))
    clips = [noise(0, 16000), noise(1, 16000, 1.0), noise(2, 16000, 4.0)]  # the last is longer than it hears
    together = listener.logits(clips)
    assert together.shape == (3, 5)
    alone = np.concatenate([listener.logits([clip]) for clip in clips])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


def test_pairs_are_of_one_caption() -> None:
    rng = np.random.default_rng(2)
    ours = Heard(CAPTIONS, *rng.standard_normal((2, 3, 4)), rng.standard_normal((3, 5)))
    theirs = Heard(("a bell", "wind", "a bell"), *rng.standard_normal((2, 3, 4)), rng.standard_normal((3, 5)))
    found = compare(ours, theirs)
    assert (found.clips, found.reference_clips, found.pairs) == (3, 3, 1)
    assert found.kl == pytest.approx(kl_divergence(theirs.logits[:1], ours.logits[2:]))
    assert found.fd == pytest.approx(frechet_distance(ours.sounds, theirs.sounds))
    assert found.clap == pytest.approx((ours.sounds * ours.texts).sum(1).mean())
    assert found.reference_inception == pytest.approx(inception_score(theirs.logits))
    assert compare(ours, Heard(("wind",) * 3, theirs.sounds, theirs.texts, theirs.logits)).kl is None
    assert compare(ours, None).fd is None


def test_the_command_measures_once(
    tmp_path: Path, made: Path, reference: Path, clap: Path, tagger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["evaluate", made, "-o", tmp_path / "out", "--clap", clap, "--tagger", tagger, "--batch-size", 2, "-q"]
    alone = run(*arguments)
    assert alone.exit_code == 0, alone.output
    assert alone.stdout.startswith("3 clips\nCLAP similarity ")
    assert "FD" not in alone.stdout
    beside = run(*arguments, "--reference", reference, "--split", "test")
    assert beside.stdout.startswith("3 clips, 3 of the reference, 2 pairs of one caption\n")
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (report["clap_model"], report["tagger_model"]) == (str(clap), str(tagger))
    heard, _ = sets.hear(sets.read_set(made), str(clap), str(tagger), tmp_path / "again.jsonl")
    assert report["clap"] == pytest.approx(heard.similarity, abs=1e-5)
    clips = [sets.read_start(made / f"{i}.wav", 10, 48000) for i in range(3)]
    assert heard.similarity == pytest.approx(Clap(str(clap)).similarity(clips, CAPTIONS).mean(), abs=1e-5)
    monkeypatch.setattr(sets, "Clap", None)  # all is in the journal
    assert run(*arguments, "--reference", reference, "--split", "test").stdout == beside.stdout


def test_a_folder_that_may_not_be_read_is_one_line(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mock of its permissions, which root would not be held by."""
    monkeypatch.setattr(Path, "iterdir", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(InputError, match=r"made' cannot be read \(Permission denied\): name another folder"):
        sets.read_set(made)


def test_what_cannot_be_measured_is_told(
    tmp_path: Path, made: Path, reference: Path, clap: Path, tagger: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = ["--clap", clap, "--tagger", tagger, "-q"]
    (tmp_path / "empty").mkdir()
    fails(run("evaluate", tmp_path / "empty", "-o", tmp_path / "out", *models), "has no sound file")
    fails(run("evaluate", reference.parent, "-o", tmp_path / "out", *models), "carries no ezaudio settings")
    fails(run("evaluate", made, "-o", tmp_path / "out", "--tagger", tmp_path / "none", *models[:2]), "cannot be loaded")
    fails(run("evaluate", made, "--reference", made / "m.csv", "-o", tmp_path / "out", *models), "no manifest")
    assert not (tmp_path / "out" / "evaluation.json").exists()
    result = run("evaluate", reference, "-o", tmp_path / "out", *models)
    assert result.stdout.startswith("4 clips\n")
    (reference.parent / "0.flac").unlink()
    (reference.parent / "1.flac").write_text("no sound")
    result = run("evaluate", reference, "-o", tmp_path / "out", *models)
    assert result.stdout.startswith("2 clips\n")
    assert "2 files were passed over" in caplog.text
