"""What each of the processes does that test_acceleration.py starts together; process 0 writes what they find.

python two_processes.py FINDINGS.json FOLDER_OF_THE_CLIP COMMAND_LINE.json
"""

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import torch  # noqa: E402
from cross_attention_world import CONFIG  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

import test as test_script  # noqa: E402
import train_cross_attention  # noqa: E402
from dataset import EpochSampler  # noqa: E402
from dataset.randomness import keyed_generator  # noqa: E402
from evaluation.predictions import evaluate_dataset  # noqa: E402
from evaluation.scorer import AnomalyScorer  # noqa: E402
from files.atomic import write_text  # noqa: E402
from forward_utils import fixed_anchors, frozen_image_features  # noqa: E402
from forward_utils_cross_attention import anchors_and_means, text_context_dictionary  # noqa: E402
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention  # noqa: E402
from model.clip import CLIP, surgery_copy  # noqa: E402
from run_folder import processes  # noqa: E402
from run_folder.flags import settings_of  # noqa: E402
from run_folder.settings import CROSS_ATTENTION_GROUPS  # noqa: E402
from training import engine  # noqa: E402
from training.acceleration import ShareLoader, StageLoss, distributed  # noqa: E402
from training.optimisation import only_training  # noqa: E402

DATASET, CLASSES, SIZE = "BTAD", ("01", "02", "03"), 32
CPU = torch.device("cpu")


class Images:
    """n images that a seed gives, of three classes, every second one with a defect; one's place is unknown."""

    img_size = SIZE

    def __init__(self, number):
        self.samples = [
            SimpleNamespace(
                class_name=CLASSES[index % 3],
                file_name=f"{index}.png",
                label=index % 2,
                mask_known=index != 3,
            )
            for index in range(number)
        ]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample, generator = self.samples[index], keyed_generator("image", index)
        mask = torch.zeros(1, SIZE, SIZE)
        if sample.label and sample.mask_known:
            mask[:, 4 : 12 + index, 6:20] = 1
        image = torch.randn(3, SIZE, SIZE, generator=generator) + 2 * mask
        known = torch.tensor(float(sample.mask_known))
        return {"image": image, "mask": mask, "mask_known": known} | {
            key: getattr(sample, key) for key in ("label", "class_name", "file_name")
        }


def tiny_model(**settings):
    """(model, backbone) with random weights, the same in every process."""
    torch.manual_seed(7)
    clip = CLIP(open_clip.CLIP(**CONFIG)).requires_grad_(False).eval()
    for parameter in clip.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) if parameter.dim() > 1 else 0
    settings = {"text_adapt_until": 2, "image_adapt_until": 2, "cross_attn_heads": 4} | settings
    return AdaptedCLIPWithCrossAttention(clip, cross_attn_dropout=0.0, **settings), clip


def gap(found, wanted):
    """The largest difference of two tensors, as a share of the largest value wanted."""
    return float(((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)).detach())


def losses_of_sizes(group):
    """{case: largest gap of a loss term or a gradient between all processes together and one alone}."""
    found = {}
    for surgery_attention in ("batch", "spatial"):
        model, clip = tiny_model(self_reference=0.3)
        surgery = surgery_copy(clip, 4, across_batch=surgery_attention == "batch")
        values = {"dataset": DATASET, "text_loss_levels": "all", "text_cls_weight": 1.0}
        settings = settings_of(CROSS_ATTENTION_GROUPS, values)
        features = frozen_image_features(model, surgery, model.levels[:2])
        anchors_of, _ = anchors_and_means(model, DATASET, "image", features, [])
        contexts = text_context_dictionary(model, DATASET)
        stages = {
            "text": (train_cross_attention.text_loss(model, surgery, settings), model.text_modules),
            "image": (
                train_cross_attention.image_loss(model, contexts, anchors_of, settings),
                model.image_modules,
            ),
        }
        for name, (step_loss, modules) in stages.items():
            with only_training(model, modules):
                together = distributed(StageLoss(step_loss, modules), CPU)
                for number in range(1, 10):
                    case = f"{name}, {surgery_attention}, {number}"
                    found[case] = loss_gap(group, together, step_loss, modules, Images(number))
    return found


def loss_gap(group, together, step_loss, modules, images):
    parameters = [one for module in modules.values() for one in module.parameters()]
    number = len(images)
    (whole,) = DataLoader(images, number, sampler=EpochSampler(number, 5))
    wanted = step_loss(engine.to_device(whole, CPU))
    gradients = torch.autograd.grad(sum(wanted.values()), parameters, allow_unused=True)
    (share,) = ShareLoader(images, number, sampler=EpochSampler(number, 5), processes=group)
    assert share["file_name"] == whole["file_name"]
    terms = together(engine.to_device(share, CPU))
    for parameter in parameters:
        parameter.grad = None
    sum(terms.values()).backward()
    gaps = [gap(terms[term], value) for term, value in wanted.items()]
    largest = max(gradient.abs().max() for gradient in gradients if gradient is not None)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:
            gaps.append(float((parameter.grad - gradient).abs().max() / largest))
    return max(gaps)


@contextmanager
def alone():
    """What a process does by itself within, as if there were no other."""
    before, processes._working = processes._working, processes.ALONE
    try:
        yield
    finally:
        processes._working = before


def metrics_of_sizes(group):
    """Cases in which metrics or maps of all processes together are not those of one alone to the last bit."""
    model, _ = tiny_model()
    scorer = AnomalyScorer(model.eval(), fixed_anchors(model, DATASET), {}, SIZE, "Industrial")
    different = []
    for number in range(1, 10):
        for exact_pixels in (10**9, 0):
            results = []
            for how in (alone, None) if group.main else (None,):
                kept = {}
                with how() if how else open(os.devnull):
                    result = evaluate_dataset(
                        scorer,
                        {"01": Images(number), "02": Images(10 - number)},
                        batch_size=2,
                        device=CPU,
                        on_class=kept.__setitem__,
                        exact_pixels=exact_pixels,
                    )
                results.append((result, kept))
            if group.main and not same(*results):
                different.append(f"{number} images, exact_pixels {exact_pixels}")
    return different


def same(one, other):
    (result, kept), (wanted, wanted_kept) = one, other
    arrays = ("maps", "masks", "head", "labels", "mask_known", "ends")
    return result == wanted and all(
        found["files"] == wanted_kept[name]["files"]
        and all(np.array_equal(found[key], wanted_kept[name][key]) for key in arrays if key in found)
        for name, found in kept.items()
    )


def stopped_at_step(step, argv, group):
    """Train until a signal reaches the last process in a step; returns the exit code."""
    whole, count = engine.train_step, [0]

    def signalled(*args):
        count[0] += 1
        if count[0] == step and group.rank == group.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args)

    engine.train_step = signalled
    try:
        train_cross_attention.main(argv)
    except SystemExit as end:
        return end.code, count[0]
    finally:
        engine.train_step = whole


def main(findings, clip_folder, command_line):
    torch.set_num_threads(1)
    open_clip.add_model_config(clip_folder)
    lines = json.loads(Path(command_line).read_text(encoding="utf-8"))
    with processes.joined("cpu") as group:
        found = {
            "processes": group.count,
            "losses": losses_of_sizes(group),
            "metrics": metrics_of_sizes(group),
        }
        try:
            group.check_same("answers", group.rank)
        except RuntimeError as error:
            found["refused"] = group.collect(str(error))
        train_cross_attention.main(lines["train"])
        found["test"] = test_script.main(lines["test"])
        found["stopped"] = group.collect(stopped_at_step(lines["stop_at"], lines["stopped"], group))
        if group.main:
            write_text(findings, json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
