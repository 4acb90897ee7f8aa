"""The pretraining of the tiny CLIP, and the weights it shipped."""

import json

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.model import CLIP

from tiny_clip import pretrain, schedule, zero_shot_report
from tiny_clip.caption_bank import BankPlan, content_words, open_bank, scene_words
from tiny_clip.caption_batches import CaptionBatches
from tiny_clip.optimisation import contrastive_loss
from tiny_clip.towers import encode_image, encode_text
from tiny_clip.zero_shot_report import held_out_pictures, name_accuracy, open_model

MINIATURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
STAGES = (
    schedule.Stage(0.5, (24, 16), 4, 16),
    schedule.Stage(0.5, (32,), None, 8),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    (folder / "miniature.json").write_text(json.dumps(MINIATURE))
    open_bank(folder / "bank", BankPlan(48, 40, 3, 0), 1)
    return folder


def flags(cache, run, steps=20, *more):
    """A run in its own folder on the shared bank."""
    folder = cache / run
    folder.mkdir(exist_ok=True)
    if not (folder / "bank").exists():
        (folder / "bank").symlink_to(cache / "bank")
    return [
        "--cache",
        str(folder),
        "--config",
        str(cache / "miniature.json"),
        "--output",
        str(folder / "out.safetensors"),
        "--steps",
        str(steps),
        "--images",
        "48",
        "--bank_size",
        "40",
        "--captions",
        "3",
        "--processes",
        "1",
        "--precision",
        "fp32",
        "--log_every",
        "1",
        "--save_every",
        "10",
        *more,
    ]


@pytest.fixture(autouse=True)
def short_stages(monkeypatch):
    monkeypatch.setattr(schedule, "STAGES", STAGES)


def losses(folder):
    lines = (folder / "pretrain.log").read_text().splitlines()
    return [float(line.split("loss ")[1].split()[0]) for line in lines if "loss " in line]


def test_twenty_steps_lower_the_loss_and_write_loadable_weights(cache):
    pretrain.main(flags(cache, "whole"))
    found = losses(cache / "whole")
    assert len(found) == 20
    assert np.mean(found[-5:]) < np.mean(found[:5]) - 0.1
    state = safetensors.torch.load_file(cache / "whole/out.safetensors")
    CLIP(**MINIATURE).load_state_dict(state, strict=True)
    larger = {key for key, value in state.items() if value.dtype != torch.float16}
    assert larger == {"visual.positional_embedding"}


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(cache, monkeypatch):
    pretrain.main(flags(cache, "straight"))
    draw = CaptionBatches.draw

    def interrupted(self, step, rank, image_size, count):
        if step == 13:
            raise KeyboardInterrupt
        return draw(self, step, rank, image_size, count)

    monkeypatch.setattr(CaptionBatches, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(flags(cache, "broken"))
    monkeypatch.setattr(CaptionBatches, "draw", draw)
    pretrain.main(flags(cache, "broken"))
    straight = safetensors.torch.load_file(cache / "straight/out.safetensors")
    broken = safetensors.torch.load_file(cache / "broken/out.safetensors")
    assert all(torch.equal(straight[key], broken[key]) for key in straight)


def test_two_processes_train_together(cache):
    arguments = flags(cache, "two", 2, "--processes", "2")
    pretrain.main(arguments)
    assert len(losses(cache / "two")) >= 2
    state = safetensors.torch.load_file(cache / "two/out.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_checkpoint_of_another_run_is_refused(cache):
    pretrain.main(flags(cache, "settings", 2))
    with pytest.raises(ValueError, match="another --cache"):
        pretrain.main(flags(cache, "settings", 2, "--lr", "0.5"))


def test_a_bank_of_another_plan_is_refused(cache):
    with pytest.raises(ValueError, match="another --cache"):
        open_bank(cache / "bank", BankPlan(48, 32, 3, 0), 1)


def test_the_training_towers_equal_open_clips():
    torch.manual_seed(0)
    model = CLIP(**MINIATURE)
    images = torch.randn(3, 3, 32, 32)
    tokens = open_clip.get_tokenizer("ViT-B-32")(
        ["a photo of a red washer", "wood", "a damaged gear on blue"]
    )
    assert torch.allclose(encode_image(model.visual, images), model.encode_image(images), atol=1e-5)
    assert torch.allclose(encode_text(model, tokens), model.encode_text(tokens), atol=1e-5)


def test_positions_resize_as_open_clip_resizes_them():
    torch.manual_seed(0)
    model = CLIP(**MINIATURE)
    larger = json.loads(json.dumps(MINIATURE))
    larger["vision_cfg"]["image_size"] = 48
    resized = CLIP(**larger)
    state = model.state_dict()
    open_clip.model.resize_pos_embed(state, resized)
    resized.load_state_dict(state)
    images = torch.randn(2, 3, 48, 48)
    assert torch.allclose(encode_image(model.visual, images), resized.encode_image(images), atol=1e-5)


def test_a_caption_that_is_true_of_another_image_is_no_negative():
    image = torch.eye(2)
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    also_true = torch.tensor([[False, True], [False, False]])
    loss, _ = contrastive_loss(image, text, torch.tensor(1.0), also_true)
    log_half = float(np.log(2))
    # image 0: alone 0; image 1: two equal logits; text 0: logits 1 and 0; text 1: alone 0
    assert loss.item() == pytest.approx((log_half / 2 + np.log(1 + np.exp(-1)) / 2) / 2, abs=1e-6)


def test_every_caption_of_the_bank_is_true_of_its_own_scene(cache):
    bank = open_bank(cache / "bank", BankPlan(48, 40, 3, 0), 1)
    known = frozenset().union(*bank.words)
    for captions, words in zip(bank.captions, bank.words, strict=True):
        for text in captions:
            assert content_words(text) & known <= words, text


def test_scene_words_tell_a_damaged_scene_from_a_sound_one():
    from demo_world.rendering import Scene

    assert "damaged" in scene_words(Scene("washer", "red", "metal", damage="scratch"))
    assert "damaged" not in scene_words(Scene("washer", "red", "metal"))


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    rates = [schedule.schedule(step, 1000) for step in (0, 99, 599, 600, 800, 999)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 1.0, 0.5, 0.0025])


def test_the_stages_follow_their_shares():
    assert [schedule.stage_at(step, 10).batch for step in (0, 4, 5, 9)] == [16, 16, 8, 8]


@pytest.mark.skipif(not pretrain.WEIGHTS.exists(), reason="no weights are shipped in this checkout")
def test_the_shipped_weights_are_small_load_strictly_and_know_what_they_see():
    assert pretrain.WEIGHTS.stat().st_size <= 25_000_000
    model = open_model(pretrain.WEIGHTS, 128)
    assert name_accuracy(model, held_out_pictures(model, 86, seed=7)) >= 0.65


@pytest.mark.skipif(not pretrain.WEIGHTS.exists(), reason="no weights are shipped in this checkout")
def test_the_report_of_what_the_weights_know_is_written_with_its_command(tmp_path, capsys):
    output = tmp_path / "new" / "report.json"
    zero_shot_report.main(["--sizes", "64", "--images", "6", "--seed", "3", "--output", str(output)])
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["command"] == "python -m tiny_clip.zero_shot_report --sizes 64 --images 6 --seed 3"
    figures = report["by_image_size"]["64"]
    assert 1 <= figures.pop("names_shown") <= 6 and len(figures) == 5
    assert all(0 <= figure <= 1 for figure in figures.values())
    assert capsys.readouterr().out.startswith("64 px: {'things_top1': ")
    missing = ["--weights", str(tmp_path / "none.safetensors"), "--output", str(output)]
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        zero_shot_report.main(missing)
