"""Optimisers: training/optimisation.py, training/feedback_recipes.py and `--fused_adam`."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import nn

from run_folder.checkpoints import load_checkpoint, save_checkpoint
from run_folder.flags import settings_of
from run_folder.settings import CROSS_ATTENTION_GROUPS
from run_folder.state import TrainState
from training import feedback_recipes
from training.loaders import check_other_images
from training.optimisation import adam


def stepped(optimizer, module, steps, start=0):
    """The module's weights after some steps on gradients that depend on the step alone."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for one in module.parameters():
            one.grad = torch.randn(one.shape, generator=generator)
        optimizer.step()
    return [one.detach().clone() for one in module.parameters()]


def new_module():
    torch.manual_seed(0)
    return nn.Linear(8, 4)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_fused_step_gives_the_numbers_of_the_plain_one_up_to_rounding(kind):
    found = []
    for fused in (False, True):
        module = new_module()
        settings = settings_of(feedback_recipes.GROUPS, {"recipe": "v1", "optimizer": kind})
        settings = feedback_recipes.fill_in(settings)
        optimizer = feedback_recipes.optimizer(settings.feedback, {"one": module}, 0.1, fused)
        assert bool(optimizer.param_groups[0]["fused"]) == fused
        found.append(stepped(optimizer, module, 5))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.bit_equality
@pytest.mark.parametrize("fused", [False, True])
def test_a_state_that_is_saved_and_loaded_goes_on_as_if_it_had_not_been(tmp_path, fused):
    whole, module = new_module(), new_module()
    wanted = stepped(adam({"one": whole}, 0.1, fused), whole, 5)
    state = TrainState("text", {"one": module}, adam({"one": module}, 0.1, fused))
    stepped(state.optimizer, module, 3)
    save_checkpoint(tmp_path / "a.pth", state.content())
    later = new_module()
    resumed = TrainState("text", {"one": later}, adam({"one": later}, 0.1, fused))
    resumed.restore(load_checkpoint(tmp_path / "a.pth"), tmp_path / "a.pth")
    assert bool(resumed.optimizer.param_groups[0]["fused"]) == fused
    found = stepped(resumed.optimizer, later, 2, start=3)
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_a_state_of_aa_clip_s_plain_adam_does_not_undo_fused_adam(tmp_path):
    module, later = new_module(), new_module()
    plain = torch.optim.Adam(module.parameters(), lr=0.1, betas=(0.5, 0.999))
    stepped(plain, module, 3)
    content = {"one": module.state_dict(), "text_optimizer": plain.state_dict(), "epoch": 1}
    resumed = TrainState("text", {"one": later}, adam({"one": later}, 0.1, fused=True))
    resumed.restore(deepcopy(content), tmp_path / "text_adapter.pth")  # as a file's, tensors of its own
    assert resumed.optimizer.param_groups[0]["fused"] and not plain.param_groups[0]["fused"]
    for found, wanted in zip(
        stepped(resumed.optimizer, later, 1, start=3), stepped(plain, module, 1, start=3), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "size", "fits"), [(8, 2, True), (7, 2, False), (8, 1, False), (8, 3, True)]
)
def test_a_control_that_needs_another_image_is_refused_where_a_batch_has_one_alone(images, size, fits):
    values = {"anchor_attention": "late", "image_batch_size": size}
    check_other_images(settings_of(CROSS_ATTENTION_GROUPS, values), images)
    settings = settings_of(CROSS_ATTENTION_GROUPS, values | {"anchor_attention_control": "other_image"})
    with nullcontext() if fits else pytest.raises(ValueError, match=f"{images} training images in batches"):
        check_other_images(settings, images)
