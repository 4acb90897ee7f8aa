"""What is timed: both stages and a test image, by AA-CLIP's operations and by the project's, on the same values."""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.aa_clip_cost import (
    costly_clip,
    costly_image_loss,
    costly_step,
    costly_surgery,
    costly_text_loss,
)
from benchmarks.flops import flops_of, flops_of_step
from dataset.constants import DOMAINS
from evaluation.scorer import AnomalyScorer, RawCLIP
from forward_utils import anchors_of_batch, encode_anchors, frozen_image_features
from forward_utils_cross_attention import text_context_of_class
from model.adapter import AdaptedCLIP
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import CLIP, create_model, surgery_copy
from model.compiled import compile_adapters, compile_blocks, missing_compiler, region
from model.matrix_products import CLOSE, compare_products, onednn_products, why_not
from model.recompute import RECOMPUTED, recompute_activations
from run_folder.state import TrainState
from training.engine import StagePlan, StepLoss, steps_per_look, train_step
from training.finite_steps import FiniteSteps
from training.optimisation import adam, only_training, parameters_of
from training.stages import image_stage_loss, segmentation, text_stage_loss
from utils import setup_seed

DATASET, CLASSES = "MVTec", ("bottle", "screw")
TINY = "ViT-Tiny-8-demo"
TEXT_LR, IMAGE_LR = 1e-5, 5e-4
RATES = {"stage 1": TEXT_LR, "stage 2": IMAGE_LR}
AA_CLIP, PROJECT = "AA-CLIP's operations", "this project"
RAW, CROSSED, REFERRING = "raw CLIP", "cross-attention", "self-reference"
MATMUL, COMPILED, FUSED = "matmul", "compile", "fused_adam"
SAME_WORK = (MATMUL, COMPILED, FUSED)  # other kernels for what PROJECT computes: its FLOPs, its tensors
STEP_WAYS = {
    "stage 1": (AA_CLIP, PROJECT, *SAME_WORK),
    "stage 2": (AA_CLIP, PROJECT, *SAME_WORK, "mlp", "full"),
}
TEST_WAYS = (AA_CLIP, PROJECT, MATMUL, RAW, CROSSED, REFERRING)
SHOWN = {  # what a table calls a way that is a flag
    MATMUL: "with `--matmul auto`",
    "mlp": "with `--activation_checkpointing mlp`",
    "full": "with `--activation_checkpointing full`",
    COMPILED: "with `--compile`",
    FUSED: "with `--fused_adam`",
}
NEVER = 10**6  # steps between two looks at the losses
Step = Callable[[], object]


class Part(NamedTuple):
    """One way of a stage: `loss` is a function batch -> {term: scalar}."""

    model: AdaptedCLIP
    modules: dict[str, nn.Module]
    loss: StepLoss


class Workload:
    """Both stages and the test in every way, on one backbone of random weights and one batch of noise.

    Args:
        name, size: architecture and image side.
        images: of the batch.
        device: on "meta" nothing is computed, and FLOPs can be counted.
        precision: "bf16" for vision blocks in bfloat16; the weights are the same for all.
    """

    def __init__(
        self, name: str, size: int, images: int, device: torch.device | str, precision: str = "fp32"
    ):
        setup_seed(0)
        self.size, self.until, self.device = size, surgery_start(name), torch.device(device)
        with torch.device(device):
            autocast = torch.bfloat16 if precision == "bf16" else None
            self.clip = create_model(name, size, None, device=device, vision_autocast=autocast)
            self.model = AdaptedCLIP(self.clip)
            self.batch = random_batch(images, size, self.device)
        self.anchors: dict[str, Tensor] = {}

    def part(self, stage: str, way: str) -> Part:
        """What a way of a stage trains, and its loss."""
        if way == AA_CLIP:
            return self._theirs(stage)
        clip = self.clip
        if way in RECOMPUTED or way == COMPILED:  # modules of its own, weights shared
            clip = copy.deepcopy(clip, {id(weight): weight for weight in clip.parameters()})
        recompute_activations(clip, recompute_of(way))
        model, segment = self.adapted(clip), None
        if way == COMPILED:
            compile_blocks(clip.transformer, clip.visual.transformer)
            compile_adapters(model)
            segment = region(segmentation)
        if stage == "stage 2":
            self.make_anchors()
            loss = partial(
                image_stage_loss,
                compare=lambda batch, anchors: model.compare(batch["image"], anchors),
                anchors_of=self.anchors_of,
                segment=segment,
            )
            return Part(model, model.image_modules, loss)
        last, surgery = model.levels[-1:], surgery_copy(clip, self.until)
        if way == COMPILED:
            compile_blocks(surgery.visual.transformer)
        loss = partial(
            text_stage_loss,
            patches_of=frozen_image_features(model, surgery, last),
            anchors_of=lambda batch, patches: anchors_of_batch(model, DATASET, batch["class_name"]),
            loss_levels=last,
            norm_weight=0.1,
            segment=segment,
        )
        return Part(model, model.text_modules, loss)

    def make_anchors(self) -> None:
        """Make the anchors of stage 2 and of the test, once, before anything is measured or counted."""
        if not self.anchors:
            with torch.no_grad():
                made = encode_anchors(self.model, DATASET, CLASSES)
            self.anchors = dict(zip(CLASSES, made, strict=True))

    def anchors_of(self, batch: dict) -> Tensor:
        """Anchors [B, E, 2] of a batch."""
        return torch.stack([self.anchors[name] for name in batch["class_name"]])

    def _theirs(self, stage):
        model = self.adapted(costly_clip(self.clip))
        self.make_anchors()
        if stage == "stage 1":
            loss = costly_text_loss(model, costly_surgery(self.clip, self.until), DATASET)
            return Part(model, model.text_modules, lambda batch: {"loss": loss(batch)})
        loss = costly_image_loss(model, self.anchors_of)
        return Part(model, model.image_modules, lambda batch: {"loss": loss(batch)})

    def adapted(self, clip: CLIP, kind: type[AdaptedCLIP] = AdaptedCLIP, **settings) -> AdaptedCLIP:
        """An adapted model of a backbone with the first values of this workload's adapters."""
        if clip is self.clip and kind is AdaptedCLIP:
            return self.model
        with self.device:
            model = kind(clip, relu=False, **settings)
        for key in ("text_adapter", "image_adapter"):
            getattr(model, key).load_state_dict(getattr(self.model, key).state_dict())
        return model

    def step(self, stage: str, way: str) -> Step:
        """A function that makes one step."""
        part = self.part(stage, way)
        if way == AA_CLIP:
            loss, trained = part.loss, parameters_of(part.modules)
            return costly_step(lambda batch: loss(batch)["loss"], trained, self.batch, RATES[stage])
        once = step(*part, self.batch, RATES[stage], fused=way == FUSED)
        return by_onednn(once) if way == MATMUL else once

    def losses(self, stage: str) -> tuple[float, float]:
        """The loss of the first step by AA-CLIP's operations and by the project's."""
        with torch.no_grad():
            return tuple(
                float(sum(self.part(stage, way).loss(self.batch).values())) for way in (AA_CLIP, PROJECT)
            )

    def step_flops(self, stage: str, way: str) -> int:
        """FLOPs of a step's forward and backward pass; on the meta device."""
        model, modules, loss = self.part(stage, way)

        def count():
            return flops_of_step(lambda: sum(loss(self.batch).values()), model.parameters())

        if way == AA_CLIP:  # whose CLIP is not frozen
            return count()
        with only_training(model, modules):
            return count()

    def scorer(self, way: str) -> AnomalyScorer:
        """What scores test images in one of TEST_WAYS."""
        contexts = {}
        self.make_anchors()
        if way == RAW:
            network = RawCLIP(self.clip)
        elif way in (AA_CLIP, PROJECT, MATMUL):
            network = self.adapted(costly_clip(self.clip) if way == AA_CLIP else self.clip)
        else:
            reference = {"self_reference": 0.3} if way == REFERRING else {}
            network = self.adapted(self.clip, AdaptedCLIPWithCrossAttention, **reference)
        if way == CROSSED:
            with torch.no_grad():
                contexts = {CLASSES[0]: text_context_of_class(network, DATASET, CLASSES[0])}
        return AnomalyScorer(network, self.anchors_of, contexts, self.size, DOMAINS[DATASET]).eval()

    def score(self, way: str) -> Step:
        """A function that scores the batch's images once."""
        scorer, images = self.scorer(way), self.batch["image"]
        once = partial(scorer.score, images, CLASSES[0])
        return by_onednn(once) if way == MATMUL else once

    def score_flops(self, way: str) -> int:
        """FLOPs of `score`; on the meta device."""
        return flops_of(self.score(way))


def work_of(way: str) -> str:
    """The way whose FLOPs and tensors a way has."""
    return PROJECT if way in SAME_WORK else way


def missing(way: str, device: torch.device) -> str | None:
    """Why a way is none on this device, or None: `--matmul auto` changes nothing on a GPU, or where oneDNN errs."""
    if way == MATMUL:
        return why_not(device) or (
            None if compare_products().apart < CLOSE else "oneDNN's products are too far from torch's"
        )
    if way == COMPILED:
        return missing_compiler(device.type)
    if way == FUSED:
        try:
            torch.optim.Adam([torch.zeros(1, device=device, requires_grad=True)], fused=True)
        except RuntimeError as error:  # who has it depends on torch's version
            return str(error)
    return None


def available(way: str, device: torch.device) -> bool:
    """Whether a way is one on this device."""
    return missing(way, device) is None


def by_onednn(once: Step) -> Step:
    """`once` with matrix products of oneDNN, as `--matmul auto` has them where they are the faster ones."""

    def run():
        with onednn_products():
            return once()

    return run


def surgery_start(name: str) -> int:
    """The default of --surgery_until_layer of an architecture."""
    return 10 if name == TINY else 20


def recompute_of(way: str) -> str:
    """The value of --activation_checkpointing of a way."""
    return way if way in RECOMPUTED else "none"


def default_size(name: str) -> int:
    """The image side an architecture is measured at unless another is given."""
    return 128 if name == TINY else 518


def random_batch(images: int, size: int, device: torch.device) -> dict:
    """A training batch of noise, every second image defective."""
    return {
        "image": torch.randn(images, 3, size, size, device=device),
        "mask": (torch.rand(images, 1, size, size, device=device) > 0.9).float(),
        "label": torch.arange(images, device=device) % 2,
        "class_name": [CLASSES[i % 2] for i in range(images)],
    }


def step(
    model: nn.Module,
    modules: dict[str, nn.Module],
    loss_of: StepLoss,
    batch: dict,
    lr: float,
    fused: bool = False,
) -> Step:
    """A function that makes one training step of some modules, as the engine makes it; `fused`: with `--fused_adam`."""
    plan = StagePlan(epochs=1, log_every=NEVER)  # a look at the losses waits
    state = TrainState("timed", modules, adam(modules, lr, fused))
    steps = FiniteSteps(state, steps_per_look(plan, model.device))

    def once():
        with only_training(model, modules):
            train_step(steps, loss_of, batch, plan)

    return once


def steps_without_backward(part: Part, batch: dict, lr: float) -> tuple[Step, Step]:
    """A step's loss, and what the optimiser does behind its backward pass, with zeros for gradients.

    For fake tensors, which have no backward pass.
    """
    steps = FiniteSteps(TrainState("looked at", part.modules, adam(part.modules, lr)), NEVER)
    zero = torch.zeros((), device=part.model.device)

    def update():
        for parameter in parameters_of(part.modules):
            parameter.grad = torch.zeros_like(parameter)
        steps.take({"loss": zero}, zero, batch)

    return lambda: sum(part.loss(batch).values()), update
