"""No step of semantic fill waits for its device: shown on fake CUDA tensors, which need no GPU and have no values."""

import logging

import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from diffusers import FluxTransformer2DModel
from semantic_fill_world import items, parameters_of, tiny_system, triptychs
from torch._subclasses.fake_tensor import FakeTensorMode

from synthesis import training
from synthesis.attention import SemanticLayers, places
from synthesis.backbone import Backbone, tiny_config
from synthesis.euler import euler_step
from synthesis.flow import flow_matching_loss
from synthesis.fusion import SemanticFusion
from synthesis.latents import Encoded, fill_mask_of, filled_tokens
from synthesis.text import Prompt

LOGGER = logging.getLogger("semantic fill tests")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def fake(request):
    """(backbone, encoded, prompt, noisy) of a batch of 2 at 32 pixels on a CUDA device that is not there."""
    dtype, usual = request.param, torch.get_default_dtype()
    with FakeTensorMode(), torch.device("cuda"):
        torch.set_default_dtype(dtype)
        try:
            transformer = FluxTransformer2DModel(**tiny_config("tiny"))
        finally:
            torch.set_default_dtype(usual)
        encoded = Encoded(
            clean=torch.empty(2, 8, 64),
            condition=torch.empty(2, 8, 320),
            semantic=torch.empty(2, 4, 64),
            token_places=places(2, 2, panels=2, device="cuda"),
            semantic_places=places(2, 2, device="cuda"),
            ids=torch.empty(8, 3),
        )
        prompt = Prompt(torch.empty(2, 32, 32, dtype=dtype), torch.empty(2, 32, dtype=dtype))
        noisy = torch.empty(2, 8, 64, dtype=dtype)
        yield Backbone("tiny", transformer, None, None, dtype, 1.0), encoded, prompt, noisy


@pytest.mark.parametrize("semantic", [SemanticLayers, SemanticFusion])
def test_the_samplers_step_asks_the_device_nothing(fake, semantic):
    backbone, encoded, prompt, noisy = fake
    times = torch.empty(3)
    with torch.no_grad():
        after = euler_step(backbone, semantic(), noisy, encoded, prompt, times[0], times[1], 1.0)
    assert (after.device.type, after.shape, after.dtype) == ("cuda", noisy.shape, noisy.dtype)


@pytest.mark.parametrize("fill_share", [None, 0.5])
def test_the_training_loss_asks_the_device_nothing(fake, fill_share):
    backbone, encoded, prompt, _ = fake
    noise, keep = torch.empty(2, 8, 64), torch.empty(2, dtype=torch.bool)
    loss = flow_matching_loss(
        backbone, SemanticLayers(), encoded, prompt, torch.empty(2), noise, keep, fill_share
    )
    assert loss.device.type == "cuda" and loss.shape == ()


def test_masks_and_places_are_made_on_the_device():
    with FakeTensorMode(), torch.device("cuda"):
        assert fill_mask_of(torch.empty(1, 3, 32, 32), "semantic").device.type == "cuda"
        assert filled_tokens(torch.empty(1, 8, 320)).device.type == "cuda"


def test_from_a_loss_that_is_not_finite_on_nothing_moves_and_nothing_is_saved(monkeypatch):
    """The third of ten steps has a NaN; it is found at the log line, and the parameters are those after the second."""
    plan = training.Schedule(10, 2, 0, "a defect", "semantic", log_every=10, save_every=10)
    expected = tiny_system(1)
    training.train(expected, items(triptychs(4)), optimizer_of(expected), plan._replace(steps=2), LOGGER)
    system, saved, whole = tiny_system(1), [], training.training_loss

    def broken(system, batch, schedule, step):
        return whole(system, batch, schedule, step) * (float("nan") if step == 2 else 1)

    monkeypatch.setattr(training, "training_loss", broken)
    with pytest.raises(FloatingPointError, match="step 3: loss nan.*--lr.*No parameter has moved"):
        training.train(system, items(triptychs(4)), optimizer_of(system), plan, LOGGER, save=saved.append)
    assert saved == []
    wanted = parameters_of(expected)
    assert all(torch.equal(value, wanted[name]) for name, value in parameters_of(system).items())


def optimizer_of(system):
    return training.make_optimizer("adamw", system.trainable(), 1e-2)


def test_losses_are_read_once_per_log_interval(monkeypatch):
    reads, whole = [], training.StepGuard.read
    monkeypatch.setattr(
        training.StepGuard, "read", lambda guard, step: reads.append(step) or whole(guard, step)
    )
    system = tiny_system()
    plan = training.Schedule(6, 2, 0, "a defect", "semantic", log_every=3)
    training.train(system, items(triptychs(4)), optimizer_of(system), plan, LOGGER)
    assert reads == [3, 6]
