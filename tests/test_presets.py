"""Presets: how they resolve, what they skip, and how a bundle is given its own."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from console import Run, answers_at_once_and_teaches, fails, imports_none_of, runner

from ezaudio.config import preset as config_preset
from ezaudio.runtime import TextToAudio, calibration
from ezaudio.runtime.editing import Window
from ezaudio.runtime.errors import InputError
from ezaudio.runtime.manifest import read_manifest
from ezaudio.runtime.presets import PRESETS, Preset
from ezaudio.runtime.settings import resolve
from ezaudio.runtime.solvers import guided_steps, solver_plan, spaced_timesteps, trailing_timesteps

SCRIPT = Path(sys.executable).with_name("ezaudio-calibrate")
DEBUG = config_preset("debug")


@pytest.fixture
def calibrate() -> Run:
    return runner("ezaudio-calibrate")


@pytest.mark.parametrize("num_steps", [1, 2, 12, 43, 250, 999, 1000])
@pytest.mark.parametrize("spacing", [1.0, 1.6, 4.0])
def test_timesteps_fall_from_the_last(num_steps: int, spacing: float) -> None:
    listed = spaced_timesteps(num_steps, spacing)
    assert listed.shape == (num_steps,)
    assert listed[0] == 999
    assert listed[-1] >= 0
    assert (np.diff(listed) < 0).all()
    if spacing == 1:
        assert listed.tolist() == trailing_timesteps(num_steps).tolist()


def test_spacing_gathers_steps_at_high_noise() -> None:
    assert spaced_timesteps(6, 2.0).tolist() == [999, 971, 888, 749, 555, 305]  # 1000·(1 − (i/6)²) − 1


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "dpmpp_2m_sde"])
def test_a_solver_on_any_grid_recovers_clean_latents(name: str) -> None:
    """With the exact velocity of one clean sample every solver without noise ends at that sample."""
    clean, noise = np.random.default_rng(0).standard_normal((2, 50))
    plan = solver_plan(name, 9, 0.0, DEBUG.diffusion, spacing=2.2)
    x, before = noise, np.zeros(50)
    for row in plan.rows.astype(np.float64):
        alpha, sigma = row[4], -row[5]
        velocity = (alpha * x - clean) / sigma  # x = α·clean + σ·ε, v = α·ε − σ·clean
        x, before = row[0] * x + row[1] * velocity + row[2] * before, row[4] * x + row[5] * velocity
        np.testing.assert_allclose(before, clean, atol=1e-5)
    np.testing.assert_allclose(x, clean, atol=1e-5)


def test_guided_steps_are_those_within_the_interval() -> None:
    plan = solver_plan("ddim", 4, 0.0, DEBUG.diffusion)  # 999, 749, 499, 249
    assert guided_steps(plan, (0.0, 1.0)) == (True,) * 4
    assert guided_steps(plan, (0.5, 0.75)) == (False, True, True, False)
    assert guided_steps(plan, (0.3, 0.3)) == (False,) * 4


def test_what_is_given_goes_before_the_preset() -> None:
    presets = {"quick": Preset("dpmpp_2m", 8, 0.0, 2.0, (0.4, 1.0), (2, 4))}
    plain = resolve(DEBUG, "rain", presets, preset="quick", seed=0)
    assert (plain.solver, plain.num_steps, plain.spacing, plain.reuse) == ("dpmpp_2m", 8, 2.0, (2, 4))
    assert plain.guidance_interval == (0.4, 1.0)
    other = resolve(DEBUG, "rain", presets, preset="quick", seed=0, num_steps=9)
    assert (other.num_steps, other.reuse, other.guidance_interval) == (9, (), (0.4, 1.0))
    noisy = resolve(DEBUG, "rain", presets, preset="quick", seed=0, solver="ddim", reuse=[1])
    assert (noisy.solver, noisy.eta, noisy.reuse) == ("ddim", 1.0, (1,))
    assert resolve(DEBUG, "rain", presets, preset="quick", seed=0, control_scale=1.0).reuse == ()
    default = resolve(DEBUG, "rain", presets, seed=0)
    assert (default.num_steps, default.spacing, default.reuse) == (4, 1.0, ())


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"duration_s": 0.5, "num_steps": 4, "guidance_scale": 3.0, "seed": 2**63}
    given |= {"guidance_interval": (0.25, 1.0), "reuse": [1, 3]}
    of_numpy = {"duration_s": np.float32(0.5), "num_steps": np.int64(4), "guidance_scale": np.float16(3)}
    of_numpy |= {"seed": np.uint64(2**63), "guidance_interval": list(np.array([0.25, 1], np.float32))}
    of_numpy |= {"reuse": list(np.array([1, 3]))}
    settings = resolve(DEBUG, "rain", PRESETS, **of_numpy)
    assert json.dumps(settings.to_dict()) == json.dumps(resolve(DEBUG, "rain", PRESETS, **given).to_dict())
    with pytest.raises(InputError, match="num_steps must be a whole number from 1 to 1000, got True"):
        resolve(DEBUG, "rain", PRESETS, num_steps=np.bool_(True))
    whole = Window.plan(24000, 0.25, 0.5, 0.125, DEBUG)
    assert Window.plan(24000, np.float32(0.25), np.float16(0.5), np.float32(0.125), DEBUG) == whole


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"preset": "fastest"}, "unknown preset 'fastest': expected one of fast, balanced, best, official"),
        ({"spacing": 0.5}, "spacing must be from 1 to 4, got 0.5"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval must be the lowest and the highest noise level"),
        ({"guidance_interval": 0.5}, "guidance_interval must be the lowest and the highest noise level"),
        ({"guidance_interval": (0.0, 1.5)}, "a bound of guidance_interval must be from 0 to 1, got 1.5"),
        ({"reuse": [0]}, "rising numbers of steps from 1 to 3 .the first step has nothing to reuse., got .0."),
        ({"reuse": [2, 1]}, "rising numbers of steps"),
        ({"reuse": [4]}, "rising numbers of steps from 1 to 3"),
        ({"reuse": 1}, "reuse must be numbers of steps, got 1"),
        ({"reuse": "12"}, "reuse must be numbers of steps, got '12'"),
        ({"reuse": [True]}, "reuse must be numbers of steps"),
        ({"reuse": [2], "guidance_interval": (0.0, 0.5)}, "step 2 is guided and reuses step 1, which is not"),
        ({"reuse": [2], "control_scale": 1.0}, "reuse does not go with control_audio"),
    ],
)
def test_bad_plans_are_refused(given: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        resolve(DEBUG, "rain", PRESETS, seed=0, **given)


def test_every_usual_preset_runs_and_low_memory_changes_nothing(debug_bundle: Path) -> None:
    model, frugal = TextToAudio(debug_bundle), TextToAudio(debug_bundle, low_memory=True)
    assert list(model.presets) == ["fast", "balanced", "best", "official"]
    for name in model.presets:
        options = {"preset": name, "seed": 4, "duration_s": 0.5}
        made = model.generate("rain", **options)
        assert made.settings[0].num_steps == model.presets[name].num_steps
        assert frugal.generate("rain", **options).samples.tobytes() == made.samples.tobytes()
    assert frugal._sessions._sessions == {}  # type: ignore[attr-defined]


def test_reuse_runs_only_the_outer_blocks(debug_bundle: Path) -> None:
    model = TextToAudio(debug_bundle)
    options = {"seed": 4, "duration_s": 0.5, "num_steps": 4}
    whole = model.generate("rain", **options).samples
    assert "denoiser_shallow" not in model._sessions._sessions  # type: ignore[attr-defined]
    reused = model.generate("rain", **options, reuse=[1, 3]).samples
    assert "denoiser_shallow" in model._sessions._sessions  # type: ignore[attr-defined]
    assert np.isfinite(reused).all()
    assert reused.tobytes() != whole.tobytes()


def test_evaluations_are_counted() -> None:
    plan = Preset("ddim", 4, 0.0, 1.0, (0.5, 1.0), (1, 3))  # guided: 999, 749, 499; shallow: 2 of 3 blocks
    assert calibration.num_evaluations(plan, DEBUG) == pytest.approx(2 + 2 * 2 / 3 + 2 + 2 / 3)
    assert calibration.num_evaluations(PRESETS["official"], DEBUG) == 200


def test_candidates_keep_to_the_budget() -> None:
    nano = config_preset("nano")
    for budget in calibration.BUDGETS.values():
        found = calibration.candidates(budget, nano)
        assert len(found) == len(set(found)) > 20
        assert all(0.9 * budget <= calibration.num_evaluations(plan, nano) <= budget for plan in found)


def test_calibrating_writes_measured_presets(
    calibrate: Run, debug_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "REFERENCE", replace(calibration.REFERENCE, num_steps=12))
    monkeypatch.setattr(calibration, "BUDGETS", {"fast": 7.0})
    own = shutil.copytree(debug_bundle, tmp_path / "own")
    before = read_manifest(own)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# two\nrain\na dog barks\n")
    options = ("--prompts-file", prompts, "--seeds", "1", "--duration", "0.2")
    dry = calibrate(own, *options, "--dry-run", "--json")
    assert dry.exit_code == 0, dry.output
    assert read_manifest(own).bundle_id == before.bundle_id
    result = calibrate(own, *options)
    assert result.exit_code == 0, result.output
    after = read_manifest(own)  # every file still as listed
    assert after.presets["fast"].to_dict() == json.loads(dry.stdout)["fast"]
    measured = after.presets["fast"].fidelity
    assert measured is not None
    assert measured.num_clips == 1
    assert 0 < measured.latent_error < 2
    assert measured.evaluations <= 7
    assert after.presets["best"] == PRESETS["best"]
    assert replace(after, presets=before.presets, bundle_id="") == replace(before, bundle_id="")
    assert "not measured" in result.stdout
    assert f"{measured.latent_error:.3f}" in result.stdout


def test_a_bundle_that_took_its_place_meanwhile_stays(
    calibrate: Run, debug_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old manifest over the new files would be a damaged bundle."""
    own = shutil.copytree(debug_bundle, tmp_path / "own")

    def replaced(*_: object, **__: object) -> dict[str, Preset]:
        replace(read_manifest(own), origin="another export").write(own)
        return {}

    monkeypatch.setattr(calibration, "calibrate", replaced)
    fails(calibrate(own), f"the bundle at '{own}' was changed meanwhile, and stays as it is: calibrate it again")
    assert read_manifest(own).origin == "another export"


def test_errors_of_the_command(calibrate: Run, debug_bundle: Path, tmp_path: Path) -> None:
    fails(calibrate(tmp_path / "none"), "no bundle at")
    fails(calibrate(debug_bundle, "--prompts-file", tmp_path / "none.txt"), "cannot be read (No such file")
    one = tmp_path / "one.txt"
    one.write_text("rain\n")
    fails(calibrate(debug_bundle, "--prompts-file", one), "has 1 prompts: name 2 to 200")
    one.write_bytes(b"\xff\n")
    fails(calibrate(debug_bundle, "--prompts-file", one), "it is not UTF-8")
    fails(calibrate(debug_bundle, "--duration", "99"), "duration_s must be more than 0")


def test_a_bundle_that_cannot_be_written_to_is_refused_at_once(calibrate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mocks of its rights, which root would not be held by, and of the work, which takes hours."""
    monkeypatch.setattr("tempfile.TemporaryFile", Mock(side_effect=PermissionError(13, "Permission denied")))
    work = Mock(return_value={})
    monkeypatch.setattr("ezaudio.runtime.calibration.calibrate", work)
    fails(calibrate("nano"), "nano' cannot be written (Permission denied)")
    assert not work.called
    assert calibrate("nano", "--dry-run").exit_code == 0


def test_the_packaged_presets_are_measured() -> None:
    presets = TextToAudio().presets
    for name in ("fast", "balanced", "best"):
        assert presets[name].fidelity is not None
    errors = [presets[name].fidelity.latent_error for name in ("best", "balanced", "fast")]  # type: ignore[union-attr]
    assert errors == sorted(errors)


def test_script_answers_at_once_and_teaches() -> None:
    answers_at_once_and_teaches(SCRIPT, "ezaudio-calibrate bundle/ --dry-run", "--prompts-file", "--seeds")


def test_importing_the_command_loads_nothing_heavy() -> None:
    imports_none_of("ezaudio.runtime.calibrate_cli", {"numpy", "onnxruntime", "torch", "tqdm"})
