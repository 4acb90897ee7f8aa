"""What cross-attention and self-reference cost: parameters added, and time per training step against the baseline's.

    python benchmarks/cross_attention_cost.py --model_name ViT-Tiny-8-demo
    python benchmarks/cross_attention_cost.py --model_name ViT-L-14-336 --random_weights

The baseline's and the others' steps alternate in one process, so that a busy machine slows both; medians are compared.
Prints one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine import image_stage_loss, text_stage_loss  # noqa: E402
from forward_utils import anchors_of_batch, frozen_patches  # noqa: E402
from forward_utils_cross_attention import fixed_anchors, text_context_dictionary  # noqa: E402
from model.adapter import AdaptedCLIP  # noqa: E402
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention  # noqa: E402
from model.clip import create_model, surgery_copy  # noqa: E402
from runs import adam, only_training  # noqa: E402
from train_cross_attention import image_loss, image_modules, text_loss, text_modules  # noqa: E402
from utils import choose_device, setup_seed  # noqa: E402

DATASET, CLASSES = "MVTec", ("bottle", "screw")


def step(model, modules, loss_of, batch, lr):
    """A function that makes one training step of some modules."""
    with only_training(model, modules):
        optimizer = adam(modules, lr)

    def once():
        with only_training(model, modules):
            optimizer.zero_grad(set_to_none=True)
            sum(loss_of(batch).values()).backward()
            optimizer.step()

    return once


def alternate(steps, repeats, device):
    """Median seconds of every function, run in turn."""
    times = [[] for _ in steps]
    for _ in range(repeats + 1):
        for own, once in zip(times, steps, strict=True):
            begin = time.perf_counter()
            once()
            if device.type == "cuda":
                torch.cuda.synchronize()
            own.append(time.perf_counter() - begin)
    return [statistics.median(own[1:]) for own in times]  # the first one warms up


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_name", default="ViT-Tiny-8-demo")
    parser.add_argument("--img_size", type=int, help="default 128 for the tiny CLIP, 518 otherwise")
    parser.add_argument("--random_weights", action="store_true", help="time does not depend on the weights")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device")
    args = parser.parse_args(argv)
    setup_seed(0)
    device = choose_device(args.device)
    size = args.img_size or (128 if args.model_name == "ViT-Tiny-8-demo" else 518)
    clip = create_model(args.model_name, size, None if args.random_weights else "openai", device=device)
    surgery = surgery_copy(clip, 10 if args.model_name == "ViT-Tiny-8-demo" else 20)
    plain, crossed = AdaptedCLIP(clip).to(device), AdaptedCLIPWithCrossAttention(clip).to(device)
    referring = AdaptedCLIPWithCrossAttention(clip, self_reference=0.3).to(device)
    batch = {
        "image": torch.randn(args.batch_size, 3, size, size, device=device),
        "mask": (torch.rand(args.batch_size, 1, size, size, device=device) > 0.9).float(),
        "label": torch.arange(args.batch_size, device=device) % 2,
        "class_name": [CLASSES[i % 2] for i in range(args.batch_size)],
    }
    flags = SimpleNamespace(dataset=DATASET, context_scope="class", context_control="none", text_loss_levels="last",
                            text_norm_weight=0.1, text_cls_weight=0.0, head_temperature=1.0)  # fmt: skip
    last, both = plain.levels[-1:], [plain.levels[0], plain.levels[-1]]
    with torch.no_grad():
        anchors = fixed_anchors(crossed, DATASET, {}, device)
        contexts = text_context_dictionary(crossed, DATASET, device)
    stage_1 = (
        step(plain, {"text_adapter": plain.text_adapter}, partial(
            text_stage_loss, patches_of=lambda batch: frozen_patches(clip, surgery, batch["image"], last),
            anchors_of=lambda batch, patches: anchors_of_batch(plain, DATASET, batch["class_name"], device),
            loss_levels=last, norm_weight=0.1), batch, 1e-5),
        step(crossed, text_modules(crossed), text_loss(
            crossed, lambda batch: frozen_patches(clip, surgery, batch["image"], both), flags, device), batch, 1e-5),
    )  # fmt: skip
    stage_2 = (
        step(plain, {"image_adapter": plain.image_adapter}, partial(
            image_stage_loss, encode=lambda batch: plain(batch["image"]), anchors_of=anchors), batch, 5e-4),
        step(crossed, image_modules(crossed), image_loss(crossed, contexts, anchors, flags), batch, 5e-4),
        step(referring, image_modules(referring), image_loss(referring, contexts, anchors, flags), batch, 5e-4),
    )  # fmt: skip
    result = {"model_name": args.model_name, "img_size": size, "batch_size": args.batch_size, "device": str(device),
              "torch": str(torch.__version__), "threads": torch.get_num_threads()}  # fmt: skip
    for key in ("text_cross_attn", "image_cross_attn"):
        result[f"{key} parameters"] = sum(p.numel() for p in getattr(crossed, key).parameters())
    for key in ("text_adapter", "image_adapter"):
        result[f"{key} parameters"] = sum(p.numel() for p in getattr(crossed, key).parameters())
    for name, steps in (("stage 1", stage_1), ("stage 2", stage_2)):
        baseline, with_attention, *with_reference = alternate(steps, args.repeats, device)
        result[name] = {"baseline s": round(baseline, 4), "cross-attention s": round(with_attention, 4),
                        "ratio": round(with_attention / baseline, 3)}  # fmt: skip
        for seconds in with_reference:
            result[name] |= {"and self-reference s": round(seconds, 4),
                             "and self-reference ratio": round(seconds / baseline, 3)}  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
