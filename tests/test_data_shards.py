"""Shards of latents and texts: what they hold, order, resuming, damage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from console import fails, killed_once, runner
from safetensors import safe_open

from ezaudio.checkpoints import open_source
from ezaudio.data.audio import normalize_peak, read_crop
from ezaudio.data.dataset import batches
from ezaudio.data.manifest import Row, read_manifest, write_manifest
from ezaudio.data.shards import LatentShards, ShardSettings, collate_latents, encode_shards
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.text import encode_text

run = runner("ezaudio-data")
SOURCE = open_source("debug", random_weights=True)
SETTINGS = ShardSettings(SOURCE.origin, True, 0.4, 0, 4)
HOP = SOURCE.config.vae.hop


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven clips of a second, one of them broken."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(11):
        audio = 0.3 * np.random.default_rng(index).standard_normal(24000)
        soundfile.write(folder / f"{index}.flac", audio, 24000)
    (folder / "5.flac").write_bytes(b"fLaC broken")
    rows = [Row(f"{index}.flac", f"sound number {index}" * (1 + index % 3)) for index in range(11)]
    write_manifest(folder / "m.jsonl", rows)
    return folder / "m.jsonl"


@pytest.fixture(scope="module")
def shards(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    number, skipped = encode_shards(read_manifest(manifest), SOURCE, folder, SETTINGS, batch_size=3)
    assert number == 10
    assert [Path(path).name for path in skipped.reasons] == ["5.flac"]
    return folder


def test_a_clip_is_what_the_models_make_of_it(manifest: Path, shards: Path) -> None:
    content = read_manifest(manifest)
    dataset = LatentShards(shards, shuffle=False)
    assert len(dataset) == 10
    names = ["index.json", *(f"shard-0000{n}.safetensors" for n in range(3))]
    assert sorted(path.name for path in shards.iterdir()) == names
    vae, encoder = SOURCE.vae(), SOURCE.text_encoder()
    for number in (0, 4, 5, 9):
        clip = dataset[number]
        assert clip.row == number + (number >= 5)
        assert clip.caption == content.rows[clip.row].caption
        rng = np.random.default_rng((0, 0, clip.row))
        audio = read_crop(manifest.parent / f"{clip.row}.flac", rng, 20 * HOP, 24000)
        with torch.no_grad():
            mean, std = vae.encode_moments(torch.from_numpy(normalize_peak(audio))[None, None])
        # Half precision: 2^-11 of the value; a batch may round differently from one clip.
        torch.testing.assert_close(clip.mean.float(), mean[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(clip.std.float(), std[0], rtol=1e-3, atol=1e-4)
        ids = torch.tensor([token_ids(clip.caption)])
        with torch.no_grad():
            states = encode_text(encoder, ids, torch.ones_like(ids))[0]
        torch.testing.assert_close(clip.text, states.half(), rtol=0, atol=0)


def token_ids(caption: str) -> tuple[int, ...]:
    from ezaudio.runtime.tokenizer import PromptTokenizer

    return PromptTokenizer(SOURCE.tokenizer_files()["spiece.model"], SOURCE.config.text.max_tokens).encode(caption).ids


def test_ids_take_the_place_of_states(manifest: Path, tmp_path: Path) -> None:
    settings = ShardSettings(SOURCE.origin, False, 0.4, 0, 100)
    encode_shards(read_manifest(manifest), SOURCE, tmp_path, settings)
    clip = LatentShards(tmp_path, shuffle=False)[2]
    assert clip.text.dtype == torch.int32
    assert tuple(clip.text.tolist()) == token_ids(clip.caption)


def test_shards_hold_what_training_would_read_of_the_manifest(manifest: Path, tmp_path: Path) -> None:
    rows = [Row(str(manifest.parent / f"{n}.flac"), f"sound {n}", "test" if n == 2 else "train") for n in range(4)]
    write_manifest(tmp_path / "m.csv", rows)
    for given, captions in (((), {"sound 0", "sound 1", "sound 3"}), (("--split", "test"), {"sound 2"})):
        out = tmp_path / f"shards {len(given)}"
        result = run(
            "latents",
            tmp_path / "m.csv",
            "--model",
            "debug",
            "--random-weights",
            "--duration",
            "0.4",
            "-o",
            out,
            *given,
        )
        assert result.exit_code == 0, result.output
        shards = LatentShards(out)
        assert {shards[number].caption for number in range(len(shards))} == captions


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_follow_seed_and_epoch(shards: Path, num_workers: int) -> None:
    def read(first: int, workers: int) -> list[list[int]]:
        dataset = LatentShards(shards, seed=4)
        loader = batches(dataset, 4, first, 6 - first, workers, collate_fn=collate_latents)
        return [batch.rows.tolist() for batch in loader]

    rows = read(0, num_workers)
    assert rows == read(0, 0)
    assert rows[3:] == read(3, num_workers)
    flat = [row for batch in rows for row in batch]
    assert set(flat[:10]) == set(flat[10:20]) == set(range(11)) - {5}
    assert flat[:10] != flat[10:20]


def test_texts_are_padded_and_the_posterior_sampled(shards: Path) -> None:
    dataset = LatentShards(shards, shuffle=False)
    batch = collate_latents([dataset[number] for number in range(3)])
    lengths = [len(dataset[number].text) for number in range(3)]
    assert batch.text.shape[1] == max(lengths)
    assert batch.text_mask.sum(1).tolist() == lengths
    assert not batch.text[~batch.text_mask].any()
    draw = batch.sample(torch.Generator().manual_seed(1))
    noise = torch.randn(batch.mean.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(draw, batch.mean.float() + batch.std.float() * noise, rtol=0, atol=0)


def test_a_killed_run_makes_only_what_is_missing(manifest: Path, tmp_path: Path, shards: Path) -> None:
    command = ["latents", str(manifest), "--model", "debug", "--random-weights", "--duration", "0.4"]
    command += ["--shard-size", "1", "--batch-size", "1", "-q", "-o"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert "whole: 10 clips" in run(*command, whole).stdout
    killed_once(lambda: len(list(broken.glob("shard-*"))) >= 2, "ezaudio-data", *command, broken)
    kept = {path.name: path.stat().st_mtime_ns for path in broken.glob("shard-*")}
    assert len(kept) >= 2
    result = run(*command, broken)
    assert "broken: 10 clips" in result.stdout, result.stderr
    for path in whole.iterdir():
        assert (broken / path.name).read_bytes() == path.read_bytes()
    assert all((broken / name).stat().st_mtime_ns == stamp for name, stamp in kept.items())
    clip, same = (LatentShards(folder, shuffle=False)[7] for folder in (broken, shards))
    torch.testing.assert_close(clip.mean, same.mean, rtol=1e-2, atol=1e-3)
    assert clip.caption == same.caption


def test_other_settings_and_damage_are_refused(manifest: Path, tmp_path: Path) -> None:
    content = read_manifest(manifest)
    encode_shards(content, SOURCE, tmp_path, SETTINGS)
    with pytest.raises(InputError, match="of other settings, another model or other rows"):
        encode_shards(content, SOURCE, tmp_path, ShardSettings(SOURCE.origin, True, 0.4, 1, 4))
    again = replace(content, rows=(replace(content.rows[0], caption="said anew"), *content.rows[1:]))
    other = open_source("debug", random_weights=True, seed=1)  # by another name they would be other settings
    for rows, model in ((again, SOURCE), (content, replace(other, origin=SOURCE.origin))):
        with pytest.raises(InputError, match="of other settings, another model or other rows"):
            encode_shards(rows, model, tmp_path, SETTINGS)
    shard = tmp_path / "shard-00001.safetensors"
    whole = shard.read_bytes()
    for damage in (b"", whole[:100], b"\xff" * 200):
        shard.write_bytes(damage)
        with pytest.raises(BundleError, match=r"shard-00001\.safetensors' is no shard"):
            LatentShards(tmp_path, shuffle=False)[5]
        with pytest.raises(BundleError, match="remove it, it will be made again"):
            encode_shards(content, SOURCE, tmp_path, SETTINGS)
    shard.unlink()
    encode_shards(content, SOURCE, tmp_path, SETTINGS)
    assert shard.read_bytes() == whole
    index = json.loads((tmp_path / "index.json").read_text())
    for change, message in (
        ({"shards": []}, "lists no clips"),
        ({"shards": [{"file": "../x.safetensors", "num_clips": 1}]}, "outside of its folder"),
        ({"shards": [{"num_clips": 1}]}, "no index of shards"),
        ({"shards": [{"file": "shard-00000.safetensors", "num_clips": 9}]}, "has 4 clips, its index says 9"),
    ):
        (tmp_path / "index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(BundleError, match=message):
            LatentShards(tmp_path, shuffle=False)[0]
    with pytest.raises(BundleError, match="cannot be read"):
        LatentShards(tmp_path / "none")
    with safe_open(shard, "pt") as file:
        assert json.loads(file.metadata()["ezaudio"])["problems"][0][1].startswith("'")


def test_errors_of_the_command_are_one_line(manifest: Path, tmp_path: Path) -> None:
    common = ["--model", "debug", "--random-weights", "--duration", "0.4", "-q", "-o"]
    write_manifest(tmp_path / "none.csv", [Row("gone.wav", "x")])
    fails(run("latents", tmp_path / "none.csv", *common, tmp_path / "out"), "none of 1 files can be read")
    fails(run("latents", manifest, "--split", "test", *common, tmp_path / "out"), "no row of split 'test'")
    fails(run("latents", manifest, "--model", "nothing", "-o", tmp_path / "out"), "unknown model 'nothing'")
