"""Sampling through the unmodified FluxFillPipeline, and what a checkpoint brings back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from diffusers import FluxFillPipeline
from safetensors.torch import load_file, save_file
from semantic_fill_world import CONFIG, tiny_system, triptychs

import synthesis
from files.tensors import DamagedFile
from synthesis.backbone import load_backbone
from synthesis.latents import encode_triptych, fill_mask_of
from synthesis.sampling import Filler, load_filler
from synthesis.weights import (
    ATTENTION_FILE,
    CONFIG_FILE,
    LORA_FILE,
    OPTIMISER_FILE,
    PROMPTS_FILE,
    find_checkpoint,
    load_system,
    newest_intact_checkpoint,
    save_system,
    sweep_checkpoints,
)

ROOT = Path(synthesis.__file__).resolve().parents[1]
FRESH = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from semantic_fill_world import triptychs
from synthesis.latents import fill_mask_of
from synthesis.sampling import load_filler
data = triptychs(2)
filler = load_filler("tiny", {run!r})
mask = fill_mask_of(data["semantic"], "semantic")
save_file({{"target": filler.fill(data["visible"], data["semantic"], mask, seeds=[3, 4], steps=3)}}, {out!r})
"""


def trained_system(scale=0.5, **changes):
    """A system whose LoRA has an effect too."""
    system = tiny_system(scale=scale, **changes)
    generator = torch.Generator().manual_seed(11)
    for name, value in system.backbone.transformer.named_parameters():
        if ".lora_B." in name:
            value.data.normal_(std=0.1, generator=generator)
    return system


def sample(filler, data=None, semantic=True, **more):
    data = data or triptychs(2)
    arguments = {"seeds": [3, 4], "steps": 3, **more}
    mask = fill_mask_of(data["semantic"], "semantic")
    return filler.fill(data["visible"], data["semantic"] if semantic else None, mask, **arguments)


def test_a_new_attention_changes_no_bit_of_a_sample():
    filler = Filler(tiny_system(), "a defect")
    target = sample(filler)
    assert target.shape == (2, 3, 32, 32) and target.abs().max() <= 1
    assert torch.equal(target, sample(filler, semantic=False))
    trained = Filler(tiny_system(scale=0.5), "a defect")
    assert (sample(trained) - sample(trained, semantic=False)).abs().max() > 1e-3


def test_sampling_shows_the_transformer_the_condition_of_training():
    system, data, seen = trained_system(), triptychs(2), []
    system.backbone.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    sample(Filler(system, "a defect"), data, steps=2)
    mask = fill_mask_of(data["semantic"], "semantic")
    trained_on = encode_triptych(system.backbone.vae, data["visible"], data["target"], data["semantic"], mask)
    assert len(seen) == 2  # outside the mask the target equals the visible panel, so the two conditions agree
    for kwargs in seen:
        assert torch.allclose(kwargs["hidden_states"][..., 64:], trained_on.condition, atol=1e-5)
        assert torch.equal(kwargs["img_ids"], trained_on.ids)
        assert kwargs["guidance"].tolist() == [1, 1]  # a tiny backbone has seen no other
    assert seen[0]["timestep"].tolist() == [1, 1]


def test_a_perfect_velocity_ends_at_the_codecs_image_of_the_right_panel(monkeypatch):
    system, data = tiny_system(), triptychs(2)
    codec, mask = system.backbone.vae, fill_mask_of(data["semantic"], "panel")
    clean = encode_triptych(codec, data["visible"], data["target"], data["semantic"], mask).clean

    def perfect(hidden_states, timestep, **kwargs):
        return ((hidden_states[..., :64] - clean) / timestep[:, None, None],)

    monkeypatch.setattr(system.backbone.transformer, "forward", perfect)
    target = sample(Filler(system, "a defect"), data, steps=4)
    expected = codec.decode(codec.encode(data["target"]).latent_dist.mode()).sample.clamp(-1, 1)
    assert torch.allclose(target, expected, atol=1e-4)


def test_each_image_has_its_own_generator():
    filler, data = Filler(trained_system(), "a defect"), triptychs(2)
    both = sample(filler, data)
    second = sample(filler, {name: values[1:] for name, values in data.items()}, seeds=[4])
    assert torch.allclose(both[1:], second, atol=1e-5)
    twice = {
        name: values[:1] * 2 if name == "name" else values[:1].repeat(2, 1, 1, 1)
        for name, values in data.items()
    }
    same_image = sample(filler, twice)
    assert (same_image[0] - same_image[1]).abs().max() > 1e-2
    assert torch.equal(both, sample(filler, data))


def test_a_fresh_process_samples_the_same_bits_with_the_attention(tmp_path):
    system = trained_system()
    expected = sample(Filler(system, "a defect"))
    assert (expected - sample(Filler(system, "a defect"), semantic=False)).abs().max() > 1e-3
    save_system(tmp_path / "run", 7, system, CONFIG)
    out = tmp_path / "sample.safetensors"
    code = FRESH.format(tests=str(ROOT / "tests"), root=str(ROOT), run=str(tmp_path / "run"), out=str(out))
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert torch.equal(load_file(out)["target"], expected)


def test_diffusers_reads_the_lora_file_itself(tmp_path):
    system = trained_system(lora_alpha=2)  # an alpha other than the rank must survive as well
    folder = save_system(tmp_path, 1, system, {**CONFIG, "lora_alpha": 2})
    assert (folder / "pytorch_lora_weights.safetensors").is_file()
    assert (folder / "semantic_cross_attention.safetensors").is_file()
    bare = load_backbone("tiny")
    pipeline = FluxFillPipeline(
        scheduler=bare.scheduler,
        vae=bare.vae,
        transformer=bare.transformer,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    plain = sample(Filler(system._replace(backbone=bare), "a defect"), semantic=False)
    pipeline.load_lora_weights(folder)
    theirs = sample(Filler(system._replace(backbone=bare), "a defect"), semantic=False)
    ours = sample(Filler(system, "a defect"), semantic=False)
    assert torch.allclose(theirs, ours, atol=1e-6)
    assert (theirs - plain).abs().max() > 1e-3


def test_a_trained_backbone_comes_back(tmp_path):
    system = trained_system(train_backbone=True)
    system.backbone.transformer.proj_out.weight.data.mul_(1.5)
    expected = sample(Filler(system, "a defect"))
    save_system(tmp_path, 1, system, {**CONFIG, "train_backbone": True})
    assert torch.equal(sample(load_filler("tiny", tmp_path)), expected)


def test_the_training_prompt_needs_no_encoders_and_another_one_loads_them(tmp_path):
    save_system(tmp_path, 1, trained_system(), CONFIG)
    loads = []
    filler = load_filler("tiny", tmp_path)
    prompts = filler.system.prompts
    encoders = prompts.load_text
    prompts.load_text = lambda: loads.append(1) or encoders()
    trained = sample(filler)
    assert not loads and torch.equal(trained, sample(filler, prompt="a defect"))
    assert not torch.equal(sample(filler, prompt="a scratch"), trained) and loads == [1]


@pytest.mark.parametrize("side", [16, 48])
def test_other_sizes_work(side):
    data = triptychs(1, side)
    assert sample(Filler(trained_system(), "a defect"), data, seeds=[1]).shape == (1, 3, side, side)


def test_a_map_of_another_resolution_works():
    data = triptychs(2)
    data["semantic"] = data["semantic"].repeat_interleave(2, -1).repeat_interleave(2, -2)
    mask = torch.ones(2, 1, 32, 32)
    filler = Filler(trained_system(), "a defect")
    assert filler.fill(data["visible"], data["semantic"], mask, seeds=[1, 2], steps=1).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visible": torch.zeros(1, 3, 24, 24)}, "multiple of 16"),
        ({"visible": torch.zeros(1, 3, 32, 48)}, "expected squares"),
        ({"fill_mask": torch.zeros(1, 3, 32, 32)}, "fill_mask is"),
        ({"fill_mask": torch.full((1, 1, 32, 32), 0.5)}, "other than 0 and 1"),
        ({"semantic": torch.zeros(2, 3, 32, 32)}, "semantic is"),
        ({"seeds": [1, 2]}, "2 seeds for 1 images"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    arguments = {
        "visible": torch.zeros(1, 3, 32, 32),
        "semantic": torch.zeros(1, 3, 32, 32),
        "fill_mask": torch.ones(1, 1, 32, 32),
        "seeds": [0],
        "steps": 1,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        Filler(tiny_system(), "a defect").fill(**arguments)


def test_the_last_checkpoint_of_a_run_is_found_by_number(tmp_path):
    system = tiny_system()
    for step in (9, 10):
        save_system(tmp_path, step, system, CONFIG)
    assert find_checkpoint(tmp_path).name == "checkpoint-0000010"
    assert find_checkpoint(tmp_path / "checkpoint-0000009").name == "checkpoint-0000009"
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        find_checkpoint(tmp_path / "elsewhere")


@pytest.mark.parametrize("file", [ATTENTION_FILE, LORA_FILE])
def test_weights_that_do_not_fit_or_are_damaged_are_refused_by_name(tmp_path, file):
    folder = save_system(tmp_path, 1, tiny_system(), CONFIG)
    tensors = load_file(folder / file)
    first = sorted(tensors)[0]
    config = json.loads((folder / CONFIG_FILE).read_text())
    older = {key: value for key, value in config.items() if not key.endswith("_sha256")}
    (folder / CONFIG_FILE).write_text(json.dumps(older))
    save_file({name: value for name, value in tensors.items() if name != first}, folder / file)
    with pytest.raises(RuntimeError, match=f"{first.removeprefix('transformer.')} is missing"):
        load_system("tiny", folder)
    (folder / file).write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=f"{file} is missing or damaged"):
        load_system("tiny", folder)


@pytest.mark.parametrize("file", [ATTENTION_FILE, LORA_FILE, PROMPTS_FILE, CONFIG_FILE])
def test_a_changed_bit_in_any_file_of_a_checkpoint_is_refused_by_name(tmp_path, file):
    folder = save_system(tmp_path, 1, tiny_system(), CONFIG)
    data = bytearray((folder / file).read_bytes())
    at = data.index(b'"step": 1') + 8 if file == CONFIG_FILE else len(data) - 5
    data[at] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(DamagedFile, match=f"{file} .*copy the checkpoint again"):
        load_system("tiny", folder)


def test_training_goes_on_from_the_newest_intact_checkpoint_and_sampling_does_not(tmp_path, lines):
    system = tiny_system()
    optimizer = torch.optim.SGD(system.trainable())
    folders = [save_system(tmp_path, step, system, CONFIG, optimizer) for step in (1, 2, 3)]
    for folder, file in ((folders[2], ATTENTION_FILE), (folders[1], OPTIMISER_FILE)):
        (folder / file).write_bytes((folder / file).read_bytes()[:-9])
    assert newest_intact_checkpoint(tmp_path, lines[0]) == (1, folders[0])
    assert [line.split(" is damaged")[0] for line in lines[1]] == [folder.name for folder in folders[:0:-1]]
    with pytest.raises(DamagedFile, match=ATTENTION_FILE):
        load_system("tiny", tmp_path)
    (folders[0] / LORA_FILE).unlink()
    with pytest.raises(DamagedFile, match="No intact checkpoint is left"):
        newest_intact_checkpoint(tmp_path, lines[0])
    assert newest_intact_checkpoint(tmp_path / "new", lines[0]) == (0, None)


def test_unfinished_checkpoints_are_swept_and_nothing_else(tmp_path):
    save_system(tmp_path, 1, tiny_system(), CONFIG)
    for name in (".checkpoint-0000002.ab_cd123", ".checkpoint-mine", ".checkpoint-0000002.ab_cd123.old"):
        (tmp_path / name).mkdir()
    assert sweep_checkpoints(tmp_path) == [".checkpoint-0000002.ab_cd123"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path):
    save_system(tmp_path, 1, tiny_system(), CONFIG)
    with pytest.raises(RuntimeError, match="does not fit the model.*--model"):
        load_system("small", tmp_path)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    system = tiny_system()
    save_system(tmp_path, 1, system, CONFIG)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("synthesis.weights.save_file", fail)
    with pytest.raises(OSError, match="cannot write .*disk full.*checkpoint-0000001 of before is intact"):
        save_system(tmp_path, 1, system, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000001"]
    load_system("tiny", tmp_path)
