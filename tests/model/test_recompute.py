"""Activation checkpointing: model/recompute.py and `--activation_checkpointing`."""

import pytest
import torch

from forward_utils import anchors_of_batch
from model.adapter import AdaptedCLIP
from model.recompute import RECOMPUTED, recompute_activations


def trained(clip, images):
    """({parameter: gradient} of a loss on both towers, bytes kept for the backward pass)."""
    torch.manual_seed(3)
    model, kept = AdaptedCLIP(clip, text_adapt_until=2, image_adapt_until=2), {}
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        anchors = anchors_of_batch(model, "MVTec", ["bottle", "screw", "bottle", "screw"])
        logits, head = model.compare(images, anchors)
        loss = sum(level.square().mean() for level in logits) + head.sum()
        held = sum(kept.values())
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}, held


@pytest.mark.bit_equality
def test_recomputed_blocks_give_the_same_gradients_and_keep_less(new_clip, images):
    found = {}
    for which in RECOMPUTED:
        clip = new_clip()
        names = list(clip.state_dict())
        recompute_activations(clip, which)
        assert list(clip.state_dict()) == names
        found[which] = trained(clip, images)
    wanted, _ = found["none"]
    assert wanted
    for gradients, _ in found.values():
        assert gradients.keys() == wanted.keys()
        assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)
    none, mlp, full = (found[which][1] for which in RECOMPUTED)
    assert full < mlp < none


def test_without_a_gradient_to_come_nothing_is_computed_twice(new_clip, images, monkeypatch):
    monkeypatch.setattr("model.recompute.checkpoint", None)
    for which in ("mlp", "full"):
        clip = new_clip()
        recompute_activations(clip, which)
        clip.encode_image(images.requires_grad_(False))
        with torch.no_grad():
            clip.encode_image(images.clone().requires_grad_())


def test_another_word_is_refused(clip):
    with pytest.raises(ValueError, match="--activation_checkpointing all: expected one of none, mlp, full"):
        recompute_activations(clip, "all")
