"""A run's life around the training loop: open its folder, resume it, write its checkpoints, read it for testing."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from checkpoints import load_checkpoint, load_module, restore_rng, rng_state, save_checkpoint, versions
from dataset import BaseDataset, EpochSampler, get_dataset, load_dataset_config, load_real_names
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import create_model
from options import changed_oddities, settings
from utils import choose_device, close_logger, get_logger, lock_run, setup_seed

MAY_DIFFER = {  # flags that may change between a run's start and its resume, because they do not change its numbers
    "save_path", "device", "workers", "data_root", "clip_weights", "dataset_config", "real_names", "criterion",
    "corrected", "eval_every_loop",
}  # fmt: skip
ADDED_LATER = {  # flags that runs of older versions lack, and what those runs did
    "precision": "fp32", "context_control": "none", "extra_meta": None, "extra_ratio": None, "cross_attn_gate": "fixed",
    "image_cross_attn_after": 0, "self_reference": 0.0, "self_reference_head": 1.0, "self_reference_neighbours": 0.08,
    "self_reference_control": "none",
}  # fmt: skip
ADAPTER_FLAGS = (
    "model_name", "relu", "text_adapt_weight", "image_adapt_weight", "text_adapt_until", "image_adapt_until",
    "cross_attn_heads", "text_cross_attn_weight", "image_cross_attn_weight", "no_norm_match", "no_normalize_context",
    "context_control", "cross_attn_gate", "image_cross_attn_after", "self_reference", "self_reference_head",
    "self_reference_neighbours", "self_reference_control",
)  # fmt: skip
NETWORK_FLAGS = (  # may differ at test time; the log says so
    "img_size", "quick_gelu", "text_context", "surgery_until_layer", "surgery_attention"
)  # fmt: skip


class Record(NamedTuple):
    """What every checkpoint of a run carries beside its weights."""

    settings: dict
    versions: dict


@contextmanager
def open_run(args, log_name):
    """Seed everything, lock the run folder, start its log and choose the device; an error is logged on its way out.

    Yields:
        (device, logger)
    """
    setup_seed(args.seed)  # before CUDA starts
    lock = lock_run(args.save_path)
    logger = get_logger(args.save_path, log_name)
    try:
        yield choose_device(args.device), logger
    except BaseException as error:
        logger.error(f"stopped by {type(error).__name__}: {error}")
        raise
    finally:
        close_logger(logger)
        lock.release()


def log_settings(args, device, logger):
    """First lines of a training log: the flags, the oddities and the device."""
    logger.info("flags: " + ", ".join(f"{key}={value}" for key, value in sorted(settings(args).items())))
    corrections = changed_oddities(settings(args))
    kind = f"corrections on: {corrections}" if corrections else "none corrected, as in AA-CLIP"
    logger.info(f"oddities of AA-CLIP (README): {kind}; device {device}")


def declare_datasets(args):
    """Register the user's own datasets and real names, before any name is looked up."""
    if args.dataset_config:
        load_dataset_config(args.dataset_config)
    if args.real_names:
        load_real_names(args.real_names)


def create_backbone(args, device):
    """The frozen CLIP the flags name, with its weights."""
    clip = create_model(
        args.model_name, args.img_size, pretrained="openai", device=device, require_pretrained=True,
        quick_gelu=args.quick_gelu, clip_weights=args.clip_weights,
    )  # fmt: skip
    if getattr(args, "precision", "fp32") == "bf16":
        clip.visual.use_bfloat16()
    return clip


def create_cross_attention_model(clip, args, device):
    """The model the flags describe; its adapters start from the very values train.py gives them."""
    setup_seed(args.seed)
    return AdaptedCLIPWithCrossAttention(
        clip, args.text_adapt_weight, args.image_adapt_weight, args.text_adapt_until, args.image_adapt_until,
        relu=args.relu, cross_attn_heads=args.cross_attn_heads, cross_attn_dropout=args.cross_attn_dropout,
        text_cross_attn_weight=args.text_cross_attn_weight, image_cross_attn_weight=args.image_cross_attn_weight,
        norm_match=not args.no_norm_match, normalize_context=not args.no_normalize_context, gate=args.cross_attn_gate,
        image_cross_attn_after=args.image_cross_attn_after, self_reference=args.self_reference,
        self_reference_head=args.self_reference_head, self_reference_neighbours=args.self_reference_neighbours,
        self_reference_control=args.self_reference_control,
    ).to(device)  # fmt: skip


def training_loaders(args, logger):
    """(text loader, image loader) over the training set; order and augmentation depend on (seed, epoch) only."""
    sets = get_dataset(args.dataset, args.img_size, args.training_mode, args.shot, "train", logger,
                       data_root=args.data_root, seed=args.seed, extra_meta=args.extra_meta,
                       extra_ratio=args.extra_ratio)  # fmt: skip
    return tuple(
        DataLoader(images, batch_size, sampler=EpochSampler(len(images), args.seed), num_workers=args.workers)
        for images, batch_size in zip(sets, (args.text_batch_size, args.image_batch_size), strict=True)
    )


def unaugmented(dataset, batch_size):
    """Batches of a training set's images as they are, in order."""
    return DataLoader(BaseDataset(dataset.samples, dataset.img_size), batch_size)


@contextmanager
def only_training(model, modules):
    """Training mode for `modules` ({key: module}) alone, and gradients for nothing else; evaluation mode afterwards."""
    model.eval().requires_grad_(False)
    for module in modules.values():
        module.train().requires_grad_(True)
    try:
        yield
    finally:
        model.eval().requires_grad_(False)


def image_schedule(args, optimizer, epochs, steps_per_epoch):
    """Stage 2's learning rate: halved at the milestones, counted in batches."""
    milestones = milestones_in_steps(args.milestones, epochs * steps_per_epoch)
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.5)


def record_of(args):
    """The record of a run started with these flags."""
    return Record(settings(args), versions())


def save_stage(path, epoch, modules, optimizer_key, optimizer, scheduler=None, record=None, history=None):
    """Write one stage's checkpoint with upstream's keys, and what a resume needs beside them.

    Args:
        path: file, or several files of the same content.
        epoch: epochs done.
        modules: {key: module}, for instance {"text_adapter": ...}.
        optimizer_key: "text_optimizer" or "image_optimizer".
        history: the stage's epochs so far, from engine.train_stage.
    """
    content = {"epoch": epoch} | {key: module.state_dict() for key, module in modules.items()}
    content |= {optimizer_key: optimizer.state_dict(), "rng": rng_state()}
    if scheduler is not None:
        content["scheduler"] = scheduler.state_dict()
    if record is not None:
        content |= record._asdict()
    if history is not None:
        content["history"] = history
    for file in path if isinstance(path, list) else [path]:
        save_checkpoint(file, content)


def resume_stage(
    path, modules, optimizer_key, optimizer, scheduler, args, logger, *, extendable=None, history=None
):  # fmt: skip
    """Continue a stage from its checkpoint, if there is one.

    Files of AA-CLIP have no RNG, scheduler or settings: their weights and optimiser are continued, and the log says so.
    A stage may be extended (`--text_epoch`, `--image_epoch`) as long as nothing built on its old end: stage 2 trains
    on stage 1's anchors, and milestones as fractions depend on the number of epochs.

    Args:
        extendable: names of the flags that may differ from the file's, instead of those.
        history: list that receives the stage's epochs so far, as engine.train_stage wrote them.

    Returns:
        epochs done so far, 0 without a file.

    Raises:
        RuntimeError: damaged file, other adapter settings, or a run with other flags.
    """
    if not path.is_file():
        return 0
    content = load_checkpoint(path, keys=["epoch", *modules, optimizer_key])
    if extendable is None and optimizer_key == "text_optimizer":
        extendable = {"text_epoch", "image_epoch"}
    elif extendable is None:
        extendable = set() if args.milestones[0] < 1 else {"image_epoch"}
    check_same_run(content.get("settings"), args, path, extendable)
    for key, module in modules.items():
        load_module(module, content[key], path)
    optimizer.load_state_dict(content[optimizer_key])
    if "rng" in content:
        restore_rng(content["rng"])
    else:
        logger.warning(f"{path.name} carries no RNG state (a file of AA-CLIP): the run goes on, but not bit for bit")
    if scheduler is not None and "scheduler" in content:
        scheduler.load_state_dict(content["scheduler"])
    if history is not None:
        history.extend(content.get("history", []))
    logger.info(f"{path.name}: {content['epoch']} epochs done, continuing from there")
    return content["epoch"]


def check_same_run(stored, args, path, extendable=()):
    """Refuse to continue a run with flags that change its numbers; `extendable` names flags that may differ.

    Raises:
        RuntimeError: names every flag that differs with both values.
    """
    current, stored = settings(args), ADDED_LATER | stored if stored else {}
    differing = [
        f"--{key} was {value!r}, is {current[key]!r}"
        for key, value in stored.items()
        if key in current and key not in MAY_DIFFER and key not in extendable and value != current[key]
    ]
    if differing:
        raise RuntimeError(
            f"{path} belongs to a run with other settings: {'; '.join(differing)}. "
            "Continue with its flags, or start a new run with another --save_path"
        )


def adopt_settings(args, stored, path, logger):
    """Set the model flags the user did not type to the ones a checkpoint was trained with.

    Raises:
        RuntimeError: a typed adapter flag contradicts the checkpoint.
    """
    for flag in (*ADAPTER_FLAGS, *NETWORK_FLAGS):
        if not stored or flag not in stored or stored[flag] == getattr(args, flag):
            continue
        trained, given = stored[flag], getattr(args, flag)
        if flag not in args.typed:
            setattr(args, flag, trained)
        elif flag in ADAPTER_FLAGS:
            raise RuntimeError(
                f"checkpoint {path} was made with other adapter settings: --{flag} was {trained!r}, is {given!r}. "
                "Leave the flag away to use the checkpoint's"
            )
        else:
            logger.warning(f"trained with --{flag} {trained}, tested with {given}, as typed")
    if getattr(args, "context_control", "none") != "none" and args.text_context != "none":
        raise RuntimeError(
            f"{path} was trained with --context_control {args.context_control}, whose anchors see no image: leave "
            f"--text_context {args.text_context} away"
        )
    corrections = changed_oddities(stored or {})
    if corrections:
        logger.info(f"trained with corrections of AA-CLIP's oddities: {corrections}")


def milestones_in_steps(milestones, steps):
    """LR milestones as batches: values all below 1 are fractions of the run's `steps`.

    Raises:
        ValueError: fractions and steps are mixed, or a value is not positive.
    """
    if all(0 < value < 1 for value in milestones):
        return [max(1, round(value * steps)) for value in milestones]
    if all(value >= 1 and value == int(value) for value in milestones):
        return [int(value) for value in milestones]
    raise ValueError(f"--milestones {milestones}: give whole steps (16000 32000) or fractions of the run (0.5 0.8)")


def adam(modules, lr):
    """AA-CLIP's optimiser over the parameters of some modules."""
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    return torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.999))
