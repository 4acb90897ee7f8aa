"""Optimisers: training/optimisation.py, training/feedback_recipes.py and `--fused_adam`."""

import pytest
import torch
from torch import nn

from run_folder.checkpoints import load_checkpoint, save_checkpoint
from run_folder.flags import settings_of
from run_folder.state import TrainState
from training import feedback_recipes
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
