"""Prompts from text block 0 on, and towers whose last block computes one token: model/prompt_starts.py, blocks.py."""

import gc

import pytest
import torch

from forward_utils import anchors_of_batch, encode_anchors, prompts_of
from model import prompt_starts
from model.adapter import AdaptedCLIP
from model.blocks import block_at, run_blocks
from model.prompt_starts import prompt_start, together
from model.surgery import ValueValueAttention
from utils import allow_tf32

NAMES = ["bottle", "screw", "bottle"]


@pytest.fixture
def clip(new_clip):
    return new_clip()


@pytest.fixture
def model(clip):
    torch.manual_seed(3)
    return AdaptedCLIP(clip, text_adapt_until=2, image_adapt_until=2)


def start_of(clip, name):
    prompts = prompts_of("MVTec", name)
    return prompt_start(clip, prompts.ids, prompts.lengths)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_block_at_one_token_gives_what_the_whole_block_has_there(new_clip, images, autocast):
    visual = new_clip(vision_autocast=autocast).visual
    limits = {"rtol": 1e-4, "atol": 1e-5} if autocast is None else {"rtol": 0.05, "atol": 0.05}
    with torch.no_grad():
        whole = visual.run(visual.embed(images))[0][:, :1]
        for passed in (0, 3, 4):
            x = visual.run(visual.embed(images), stop_after=passed)[0]
            torch.testing.assert_close(visual.run_to_cls(x, passed), whole, **limits)


@pytest.mark.parametrize("kind", ["lean", "value-value"])
def test_a_block_at_the_end_of_prompts_sees_no_token_behind_it(clip, kind):
    torch.manual_seed(0)
    block, end = clip.transformer.resblocks[3], torch.tensor([4, 1, 6])
    if kind == "value-value":
        block.attn = ValueValueAttention(block.attn, across_batch=False)
    x = torch.randn(3, 7, 24, requires_grad=True)
    whole, _ = run_blocks([block], x, attn_mask=clip.attn_mask[:7, :7])
    wanted, found = whole[torch.arange(3), end], block_at(x, block, end)
    torch.testing.assert_close(found[:, 0], wanted, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(one.square().sum(), x)[0] for one in (wanted, found[:, 0])]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    behind = x.detach().clone()
    behind[1, 2:] = 9.0
    torch.testing.assert_close(block_at(behind, block, end)[1], found[1], rtol=1e-4, atol=1e-5)


def test_anchors_from_kept_starts_have_the_gradients_of_whole_prompts(model):
    found = []
    for encode in (model.encode_prompts, None):
        model.zero_grad()
        if encode is None:
            ids = torch.cat([prompts_of("MVTec", name).ids for name in NAMES])
            features = model.text_adapter[-1](whole_text(model, ids))
        else:
            features = encode(*together([start_of(model.clipmodel, name) for name in NAMES]))
        (features / features.norm(dim=-1, keepdim=True)).square().mul(torch.arange(16)).sum().backward()
        gradients = [one.grad.clone() for one in model.text_adapter.parameters()]
        found.append([features.detach(), *gradients])
    for kept, whole in zip(*found, strict=True):
        torch.testing.assert_close(kept, whole, rtol=1e-3, atol=1e-4)


def whole_text(model, ids):
    """All tokens of all blocks, of which the end tokens are taken."""
    clip = model.clipmodel
    tokens = clip.ln_final(clip.text_tokens(ids, model.after_text_block))
    return tokens[torch.arange(len(ids)), ids.argmax(dim=-1)]


def test_block_0_runs_once_per_class_whatever_the_batches(model, monkeypatch):
    seen, text_tokens = [], model.clipmodel.text_tokens
    monkeypatch.setattr(
        model.clipmodel, "text_tokens", lambda ids, **rest: seen.append(len(ids)) or text_tokens(ids, **rest)
    )
    for names in (NAMES, ["screw"], NAMES, ["cable", "screw"]):
        encode_anchors(model, "MVTec", names)
    assert seen == [16, 16, 16]  # bottle, screw, cable
    assert len(prompt_starts._starts[model.clipmodel][1]) == 3


@pytest.mark.bit_equality
def test_a_class_has_the_same_start_whatever_was_asked_before(new_clip):
    first, second = new_clip(), new_clip()
    for clip, names in ((first, ["bottle", "screw"]), (second, ["cable", "screw", "bottle"])):
        for name in names:
            start_of(clip, name)
    for name in ("bottle", "screw"):
        assert torch.equal(start_of(first, name).tokens, start_of(second, name).tokens)


@pytest.mark.parametrize("what", ["written", "loaded", "replaced", "converted"])
def test_starts_do_not_survive_a_change_of_the_weights(model, what):
    clip = model.clipmodel
    before, layer = anchors_of_batch(model, "MVTec", NAMES), clip.transformer.resblocks[0].mlp.c_fc
    changed = layer.weight + torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    if what == "written":
        with torch.no_grad():
            layer.weight.copy_(changed)
    elif what == "loaded":
        clip.load_state_dict(clip.state_dict() | {"transformer.resblocks.0.mlp.c_fc.weight": changed})
    elif what == "replaced":
        layer.weight = torch.nn.Parameter(changed, requires_grad=False)
    else:
        model.double()
    after = anchors_of_batch(model, "MVTec", NAMES)
    assert after.dtype == (torch.float64 if what == "converted" else torch.float32)
    if what != "converted":
        assert not torch.allclose(before, after, atol=1e-4)
        ids = torch.cat([prompts_of("MVTec", name).ids for name in NAMES])
        wanted = model.text_adapter[-1](whole_text(model, ids))
        found = model.encode_prompts(*together([start_of(clip, name) for name in NAMES]))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_tf32_and_float32_have_starts_of_their_own(model):
    allow_tf32(False)
    before = start_of(model.clipmodel, "screw")
    assert start_of(model.clipmodel, "screw") is before
    allow_tf32(True)
    try:
        assert start_of(model.clipmodel, "screw") is not before
    finally:
        allow_tf32(False)


def test_no_more_starts_are_kept_than_a_limit_whatever_words_are_asked_for(model, monkeypatch):
    monkeypatch.setattr(prompt_starts, "MOST", 2)
    for name in ("bottle", "screw", "cable"):
        start_of(model.clipmodel, name)
    kept = [id(prompts_of("MVTec", name).ids) for name in ("screw", "cable")]
    assert list(prompt_starts._starts[model.clipmodel][1]) == kept


def test_starts_end_with_their_backbone_and_serve_training_after_inference(new_clip):
    model = AdaptedCLIP(new_clip(), text_adapt_until=2, image_adapt_until=2)
    with torch.inference_mode():
        anchors_of_batch(model, "MVTec", NAMES)
    anchors_of_batch(model, "MVTec", NAMES).sum().backward()
    assert model.text_adapter[0].fc[0].weight.grad is not None
    count = len(prompt_starts._starts)
    del model
    gc.collect()
    assert len(prompt_starts._starts) < count
