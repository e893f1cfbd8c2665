"""The packaged model's recipe: what its autoencoder starts as, what it is taught, and the whole at a small size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from console import fails, runner

from ezaudio.checkpoints import open_source
from ezaudio.config import NANO, TextConfig
from ezaudio.data.recordings import RECORDINGS, with_recordings
from ezaudio.data.synthesis import SOUNDS
from ezaudio.data.synthesis.captions import scene_clip
from ezaudio.data.tokenizer import write_tokenizer
from ezaudio.dit import MaskDiT
from ezaudio.evaluation import judge_training, report
from ezaudio.evaluation.judge import Judge, JudgeCard, JudgeNetwork
from ezaudio.evaluation.progress import silent
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.manifest import CARD_FILE, read_manifest
from ezaudio.runtime.text_to_audio import TextToAudio
from ezaudio.text import build_text_encoder
from ezaudio.training.journal import read_metrics
from ezaudio.training.nano import recipe as nano
from ezaudio.training.nano.autoencoder import (
    LEVEL_SIZE,
    LEVELS,
    POSTERIOR_STD,
    expander,
    lapped_transform,
    latent_transform,
    start_as_lapped_transform,
)
from ezaudio.training.nano.card import model_card
from ezaudio.training.nano.start import start_as_pass_through, teach_names
from ezaudio.training.nano.vocabulary import (
    KINDS,
    PROMPT_SEED,
    UNSEEN_FORMS,
    held_out_pairs,
    known_sounds,
    pair_prompts,
    seen_prompts,
    style_of,
    taught_sounds,
    unseen_prompts,
)
from ezaudio.training.settings import Schedule
from ezaudio.vae import AutoencoderOobleck, posterior

RATE, HOP, CHANNELS, NUM_LEVELS = NANO.vae.sample_rate, NANO.vae.hop, NANO.vae.latent_channels, len(LEVELS)


@pytest.fixture(scope="module")
def vae() -> AutoencoderOobleck:
    vae = AutoencoderOobleck(NANO.vae)
    start_as_lapped_transform(vae, nano._clips(taught_sounds(None), 60 * HOP, 1))
    return vae.eval().requires_grad_(False)


def error_db(output: torch.Tensor, target: torch.Tensor) -> float:
    """Of the middle: the ends of a clip lack a neighbour."""
    output, target = output[..., HOP:-HOP], target[..., HOP:-HOP]
    return float(10 * torch.log10((output - target).square().sum() / target.square().sum()))


def tone(frequency: float, peak: float = 0.7) -> torch.Tensor:
    return peak * torch.sin(2 * torch.pi * frequency * torch.arange(60 * HOP) / RATE)[None, None]


def test_overlapping_frames_of_the_lapped_transform_add_up() -> None:
    transform = lapped_transform(12)
    np.testing.assert_allclose(transform @ transform.T, np.eye(12), atol=1e-12)
    signal = np.random.default_rng(0).standard_normal(60)
    total = np.zeros(60)
    for start in range(0, 37, 12):
        total[start : start + 24] += transform.T @ (transform @ signal[start : start + 24])
    np.testing.assert_allclose(total[12:48], signal[12:48], atol=1e-12)


def test_a_group_of_coefficients_keeps_its_level() -> None:
    analysis, synthesis = latent_transform(HOP)
    assert analysis.shape == synthesis.shape == (128, 2 * HOP)
    noise = np.random.default_rng(0).standard_normal((4000, 2 * HOP))
    np.testing.assert_allclose(np.square(noise @ analysis.T).mean(0), 1, atol=0.15)
    np.testing.assert_allclose(np.square(synthesis).sum(1)[[0, 70, 100, 120]], [1, 2, 8, 14], rtol=1e-9)


def test_expander_is_a_power_within_3_db() -> None:
    ratio, frequency = expander(2.5)
    z = np.linspace(0.05, 1, 100)
    made = z + ratio * np.sin(frequency * z)
    made *= 0.5**2.5 / (0.5 + ratio * np.sin(frequency * 0.5))
    np.testing.assert_allclose(20 * np.log10(made / z**2.5), 0, atol=3)


def test_autoencoder_reconstructs_before_its_first_step(vae: AutoencoderOobleck) -> None:
    for frequency in (110, 440, 1000):
        for peak in (0.7, 0.05):
            assert error_db(vae.decode(vae.encode(tone(frequency, peak))), tone(frequency, peak)) < -8
    # Above 1.6 kHz the level of the band is kept, not the waveform.
    high = vae.decode(vae.encode(tone(5000)))
    assert float(high.std() / tone(5000).std()) == pytest.approx(1, abs=0.5)
    assert float(vae.decode(torch.zeros(1, CHANNELS, 30)).abs().max()) < 1e-3


def test_latents_have_unit_variance_and_one_posterior(vae: AutoencoderOobleck) -> None:
    mean, std = vae.encode_moments(nano._clips(taught_sounds(None), 60 * HOP, 1)[:, None])
    energy = mean.square().mean(dim=(0, 2))
    torch.testing.assert_close(energy[:-NUM_LEVELS].mean(), torch.tensor(1.0), rtol=0, atol=0.1)
    torch.testing.assert_close(energy[-NUM_LEVELS:], torch.full((NUM_LEVELS,), LEVEL_SIZE**2), rtol=0.1, atol=0)
    torch.testing.assert_close(std, torch.full_like(std, POSTERIOR_STD), rtol=0, atol=1e-3)


def test_silence_has_a_gradient() -> None:
    """The slope of the companding is infinite at 0, and a padded clip is full of zeros."""
    raw = torch.zeros(1, 2 * CHANNELS, 3)
    raw[:, :5, 1] = 0.5
    mean, std = posterior(raw, NANO.vae.companding)
    raw.requires_grad_(True)
    trained, _ = posterior(raw, NANO.vae.companding)
    torch.testing.assert_close(trained, mean, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad((trained + std).square().sum(), raw)
    assert gradient.isfinite().all()
    assert (gradient[:, :5, 1] != 0).all()


def test_levels_follow_the_loudness_of_their_band(vae: AutoencoderOobleck) -> None:
    low, high = (vae.encode(tone(frequency))[0, -NUM_LEVELS:, 5:-5] for frequency in (60, 6000))
    assert float(low.min()) >= 0
    assert int(low.mean(1).argmax()) < 2
    assert int(high.mean(1).argmax()) >= NUM_LEVELS - 5
    faint, loud = (vae.encode(tone(440, peak))[0, -NUM_LEVELS:, 5:-5].mean(1).max() for peak in (0.02, 0.5))
    assert float(loud) > 1.3 * float(faint) > 0.1  # 28 dB
    assert float(vae.encode(torch.zeros(1, 1, 20 * HOP))[0, -NUM_LEVELS:].max()) < 0.1


def test_noise_in_silence_stays_faint(vae: AutoencoderOobleck) -> None:
    noise = torch.randn((1, CHANNELS, 60), generator=torch.Generator().manual_seed(0))
    faint, loud = vae.decode(0.1 * noise), vae.decode(noise)
    assert float(20 * torch.log10(loud.std() / faint.std())) > 30  # 20 dB in a linear autoencoder


def test_other_shapes_are_refused() -> None:
    for change in ({"latent_channels": 128}, {"companding": 1.0}, {"channel_multiples": (4, 12, 40)}):
        vae = AutoencoderOobleck(replace(NANO.vae, **change))
        with pytest.raises(InputError, match=r"160 companded latents|too few"):
            start_as_lapped_transform(vae, torch.zeros(1, 10 * HOP))


def test_transformer_starts_as_a_pass_through() -> None:
    dit = start_as_pass_through(MaskDiT(NANO.dit), torch.Generator().manual_seed(0))
    latents = torch.randn((2, CHANNELS, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = dit(latents, torch.tensor([500, 900]), None)
    assert float(torch.corrcoef(torch.stack([out.flatten(), latents.flatten()]))[0, 1]) > 0.5


def test_held_out_wordings_are_not_taught() -> None:
    taught = {sound.name: sound for sound in taught_sounds(None)}
    assert tuple(taught) == KINDS
    for name, sound in taught.items():
        pairs = {(noun, verb) for nouns, verbs in sound.wording.groups for noun in nouns for verb in verbs}
        held = held_out_pairs(SOUNDS[name].wording)
        assert not pairs & set(held)
        nouns, verbs = {noun for noun, _ in pairs}, {verb for _, verb in pairs}
        assert all(noun in nouns and verb in verbs for noun, verb in held), name
    assert sum(bool(held_out_pairs(SOUNDS[name].wording)) for name in KINDS) > len(KINDS) / 2
    captions = [scene_clip(0, index, list(taught.values()), 4800, style_of(0.35))[2].lower() for index in range(300)]
    starts = [form.split("{}")[0].lower() for form in UNSEEN_FORMS if not form.startswith("{}")]
    assert not [caption for caption in captions if caption.startswith(tuple(starts)) or "puppy bark" in caption]


def test_prompts_name_their_kinds_and_follow_the_seed() -> None:
    assert [prompt.kinds for prompt in seen_prompts(2, 0)] == [(name,) for name in KINDS for _ in range(2)]
    assert unseen_prompts(2, 0) == unseen_prompts(2, 0) != unseen_prompts(2, 1)
    pairs = pair_prompts(20, 0)
    assert all(len(set(prompt.kinds)) == 2 for prompt in pairs)
    assert any("puppy" in prompt.text for prompt in unseen_prompts(4, 0) if prompt.kinds == ("dog",))


def test_one_event_of_a_recording_is_kept_for_the_judge(tmp_path: Path) -> None:
    burst, silence = np.hanning(4800).astype(np.float32), np.zeros(9600, np.float32)
    bursts = [level * burst * np.sin(2 * np.pi * f * np.arange(4800) / RATE) for level, f in ((1, 300), (0.8, 900))]
    audio = np.concatenate([bursts[0], silence, bursts[1], silence, 0.6 * bursts[0]]).astype(np.float32)
    soundfile.write(tmp_path / "dog.flac", audio, RATE)
    dog = [SOUNDS["dog"]]
    taught, kept = (with_recordings(dog, tmp_path, held_out)[0].render.args[0] for held_out in (False, True))  # type: ignore[attr-defined]
    assert (len(taught), len(kept)) == (2, 1)

    def pitch(event: np.ndarray) -> float:
        return float(np.fft.rfftfreq(len(event), 1 / RATE)[np.abs(np.fft.rfft(event)).argmax()])

    assert pitch(kept[0]) == pytest.approx(900, abs=20)
    assert [pitch(event) for event in taught] == pytest.approx([300, 300], abs=20)


def test_text_encoder_learns_which_sounds_a_caption_names(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, 1024)
    torch.manual_seed(0)
    encoder = build_text_encoder(
        TextConfig(width=32, num_layers=1, num_heads=2, head_width=16, ff_width=32, vocab_size=1024)
    )
    captions = [("a dog barks", frozenset(["dog"])), ("rain falls", frozenset(["rain"]))]
    captions += [("a dog barks while rain falls", frozenset(["dog", "rain"]))]
    assert teach_names(encoder, tokenizer, captions, 60, learning_rate=5e-3) > 0.95


def small_recipe() -> nano.Recipe:
    dit = replace(NANO.dit, width=192, depth=2, num_heads=3)
    made = nano.recipe(1e-9)
    stages = tuple(
        replace(stage, run=replace(stage.run, num_steps=2, batch_size=2, clip_s=0.5, save_every=1))
        for stage in made.stages
    )
    scenes = tuple(
        replace(each, count=count, duration_s=seconds)
        for each, count, seconds in zip(made.scenes, (6, 2, 2), (1.0, 1.0, 1.5), strict=True)
    )
    return replace(made, config=replace(NANO, dit=dit), scenes=scenes, stages=stages, name_steps=2)


@pytest.fixture
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts a set and a judge that has learnt nothing."""
    torch.manual_seed(0)
    judge = Judge(JudgeNetwork(len(KINDS)), JudgeCard(KINDS))
    prompts = {"seen": seen_prompts(1, 0)[:2], "unseen": unseen_prompts(1, 0)[:2], "pairs": pair_prompts(2, 0)}
    monkeypatch.setattr(judge_training, "kept_judge", lambda *given: judge)
    monkeypatch.setattr(report, "draw_prompts", lambda count: prompts if count == 5 else {})
    monkeypatch.setattr(report, "NUM_STEPS", 2)
    monkeypatch.setattr(report, "USUAL", {**report.USUAL, "duration_s": 0.5})


def test_recipe_makes_a_judged_bundle_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_judge: None
) -> None:
    made = small_recipe()
    monkeypatch.setattr(nano, "taught_sounds", lambda folder: known_sounds(folder)[:4])
    # Stopped in the second stage, of which there is a checkpoint.
    second = replace(made.stages[1], run=replace(made.stages[1].run, num_steps=1))
    begun = replace(made, stages=(made.stages[0], second))
    with monkeypatch.context() as stopped:
        stopped.setattr(nano, "put_together", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            nano.train_nano(tmp_path, None, begun, quiet=True)
    (tmp_path / "stage2" / "dit.safetensors").unlink()
    nano.train_nano(tmp_path, None, made, quiet=True, command="ezaudio-train nano RUN", count=5)
    source = open_source(str(tmp_path / "model"))
    source.check_parts()
    untrained = start_as_pass_through(MaskDiT(made.config.dit), torch.Generator().manual_seed(0)).state_dict()
    assert any(not torch.equal(value, untrained[name]) for name, value in source.dit().state_dict().items())
    trained = read_metrics(tmp_path / "stage2" / "metrics.jsonl")
    assert [row["step"] for row in trained] == [1, 2]
    # Other settings than the card would tell of are refused.
    first = replace(made.stages[0], run=replace(made.stages[0].run, schedule=Schedule(1e-4)))
    other = replace(made, stages=(first, *made.stages[1:]))
    with pytest.raises(InputError, match="the run was begun with schedule"):
        nano.train_nano(tmp_path, None, other, quiet=True, count=5)
    # The card lies in the model, in the bundle, where it is one of the verified files, and in what is exported of it.
    bundle = read_manifest(tmp_path / "bundle")
    card = (tmp_path / "bundle" / CARD_FILE).read_text(encoding="utf-8")
    assert CARD_FILE in bundle.files
    assert source.card is not None
    assert source.card.read_text(encoding="utf-8") == card
    assert "ezaudio-train nano RUN" in card
    assert "| stage3-long | 2 | 2 |" in card
    assert "6 of 1 s, 35% with two sounds" in card
    assert "synthesised by ezaudio/data/synthesis (MIT)." in card
    assert json.loads((tmp_path / "quality.json").read_text())["answers"]["pairs"]["clips"] == 2


def test_no_two_seeds_share_scenes_or_meet_the_prompts() -> None:
    drawn = [
        scenes.seed
        for seed in (0, 1, nano.MAX_SEED)
        for made in (nano.recipe(seed=seed), nano.further("nano", seed=seed))
        for scenes in made.scenes
    ]
    assert len(set(drawn)) == len(drawn)
    assert max(drawn) == PROMPT_SEED - 1
    assert {stage.run.seed for stage in nano.further("nano", seed=1).stages} == {1}


def test_a_model_is_trained_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_judge: None) -> None:
    monkeypatch.setattr(nano, "taught_sounds", lambda folder: known_sounds(folder)[:4])
    given = nano.further("nano", 1e-9, seed=2)
    made = replace(
        given,
        scenes=tuple(replace(each, count=2, duration_s=1.0) for each in given.scenes),
        stages=tuple(
            replace(each, run=replace(each.run, num_steps=2, batch_size=2, clip_s=0.5)) for each in given.stages
        ),
    )
    start = made.start
    assert start is not None
    with monkeypatch.context() as stopped:  # before a bundle is made of it: as after any training
        stopped.setattr(nano, "judge_model", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            nano.train_nano(tmp_path, None, made, quiet=True)
    before, after = start.dit().state_dict(), open_source(str(tmp_path / "model")).dit().state_dict()
    moved = [float((after[name] - value).norm() / value.norm()) for name, value in before.items() if value.ndim == 2]
    assert 0 < max(moved) < 0.1  # two steps of a warm-up from the packaged weights, not from new ones
    assert start.card is not None
    history = start.card.read_text(encoding="utf-8")
    judge = judge_training.kept_judge(tmp_path / "judge.safetensors", None, silent)
    judged = report.evaluate(TextToAudio(), judge, report.draw_prompts(5), None, progress=silent)
    card = model_card(tmp_path, made, None, "ezaudio-train nano RUN", judged)
    lines = ("| stage3-long |", "| stage2 |", "## How it was made")
    assert [card.count(line) - history.count(line) for line in lines] == [1, 0, 0]
    assert card.count("Seed 2.") - history.count("Seed 2.") == 1
    assert history[history.index("    ezaudio-train nano") : history.index("\n## How well")] in card


def test_other_models_and_seeds_are_refused(tmp_path: Path) -> None:
    fails(
        runner("ezaudio-train")("nano", str(tmp_path / "run"), "--further", "l"),
        "'l' is not a model of nano's sizes: give nano, or the folder RUN/model of such a run",
    )
    fails(
        runner("ezaudio-train")("nano", str(tmp_path / "run"), "--seed", "200"),
        f"seed: expected 0 to {nano.MAX_SEED}, got 200",
    )
    assert not (tmp_path / "run").exists()


def test_command_refuses_a_folder_without_recordings(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    fails(
        runner("ezaudio-train")("nano", str(tmp_path / "run"), "--recordings", str(tmp_path / "none")),
        "ezaudio-data recordings",
    )
    # Not after hours, when the model card is to tell where they are from.
    burst = np.tile(np.concatenate([np.hanning(4800), np.zeros(9600)]), 2)
    for recording in RECORDINGS:
        soundfile.write(tmp_path / "none" / f"{recording.name}.flac", burst, RATE)
    for content in (None, "[{}]", "["):
        if content is not None:
            (tmp_path / "none" / "sources.json").write_text(content)
        fails(
            runner("ezaudio-train")("nano", str(tmp_path / "run"), "--recordings", str(tmp_path / "none")),
            "sources.json' does not say where the recordings are from: collect them with `ezaudio-data recordings",
        )
    assert not (tmp_path / "run").exists()


def test_learning_rate_falls_to_a_hundredth() -> None:
    schedule = Schedule(1e-3, warmup_steps=10, fall=(50, 100))
    assert [schedule.rate(step) for step in (0, 9, 50, 75, 100, 150)] == pytest.approx(
        [1e-4, 1e-3, 1e-3, 5e-4, 1e-5, 1e-5]
    )
