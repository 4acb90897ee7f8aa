"""`--compile`: model/compiled.py. The regions are traced by a backend that compiles nothing, so that this is quick."""

import shutil
from functools import partial

import open_clip
import pytest
import torch
from cross_attention_world import CONFIG

import train
import train_cross_attention
from forward_utils import fixed_anchors
from forward_utils_cross_attention import (
    anchors_after_stage_1,
    text_context_dictionary,
    trained_image_features,
)
from model import compiled
from model.adapter import AdaptedCLIP
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import CLIP, surgery_copy
from model.recompute import recompute_activations
from run_folder.flags import settings_of
from run_folder.session import Session
from run_folder.settings import BASELINE_GROUPS, CROSS_ATTENTION_GROUPS
from training import feedback
from training.optimisation import only_training
from training.stages import segmentation

DATASET, CLASSES = "MVTec", ["bottle", "screw", "bottle", "cable"]


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Regions are traced whole and run as they are."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def batch_of(count):
    generator = torch.Generator().manual_seed(count)
    draw = partial(torch.randn, generator=generator)
    return {
        "image": draw(count, 3, 32, 32),
        "mask": (draw(count, 1, 32, 32) > 0).float(),
        "label": torch.arange(count) % 2,
        "class_name": CLASSES[:count],
    }


def built(kind, compiles, autocast=None, recompute="none"):
    """(model, surgery model) of fixed weights, with regions where `compiles`."""
    torch.manual_seed(0)
    clip = CLIP(open_clip.CLIP(**CONFIG), autocast=autocast).requires_grad_(False).eval()
    recompute_activations(clip, recompute)
    surgery, settings = surgery_copy(clip, 3), {}
    if kind is not AdaptedCLIP:
        settings = {"self_reference": 0.3}
    model = kind(clip, text_adapt_until=2, image_adapt_until=2, **settings)
    if compiles:
        compiled.compile_blocks(clip.transformer, clip.visual.transformer, surgery.visual.transformer)
        compiled.compile_adapters(model)
    return model, surgery


def stages_of(script, model, surgery):
    """[(what a stage trains, its loss)] of a script, of feedback's second loop."""
    baseline = script == "baseline"
    settings = settings_of(BASELINE_GROUPS if baseline else CROSS_ATTENTION_GROUPS, {"dataset": DATASET})
    if baseline:
        losses = (
            train.text_loss(model, surgery, settings),
            train.image_loss(model, fixed_anchors(model, DATASET), settings),
        )
    elif script == "cross-attention":
        contexts = text_context_dictionary(model, DATASET)
        losses = (
            train_cross_attention.text_loss(model, surgery, settings),
            train_cross_attention.image_loss(model, contexts, fixed_anchors(model, DATASET), settings),
        )
    else:
        run = feedback.Run(
            Session(settings, torch.device("cpu"), None), model, surgery, None, None, None, None
        )
        contexts = text_context_dictionary(model, DATASET)
        features = trained_image_features(model, contexts)
        anchors_of = anchors_after_stage_1(model, DATASET, "none", None)
        losses = feedback.text_loss(run, features, True), feedback.image_loss(run, contexts, anchors_of)
    return list(zip((model.text_modules, model.image_modules), losses, strict=True))


def gradients(script, compiles, counts=(4, 2), first=0, **options):
    """Losses and gradients of the stages from `first` on, on batches of these sizes, one after the other."""
    kind = AdaptedCLIP if script == "baseline" else AdaptedCLIPWithCrossAttention
    model, surgery = built(kind, compiles, **options)
    torch.manual_seed(1)
    found = []
    for modules, step_loss in stages_of(script, model, surgery)[first:]:
        if compiles:
            step_loss = partial(step_loss, segment=compiled.region(segmentation))
        with only_training(model, modules):
            for count in counts:
                loss = sum(step_loss(batch_of(count)).values())
                parameters = [one for module in modules.values() for one in module.parameters()]
                found += [loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)]
    return [one for one in found if one is not None]


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("cross-attention", {}),
        pytest.param("baseline", {"recompute": "mlp"}, marks=pytest.mark.slow),
        pytest.param("baseline", {"recompute": "full", "autocast": torch.bfloat16}, marks=pytest.mark.slow),
        pytest.param("feedback", {}, marks=pytest.mark.slow),
    ],
)
def test_no_region_of_a_step_breaks_its_graph_and_the_numbers_stay(script, options):
    wanted = gradients(script, False, **options)
    assert not torch._dynamo.utils.counters["stats"]
    found = gradients(script, True, **options)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 6
    assert not torch._dynamo.utils.counters["graph_break"]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_graph_break_in_a_region_is_an_error():
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled.region(lambda x: x * float(x.sum().item()) if x.sum() > 0 else x)(torch.ones(2))


def test_compiled_blocks_keep_the_names_of_their_weights():
    (plain, _), (regions, _) = built(AdaptedCLIP, False), built(AdaptedCLIP, True)
    assert list(plain.state_dict()) == list(regions.state_dict())


@pytest.mark.parametrize(
    ("device", "patched", "said"),
    [
        (
            "cpu",
            {"torch._inductor.cpp_builder.get_cpp_compiler": None},
            "there is no C.. compiler.*install g",
        ),
        (
            "cpu",
            {"sysconfig.get_paths": lambda: {"include": "/nowhere"}},
            "Python.h.* missing; install python3-dev",
        ),
        ("cuda", {"torch.utils._triton.has_triton": lambda: False}, "triton is missing"),
        ("cpu", {"torch._dynamo.is_dynamo_supported": lambda: False}, "does not know this version of Python"),
    ],
)
def test_a_missing_compiler_is_said_before_anything_is_trained(monkeypatch, device, patched, said):
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    for name, value in patched.items():
        monkeypatch.setattr(name, value)
    with pytest.raises(RuntimeError, match=f"--compile: .*{said}.*, or leave the flag away"):
        compiled.check_compiler(device)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_code_has_the_numbers_of_the_eager_one_within_a_tolerance(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    compiled.check_compiler("cpu")
    stage = {"counts": (4,), "first": 1}  # stage 2 alone: it compiles for minutes on one core
    found = (gradients("baseline", compiles, **stage) for compiles in (True, False))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
