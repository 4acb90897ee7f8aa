"""Training and test steps on a CUDA device, as far as a machine without one can tell: no wait, no mix of devices."""

from functools import partial

import open_clip
import pytest
import torch
from cross_attention_world import CONFIG
from fake_cuda import NoWaits, built_on_cuda, fake_cuda

import train
import train_cross_attention
from dataset.constants import CLASS_NAMES
from evaluation.scorer import AnomalyScorer, RawCLIP, both_pairs
from forward_utils import class_tokens, fixed_anchors, frozen_image_features
from forward_utils_cross_attention import (
    anchors_after_stage_1,
    first_level,
    mean_anchors,
    one_by_one,
    text_context_dictionary,
    trained_image_features,
)
from model.adapter import AdaptedCLIP
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import CLIP, full_precision, surgery_copy
from model.mixing import BothSides, mixed_anchors
from model.recompute import recompute_activations
from run_folder.flags import settings_of
from run_folder.guarded_step import LeftOut
from run_folder.session import Session
from run_folder.settings import BASELINE_GROUPS, CROSS_ATTENTION_GROUPS
from run_folder.state import TrainState
from training import feedback
from training.engine import StagePlan, train_step
from training.epoch import EpochSums
from training.feedback_recipes import GROUPS as FEEDBACK_GROUPS
from training.finite_steps import FiniteSteps
from training.optimisation import adam, only_training, parameters_of
from training.watch import Watch

SIZE, DATASET = 48, "BTAD"  # 6 x 6 patches: enough for the blur of medical maps
ARCHITECTURE = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"image_size": SIZE}}
NAMES = ["01", "02", "01", "03"]


PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(params=["fp32", "bf16"])
def world(request, monkeypatch):
    """Function (AdaptedCLIP's class, **its settings) -> (model, surgery) on a fake CUDA device, in training mode."""
    for name in CLASS_NAMES[DATASET]:
        class_tokens(DATASET, name)  # made on the CPU, once per class, before any step

    def build(kind=AdaptedCLIP, **settings):
        with built_on_cuda():
            autocast = None if request.param == "fp32" else PRODUCTS[request.param]
            clip = CLIP(open_clip.CLIP(**ARCHITECTURE), autocast=autocast).requires_grad_(False).eval()
            model = kind(clip, text_adapt_until=2, image_adapt_until=2, **settings).train()
        return model, surgery_copy(clip, 3)

    build.products = PRODUCTS[request.param]
    with fake_cuda(monkeypatch):
        yield build


@pytest.fixture
def batch():
    """A training batch on the device; made under the mode of `world`."""

    def make():
        return {
            "image": torch.randn(4, 3, SIZE, SIZE, device="cuda"),
            "mask": torch.zeros(4, 1, SIZE, SIZE, device="cuda"),
            "label": torch.zeros(4, dtype=torch.int64, device="cuda"),
            "class_name": NAMES,
            "file_name": ["a.png", "b.png", "c.png", "d.png"],
        }

    return make


def of_flags(groups, **values):
    return settings_of(groups, {"dataset": DATASET, "img_size": SIZE, "text_cls_weight": 1.0} | values)


def check(step_loss, batch):
    """One loss on the device, summed as the engine does, without a wait."""
    with NoWaits():
        loss = sum(step_loss(batch).values())
    assert loss.device.type == "cuda" and loss.shape == () and loss.dtype == torch.float32
    return loss


def test_the_vision_blocks_multiply_in_the_type_that_is_asked_for(world, batch):
    model, seen = world()[0], []
    layer = model.clipmodel.visual.transformer.resblocks[1].mlp.c_fc
    layer.register_forward_hook(lambda module, arguments, product: seen.append(product.dtype))
    model(batch()["image"])
    assert seen == [world.products]


@pytest.mark.parametrize("world", ["fp16"], indirect=True)
def test_in_float16_the_blocks_alone_are_so_and_the_stages_do_not_wait_for_the_device(world, batch):
    test_the_vision_blocks_multiply_in_the_type_that_is_asked_for(world, batch)
    test_cross_attentions_stages_do_not_wait_for_the_device(world, batch, "class", "none", {})
    model = world(AdaptedCLIPWithCrossAttention)[0]
    with full_precision(model.clipmodel):
        seg, det = model(batch()["image"])
    assert {one.dtype for one in (*seg, det)} == {torch.float32}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["text", "image"])
def test_a_whole_step_with_backward_pass_and_optimiser_reads_nothing_of_its_device(name, scaled, monkeypatch):
    """On the meta device: a fake CUDA tensor has no backward pass without a GPU."""
    for class_name in CLASS_NAMES[DATASET]:
        class_tokens(DATASET, class_name)
    with torch.device("meta"):
        clip = CLIP(open_clip.CLIP(**ARCHITECTURE)).requires_grad_(False).eval()
        kind = {"text_adapt_until": 2, "image_adapt_until": 2, "self_reference": 0.3}
        model = AdaptedCLIPWithCrossAttention(clip, **kind).train()
        image, mask, label = torch.randn(4, 3, SIZE, SIZE), torch.zeros(4, 1, SIZE, SIZE), torch.zeros(4)
    batch = {"image": image, "mask": mask, "mask_known": label, "label": label.long(), "class_name": NAMES}
    settings = of_flags(CROSS_ATTENTION_GROUPS)
    if name == "text":
        loss = train_cross_attention.text_loss(model, surgery_copy(clip, 3), settings)
        modules = model.text_modules
    else:
        contexts, anchors_of = text_context_dictionary(model, DATASET), fixed_anchors(model, DATASET)
        loss = train_cross_attention.image_loss(model, contexts, anchors_of, settings)
        modules = model.image_modules
    # as on CUDA: its optimisers move all tensors at once
    optimizer = torch.optim.Adam(parameters_of(modules), lr=1e-3, foreach=True)
    state = TrainState(name, modules, optimizer, scaler=torch.amp.GradScaler("meta") if scaled else None)
    plan = StagePlan(1, clip_norm=1.0, log_gradient_norms_of=modules, left_out=LeftOut(3, print))
    steps, sums = FiniteSteps(state, 50, plan.left_out), EpochSums(modules)
    with only_training(model, modules), NoWaits("meta"):
        for _ in range(2):
            terms, norms, taken, overflowed = train_step(steps, loss, batch, plan)
            sums.add(terms, norms, taken, overflowed)
    assert all(one.grad is not None and one.grad.device.type == "meta" for one in parameters_of(modules))
    assert taken.shape == () and (overflowed is not None) == scaled and sums.steps == 2
    with pytest.raises(RuntimeError, match="meta"):  # such a tensor would have been seen
        steps.look()


@pytest.mark.parametrize("levels", ["last", "all"])
def test_the_baselines_stages_do_not_wait_for_the_device(world, batch, levels):
    model, surgery = world()
    settings = of_flags(BASELINE_GROUPS, text_loss_levels=levels)
    check(train.text_loss(model, surgery, settings), batch())
    check(train.image_loss(model, fixed_anchors(model, DATASET), settings), batch())


@pytest.mark.parametrize("which", ["mlp", "full"])
def test_blocks_that_the_backward_pass_computes_again_do_not_wait_for_the_device(world, batch, which):
    model, _ = world()
    recompute_activations(model.clipmodel, which)
    check(train.image_loss(model, fixed_anchors(model, DATASET), of_flags(BASELINE_GROUPS)), batch())


@pytest.mark.parametrize(
    ("scope", "control", "reference"),
    [
        ("class", "none", {}),
        ("batch", "none", {"self_reference": 0.3}),
        ("class", "other_class", {"self_reference": 0.3, "self_reference_head": 0}),
        ("class", "constant", {}),
    ],
)
def test_cross_attentions_stages_do_not_wait_for_the_device(world, batch, scope, control, reference):
    model, surgery = world(AdaptedCLIPWithCrossAttention, **reference)
    settings = of_flags(CROSS_ATTENTION_GROUPS, context_scope=scope, context_control=control)
    check(train_cross_attention.text_loss(model, surgery, settings), batch())
    contexts = text_context_dictionary(model, DATASET, control)
    anchors_of = fixed_anchors(model, DATASET)
    check(train_cross_attention.image_loss(model, contexts, anchors_of, settings), batch())


def test_attentions_made_trainable_and_a_decoder_of_anchors_do_not_wait_for_the_device_nor_who_watches(
    world, batch
):
    trainable = {"cross_attn_qk_norm": True, "cross_attn_gate": "zero", "split_text_context": True}
    model, surgery = world(AdaptedCLIPWithCrossAttention, anchor_decoder=1, **trainable)
    settings, anchors_of = of_flags(CROSS_ATTENTION_GROUPS), fixed_anchors(model, DATASET)
    contexts = text_context_dictionary(model, DATASET)
    for modules, step_loss in (
        (model.text_modules, train_cross_attention.text_loss(model, surgery, settings)),
        (model.image_modules, train_cross_attention.image_loss(model, contexts, anchors_of, settings)),
    ):
        watch = Watch(modules)
        with watch.looking():
            check(step_loss, batch())
        assert "attention_entropy" in watch.sums


@pytest.mark.parametrize("control", ["constant", "shuffled"])
def test_self_reference_under_its_controls_does_not_wait_for_the_device(world, batch, control):
    model, _ = world(AdaptedCLIPWithCrossAttention, self_reference=0.3, self_reference_control=control)
    settings = of_flags(CROSS_ATTENTION_GROUPS)
    check(train_cross_attention.image_loss(model, {}, fixed_anchors(model, DATASET), settings), batch())


@pytest.mark.parametrize("text_context", ["none", "train_mean", "image"])
def test_anchors_with_every_kind_of_image_context_do_not_wait_for_the_device(world, batch, text_context):
    model, surgery = world(AdaptedCLIPWithCrossAttention)
    settings = of_flags(CROSS_ATTENTION_GROUPS, text_context=text_context)
    patches = first_level(frozen_image_features(model, surgery, model.levels[:1]), model)
    means = mean_anchors(model, DATASET, [batch()], patches) if text_context == "train_mean" else None
    anchors_of = anchors_after_stage_1(model, DATASET, text_context, patches, means)
    contexts = text_context_dictionary(model, DATASET)
    check(train_cross_attention.image_loss(model, contexts, anchors_of, settings), batch())


@pytest.mark.parametrize(("attends", "gate"), [(False, "fixed"), (True, "learned")])
def test_a_later_feedback_loop_does_not_wait_for_the_device(world, batch, attends, gate):
    model, surgery = world(AdaptedCLIPWithCrossAttention, cross_attn_gate=gate, image_cross_attn_after=1)
    session = Session(of_flags(CROSS_ATTENTION_GROUPS), torch.device("cuda"), None)
    run = feedback.Run(session, model, surgery, None, None, None, None)
    contexts = text_context_dictionary(model, DATASET)
    features = trained_image_features(model, contexts if attends else {})
    check(feedback.text_loss(run, features, attends), batch())
    anchors_of = anchors_after_stage_1(model, DATASET, "image", first_level(features, model))
    check(feedback.image_loss(run, contexts if attends else {}, anchors_of), batch())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("more", [0, 10])
def test_the_optimisers_step_and_its_guard_do_not_wait_for_the_device(world, fused, more):
    model, _ = world()
    modules = model.image_modules
    state = TrainState("image", modules, adam(modules, 1e-3, fused))
    steps, sums = FiniteSteps(state, 50, LeftOut(more)), EpochSums()
    trained = parameters_of(modules)
    for one in trained:  # what the backward pass leaves: fake tensors have none on a machine without a driver
        one.grad = torch.zeros_like(one)
    with NoWaits():
        for _ in range(3):  # the first makes the optimiser's state
            terms = {"line": torch.zeros((), device="cuda")}
            norm = torch.nn.utils.get_total_norm([one.grad for one in trained])
            torch.nn.utils.clip_grads_with_norm_(trained, 1.0, norm)
            taken, _ = steps.take(terms, norm, {})
            sums.add(terms, {}, taken if more else None)
    assert sums.losses[-1].device.type == "cuda"
    moved = [value for value in state.optimizer.state[trained[0]].values() if value.dim()]
    assert moved and all(value.device.type == "cuda" for value in moved)


def test_mixtures_of_frozen_and_trained_features_do_not_wait_for_the_device(world, batch):
    (model, surgery), share = world(AdaptedCLIPWithCrossAttention), 0.5
    session = Session(of_flags(FEEDBACK_GROUPS, feedback_mix=share), torch.device("cuda"), None)
    run = feedback.Run(session, model, surgery, None, None, None, None)
    contexts = text_context_dictionary(model, DATASET)
    check(feedback.text_loss(run, feedback.stage_1_features(run, 2, contexts), True), batch())
    trained = fixed_anchors(model, DATASET)
    mixed = mixed_anchors(fixed_anchors(model.clipmodel, DATASET), trained, share)
    check(feedback.image_loss(run, contexts, mixed), batch())
    network, anchors_of = BothSides(model.eval(), surgery, share), partial(both_pairs, mixed, trained)
    scorer, images = AnomalyScorer(network, anchors_of, contexts, 2 * SIZE, "Medical"), batch()["image"]
    with NoWaits():
        maps, scores = scorer.score(images, "02")
    assert maps.device.type == scores.device.type == "cuda"


@pytest.mark.parametrize(
    "kind", ["raw CLIP", "baseline", "cross-attention", "self-reference", "image anchors"]
)
def test_the_scorer_does_not_wait_for_the_device(world, batch, kind):
    contexts, images, domain = {}, batch()["image"], "Medical"
    if kind in ("raw CLIP", "baseline"):
        model, surgery = world()
    else:
        model, surgery = world(
            AdaptedCLIPWithCrossAttention, self_reference=0.3 if kind == "self-reference" else 0.0
        )
        contexts = text_context_dictionary(model, DATASET)
    network = RawCLIP(model.clipmodel) if kind == "raw CLIP" else model.eval()
    anchors_of = fixed_anchors(model.clipmodel if kind == "raw CLIP" else model, DATASET)
    if kind == "image anchors":
        patches = one_by_one(first_level(frozen_image_features(model, surgery, model.levels[:1]), model))
        anchors_of = anchors_after_stage_1(model, DATASET, "image", patches)
    scorer = AnomalyScorer(network, anchors_of, contexts, 2 * SIZE, domain)
    with NoWaits():
        maps, scores = scorer.score(images, "02")
    assert maps.shape == (4, 2 * SIZE, 2 * SIZE) and scores.shape == (4,)
    assert maps.device.type == scores.device.type == "cuda"


def test_a_step_of_the_sampler_does_not_wait_for_the_device(world):
    pytest.importorskip("diffusers")
    from synthesis.attention import SemanticLayers, places
    from synthesis.backbone import Backbone, tiny_transformer
    from synthesis.flow import predict_velocity
    from synthesis.latents import Encoded, image_ids
    from synthesis.text import Prompt

    with built_on_cuda():
        torch.set_default_dtype(world.products)
        try:
            transformer = tiny_transformer("tiny")
        finally:
            torch.set_default_dtype(torch.float32)
        attention = SemanticLayers()
        noise, condition, semantic = (torch.randn(2, *shape) for shape in ((8, 64), (8, 320), (4, 64)))
        token_places, semantic_places, ids = places(2, 2, panels=2), places(2, 2), image_ids(2, 4)
        tokens, pooled = (torch.randn(2, *shape, dtype=world.products) for shape in ((5, 32), (32,)))
        times = torch.full((2,), 0.5)
    backbone = Backbone("tiny", transformer, None, None, world.products, 1.0)
    encoded = Encoded(noise, condition, semantic, token_places, semantic_places, ids)
    with NoWaits(), torch.no_grad():
        velocity = predict_velocity(backbone, attention, noise, encoded, Prompt(tokens, pooled), times)
        later = noise + (0.25 - 0.5) * velocity
    assert later.device.type == "cuda" and later.shape == (2, 8, 64) and later.dtype == torch.float32


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.new_tensor([0.0, 1.0]),
        lambda x: torch.as_tensor([0, 1], device="cuda"),
        lambda x: torch.zeros(2).to("cuda"),
        lambda x: x.cpu(),
        lambda x: x + torch.zeros(2, 2),
    ],
    ids=["value", "mask", "list", "CPU index", "new", "numbers", "copy", "result", "two devices"],
)
def test_what_waits_for_a_device_is_seen(monkeypatch, waits):
    with fake_cuda(monkeypatch):
        x = torch.randn(2, 2, device="cuda")
        with NoWaits():
            torch.where(x > 0, x, 0)[0].sum()
            with pytest.raises((AssertionError, RuntimeError)):
                waits(x)
