"""The block loop, the frozen backbone and its tokenizer: model/blocks.py, clip.py, tokenizer.py."""

import hashlib
import inspect
import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from files.digests import state_digest
from model.blocks import run_blocks
from model.clip import create_model, surgery_copy
from model.tokenizer import tokenize

TEXTS = ["a photo of a damaged dark bottle.", "screw.", "the oval white pill with small red speckles."]


class AddOne:
    """A block that adds its number; counts its calls."""

    def __init__(self, number):
        self.number, self.calls = number, 0

    def __call__(self, x, attn_mask=None):
        self.calls += 1
        return x + self.number


@pytest.fixture
def blocks():
    return [AddOne(number) for number in (1, 10, 100, 1000)]


def test_run_blocks_returns_the_last_tokens_and_the_levels_in_the_order_asked_for(blocks):
    x, levels = run_blocks(blocks, torch.zeros(1), levels=(3, 1))
    assert x.item() == 1111
    assert [level.item() for level in levels] == [111, 1]


def test_run_blocks_stops_after_the_given_number_of_blocks(blocks):
    x, levels = run_blocks(blocks, torch.zeros(1), levels=(2,), stop_after=2)
    assert (x.item(), levels[0].item()) == (11, 11)
    assert [block.calls for block in blocks] == [1, 1, 0, 0]
    assert run_blocks(blocks, torch.zeros(1), stop_after=0)[0].item() == 0


def test_the_hook_sees_every_block_from_zero_and_its_result_is_collected_and_passed_on(blocks):
    seen = []

    def double_first(i, x):
        seen.append(i)
        return 2 * x if i == 0 else x

    x, levels = run_blocks(blocks, torch.zeros(1), levels=(1, 2), after_block=double_first)
    assert seen == [0, 1, 2, 3]
    assert (levels[0].item(), levels[1].item(), x.item()) == (2, 12, 1112)


@pytest.mark.parametrize(("levels", "stop"), [((0,), None), ((5,), None), ((1, 3), 2)])
def test_levels_outside_the_blocks_that_run_are_refused(blocks, levels, stop):
    with pytest.raises(ValueError, match=rf"levels \[{levels[-1]}\] lie outside 1..{stop or 4}"):
        run_blocks(blocks, torch.zeros(1), levels=levels, stop_after=stop)


def test_default_levels_are_the_quarters_of_the_depth(clip, model_name, tmp_path):
    assert clip.default_levels == [1, 2, 3, 4]
    config = open_clip.get_model_config(model_name)
    config["vision_cfg"]["layers"] = 24
    (tmp_path / "ViT-Test-24.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(tmp_path)
    assert create_model("ViT-Test-24", 32).default_levels == [6, 12, 18, 24]


def test_encode_image_equals_open_clips(clip, open_clip_model, images):
    pooled, levels = clip.encode_image(images, [2, 4])
    pooled_there = open_clip_model.encode_image(images)
    assert (pooled - pooled_there).abs().max() < 1e-6 * pooled_there.abs().max()
    want = open_clip_model.visual.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    for level, tokens in zip(levels, want["image_intermediates"], strict=True):
        assert level.shape == (4, 17, 32)
        got = level[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(got, tokens, rtol=1e-5, atol=1e-5)
    assert clip.encode_image(images)[1] == []


def test_encode_text_equals_open_clips_although_padding_columns_are_cut(clip, open_clip_model):
    tokens = tokenize(TEXTS)
    want = open_clip_model.encode_text(tokens)
    assert (clip.encode_text(tokens) - want).abs().max() < 1e-6 * want.abs().max()
    alone = torch.cat([clip.encode_text(row[None]) for row in tokens])
    torch.testing.assert_close(clip.encode_text(tokens), alone, rtol=1e-5, atol=1e-5)


def test_quick_gelu_is_off_as_in_aa_clip_and_its_flag_gives_open_clips_quick_gelu_network(
    new_clip, clip, open_clip_model, model_name, images
):
    corrected = new_clip(quick_gelu=True)
    reference = open_clip.create_model(model_name, force_quick_gelu=True).eval()
    reference.load_state_dict(open_clip_model.state_dict())
    kept = clip.encode_image(images)[0]
    with torch.no_grad():
        torch.testing.assert_close(corrected.encode_image(images)[0], reference.encode_image(images))
        torch.testing.assert_close(
            corrected.encode_text(tokenize(TEXTS)), reference.encode_text(tokenize(TEXTS))
        )
    assert not torch.allclose(kept, corrected.encode_image(images)[0], atol=1e-3)


def test_create_model_keeps_upstreams_signature_and_the_rest_is_keyword_only():
    parameters = inspect.signature(create_model).parameters
    positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional[:5] == ["model_name", "img_size", "pretrained", "precision", "device"]
    defaults = {
        name: parameters[name].default for name in ("pretrained", "precision", "device", "require_pretrained")
    }
    assert defaults == {"pretrained": None, "precision": "fp32", "device": "cpu", "require_pretrained": False}
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name not in positional)


def test_the_model_has_the_attributes_upstreams_users_reach_for(clip):
    for path in (
        "visual.DAPM_replace",
        "visual.ln_post",
        "visual.proj",
        "token_embedding",
        "positional_embedding",
        "transformer.resblocks",
        "ln_final",
        "attn_mask",
    ):
        part = clip
        for name in path.split("."):
            part = getattr(part, name)
    assert clip.embed_dim == 16
    assert set(dict(clip.named_parameters())) <= set(create_names(clip))


def create_names(clip):
    """Parameter names of open_clip's model of the same architecture."""
    return dict(open_clip.create_model("ViT-Test-8").named_parameters())


def test_the_backbone_is_frozen_and_in_eval_mode(clip):
    assert not clip.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_random_weights_need_no_file_and_require_pretrained_refuses_them(model_name):
    assert create_model(model_name, 32).encode_image(torch.zeros(1, 3, 32, 32))[0].shape == (1, 16)
    with pytest.raises(ValueError, match="pretrained"):
        create_model(model_name, 32, require_pretrained=True)


def test_precision_chooses_the_dtype_and_an_unknown_one_is_refused(model_name):
    assert create_model(model_name, 32, precision="bf16").visual.proj.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="'fp8'.*bf16"):
        create_model(model_name, 32, precision="fp8")


def test_an_unknown_architecture_is_named():
    with pytest.raises(ValueError, match="ViT-Z-99.*unknown.*ViT-L-14-336"):
        create_model("ViT-Z-99", 32)


@pytest.mark.parametrize(
    "name", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "roberta-ViT-B-32", "convnext_base"]
)
def test_architectures_that_cannot_be_adapted_are_refused_before_they_are_built(name):
    with pytest.raises(ValueError, match=f"{name}: needs"):
        create_model(name, 224)


def test_an_image_smaller_than_a_patch_is_refused(model_name):
    with pytest.raises(ValueError, match="--img_size 7 is smaller"):
        create_model(model_name, 7)


def test_images_of_another_size_than_the_positions_are_refused(clip):
    with pytest.raises(ValueError, match=r"\(40, 40\).*\(32, 32\).*--img_size"):
        clip.encode_image(torch.zeros(1, 3, 40, 40))


def test_tokenize_gives_clips_tokens_for_one_text_or_many():
    tokens = tokenize("screw.")
    assert tokens.shape == (1, 77) and tokens.dtype == torch.int64
    assert tokens[0, 0] == 49406 and tokens[0].argmax() == 3 and tokens[0, 3] == 49407
    assert torch.equal(tokenize(TEXTS), open_clip.tokenize(TEXTS))


def test_a_text_longer_than_the_context_is_refused_unless_it_may_be_cut():
    long = "screw " * 100
    with pytest.raises(ValueError, match="needs 102 tokens, the text tower takes 77"):
        tokenize(long)
    cut = tokenize(long, truncate=True)
    assert cut.shape == (1, 77) and cut[0, -1] == 49407


def test_a_backbone_says_which_file_its_weights_are_from(new_clip, weights, model_name):
    clip = new_clip()
    assert clip.source[:2] == (weights.name, hashlib.sha256(weights.read_bytes()).hexdigest())
    assert clip.source._asdict() == {
        "file": weights.name,
        "sha256": clip.source.sha256,
        "tensors": state_digest(load_file(weights)),
    }
    assert surgery_copy(clip, 3).source is clip.source and not any(
        "source" in name for name in clip.state_dict()
    )
    assert create_model(model_name, 32).source is None  # random weights
