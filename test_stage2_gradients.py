"""Gradient dilution, measured: the image adapter's gradient with cross-attention over the one without.

Same weights, same batches, dropout off. Prints the gradient norm of every layer adapter and of the whole image adapter
without and with cross-attention and their ratio; [OK] and exit status 0 when the total's ratio is at least 0.8,
[CAUTION] and 1 below. With --steps each variant trains that long from the same start and its norms are the mean over
the second half of the steps: how much gradient reaches the adapters while they learn, and not at their first step
alone. The embedded default is measured on images it renders itself; --run and --dataset take real checkpoints and data.
"""

import argparse
import copy
import logging
import statistics
import sys
import tempfile

import torch
from torch.utils.data import DataLoader

import options
from checkpoints import load_checkpoint, load_module
from dataset import get_dataset
from dataset.demo import Counts, render_demo
from engine import gradient_norm, image_stage_loss, to_device
from forward_utils_cross_attention import fixed_anchors, text_context_dictionary, text_context_groups
from run_files import BASELINE, find_run, text_checkpoint
from runs import adam, create_backbone, create_cross_attention_model, declare_datasets
from train_cross_attention import image_modules
from utils import choose_device, setup_seed

HEALTHY = 0.8


def build_parser():
    """Model, cross-attention, data and run flags, and how much is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_model_flags(parser)
    options.add_cross_attention_flags(parser)
    options.add_network_oddity_flags(parser)
    options.add_data_flags(parser, dataset=None, shot=0)
    options.add_run_flags(parser, save_path=None)
    parser.set_defaults(model_name="ViT-Tiny-8-demo")
    group = parser.add_argument_group("measurement")
    group.add_argument("--run", help="folder of a trained run, baseline or cross-attention; default fresh modules")
    group.add_argument("--text_only", action="store_true", help="of --run: its text side alone, as stage 2 starts")
    group.add_argument("--steps", type=int, default=0, help="measure over the second half of this many steps")
    group.add_argument("--image_lr", type=float, default=5e-4, help="learning rate of these steps")
    group.add_argument("--batch_size", type=int, default=8)
    group.add_argument("--batches", type=int, default=4)
    return parser


def load_run(model, folder, text_only=False):
    """Load whatever adapters and attentions a run's last checkpoints hold, or those of its text side."""
    kind, (image_file,) = find_run(folder)
    text_file = text_checkpoint(kind, image_file)
    image_keys = kind.image_keys if kind is BASELINE else tuple(model.image_modules)
    for file, keys in ((image_file, () if text_only else image_keys), (text_file, kind.text_keys)):
        content = load_checkpoint(file, keys=keys)
        for key in keys:
            load_module(getattr(model, key), content[key], file)


def training_images(args, folder):
    """(dataset name, images): the training set the flags name, or a few rendered images of DemoA."""
    if args.dataset:
        return args.dataset, get_dataset(args.dataset, args.img_size, "few_shot", args.shot, "train",
                                         logging.getLogger(__name__), data_root=args.data_root, seed=args.seed)[1]
    render_demo("DemoA", folder, args.seed, counts=Counts(train_good=0, test_good=2, test_defective=2))
    return "DemoA", get_dataset("DemoA", args.img_size, "full_shot", 0, "train", logging.getLogger(__name__),
                                data_root=folder, seed=args.seed)[1]  # fmt: skip


def part_norms(model):
    """Norm of the gradient now in each layer adapter and in the whole image adapter: {name: value}."""
    adapters = dict(enumerate(model.image_adapter["layer_adapters"]))
    parts = {f"layer adapter {i}": adapter for i, adapter in adapters.items()} | {"image adapter": model.image_adapter}
    return {name: float(gradient_norm(part)) for name, part in parts.items()}


def norms_at_the_start(model, batches, loss_of):
    """Norms of the mean gradient over the batches."""
    model.zero_grad(set_to_none=True)
    for batch in batches:
        (loss_of(batch) / len(batches)).backward()
    return part_norms(model)


def norms_in_training(model, batches, loss_of, steps, lr):
    """Mean norms of the batches' gradients over the second half of `steps` steps of stage 2, the batches in turn."""
    optimizer, found = adam(image_modules(model), lr), []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss_of(batches[step % len(batches)]).backward()
        optimizer.step()
        found.append(part_norms(model))
    late = found[steps // 2 :]
    return {name: statistics.mean(norms[name] for norms in late) for name in late[0]}


def main(argv=None):
    args = options.parse(build_parser(), argv)
    setup_seed(args.seed)
    device = choose_device(args.device)
    declare_datasets(args)
    model = create_cross_attention_model(create_backbone(args, device), args, device).eval()
    if args.run:
        load_run(model, args.run, args.text_only)
    model.requires_grad_(False)
    for module in image_modules(model).values():
        module.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        name, images = training_images(args, folder)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed)).tolist()
        loader = DataLoader(images, args.batch_size, sampler=order[: args.batches * args.batch_size])
        batches = [to_device(batch, device) for batch in loader]
    contexts = text_context_dictionary(model, name, device, args.context_control)
    anchors_of = fixed_anchors(model, name, {}, device)
    start = copy.deepcopy(model.state_dict())

    def measure(encode):
        def loss_of(batch):
            return sum(image_stage_loss(batch, encode, lambda one: model.with_reference(anchors_of(one))).values())

        model.load_state_dict(start)
        if args.steps:
            return norms_in_training(model, batches, loss_of, args.steps, args.image_lr)
        return norms_at_the_start(model, batches, loss_of)

    without = measure(lambda batch: model(batch["image"]))
    beside = measure(lambda batch: model(batch["image"], text_context_groups(contexts, batch["class_name"])))

    when = f"over the second half of {args.steps} steps" if args.steps else "at the first step"
    print(f"{args.model_name}, {name}, {len(batches)} batches of {args.batch_size}, {when}, image_cross_attn_weight "
          f"{args.image_cross_attn_weight}, norm matching {'off' if args.no_norm_match else 'on'}, "
          f"context normalised {'no' if args.no_normalize_context else 'yes'}")  # fmt: skip
    print(f"{'gradient norm of':18s} {'without':>12s} {'with':>12s} {'ratio':>8s}")
    for part, norm in without.items():
        print(f"{part:18s} {norm:12.6f} {beside[part]:12.6f} {beside[part] / norm:8.3f}")
    ratio = beside["image adapter"] / without["image adapter"]
    if ratio >= HEALTHY:
        print(f"[OK] the image adapter keeps {ratio:.2f} of its gradient (>= {HEALTHY})")
        return 0
    print(f"[CAUTION] the image adapter keeps only {ratio:.2f} of its gradient (< {HEALTHY}): lower "
          "--image_cross_attn_weight, keep norm matching and normalised contexts on")  # fmt: skip
    return 1


if __name__ == "__main__":
    sys.exit(main())
