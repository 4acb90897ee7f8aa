"""A folder to share a trained adapter: safetensors, settings, metrics, and a model card made from the run."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from jinja2 import Environment, FileSystemLoader
from safetensors.torch import load_file, save

from evaluation.photographs.scorer import PhotographScorer
from evaluation.scorer import scorer_of
from files.atomic import replacing, write_text
from files.command import Refusal
from files.logs import quiet_logger
from files.text import read_json
from model.weights_file import published_as
from run_folder.flags import settings_of
from run_folder.kinds import BASELINE, KINDS
from run_folder.loaded_run import GROUPS, LoadedRun, load_run
from run_folder.session import create_adapted_model, create_backbone
from run_folder.settings import corrections_in
from utils import choose_device

WEIGHTS, CONFIG, METRICS, CARD = "adapter.safetensors", "config.json", "metrics.json", "README.md"
SHOWN = ("pixel_auroc", "pixel_ap", "pixel_aupro", "image_auroc", "image_ap", "image_auroc_unnormalised")
MEAN_ANCHORS = "mean_anchors."
PRIVATE = (  # settings that name files of this machine, or how it was used
    "data_root",
    "save_path",
    "clip_weights",
    "dataset_config",
    "real_names",
    "extra_meta",
    "load_base_text_adapter",
    "load_base_image_adapter",
    "feature_cache",
    "image_cache",
    "tracker",
    "tracker_project",
    "device",
)


def write_hub_layout(run: Path | str, checkpoint: Path | str | None, loop: int | None, folder: Path) -> Path:
    """Write the folder; returns the model card.

    Raises:
        Refusal: the checkpoint carries no settings (a file of AA-CLIP), so that nothing could be said of it.
        FileExistsError: the folder holds other things.
    """
    loaded = load_run(run, checkpoint, loop, device="cpu")
    if loaded.stored is None:
        raise Refusal(
            f"{loaded.checkpoint} says nothing of its training: only runs of this project can be described"
        )
    foreign = sorted(
        path.name for path in folder.glob("*") if path.name not in (WEIGHTS, CONFIG, METRICS, CARD)
    )
    if foreign:
        raise FileExistsError(
            f"--hub_layout {folder} holds {foreign[0]}: name a new folder, nothing is overwritten"
        )
    folder.mkdir(parents=True, exist_ok=True)
    metrics_file = Path(run) / "metrics.json"
    metrics = entries_of(read_json(metrics_file), loaded) if metrics_file.is_file() else {}
    with replacing(folder / WEIGHTS) as file:
        file.write(save(tensors_of(loaded)))
    write_text(folder / CONFIG, json.dumps(config_of(loaded), indent=1) + "\n")
    write_text(folder / METRICS, json.dumps(metrics, indent=1) + "\n")
    write_text(folder / CARD, card(loaded, metrics))
    return folder / CARD


def tensors_of(run: LoadedRun) -> dict[str, torch.Tensor]:
    """{"module key.name": tensor} of all a run has trained, and the mean anchors it keeps."""
    modules = run.model.text_modules | run.model.image_modules
    tensors = {
        f"{key}.{name}": value.contiguous()
        for key, module in modules.items()
        for name, value in module.state_dict().items()
    }
    return tensors | {f"{MEAN_ANCHORS}{name}": value.contiguous() for name, value in run.mean_anchors.items()}


def config_of(run: LoadedRun) -> dict[str, Any]:
    """What `load_hub` needs beside the tensors."""
    return {
        "kind": run.kind.name,
        "loop": run.loop,
        "attends": run.attends,
        "adapted_text": run.adapted_text,
        "backbone": run.model.clipmodel.source._asdict(),
        "settings": {key: value for key, value in run.stored.items() if key not in PRIVATE},
    }


def entries_of(metrics: dict[str, dict], run: LoadedRun) -> dict[str, dict]:
    """{dataset: entry} of a run's metrics.json that are of its checkpoint, zero-shot and whole."""
    found = {dataset: entries.get(run.checkpoint.name) for dataset, entries in metrics.items()}
    return {
        dataset: {key: entry[key] for key in ("classes", "mean", "img_size", "metrics_version")}
        for dataset, entry in found.items()
        if entry is not None and entry.get("checkpoints") == run.files and not entry.get("unfinished")
    }


def card(run: LoadedRun, metrics: dict[str, dict]) -> str:
    """The model card."""
    environment = Environment(  # noqa: S701  (Markdown, not HTML)
        loader=FileSystemLoader(Path(__file__).parent / "templates"), trim_blocks=True, lstrip_blocks=True
    )
    source = run.model.clipmodel.source
    backbone = source._asdict() | {"published": published_as(source.sha256)}
    epoch = run.stored.get("image_epoch")
    return environment.get_template("model_card.md").render(
        kind=run.kind.name,
        settings=run.stored,
        backbone=backbone,
        epoch=epoch,
        attends=run.kind is not BASELINE and run.attends,
        corrections=corrections_in(run.stored),
        tables={dataset: table(entry["classes"]) for dataset, entry in metrics.items()},
    )


def table(classes: dict[str, dict]) -> dict[str, Any]:
    """{"classes", "images", "metrics": {name: "mean [low, high]"}} of a data set, in percent."""
    shown = {}
    for key in SHOWN:
        values = 100 * np.array([row[key] for row in classes.values() if row.get(key) is not None])
        if len(values):
            shown[key] = f"{values.mean():.1f}{t_interval(values)}"
    return {
        "classes": len(classes),
        "images": sum(row["images"] for row in classes.values()),
        "metrics": shown,
    }


def t_interval(values: np.ndarray) -> str:
    """The 95 % t interval of a mean of values [n] as " [low, high]"; "" of a single value."""
    if len(values) < 2:
        return ""
    error = values.std(ddof=1) / math.sqrt(len(values))
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * error
    return f" [{values.mean() - half:.1f}, {values.mean() + half:.1f}]"


def load_hub(folder: Path | str, clip_weights: Path | str | None = None) -> PhotographScorer:
    """The scorer of a shared adapter.

    Args:
        clip_weights: of its backbone; found as for every run when None.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or the backbone's weights are.
        Refusal: the backbone found is not the one the adapter was trained on.
    """
    config, tensors = read_json(Path(folder) / CONFIG), load_file(Path(folder) / WEIGHTS)
    settings = settings_of(GROUPS, config["settings"]).change(clip_weights=clip_weights, device=None)
    device = choose_device(None)
    clip = create_backbone(settings, device, quiet_logger())
    if clip.source.tensors != config["backbone"]["tensors"]:
        raise Refusal(
            f"{folder} was trained on the backbone {config['backbone']['file']}, SHA-256 "
            f"{config['backbone']['sha256']}; {clip.source.file} holds others: give its weights with clip_weights"
        )
    kind = next(one for one in KINDS if one.name == config["kind"])
    described = replace(settings, cross_attention=None) if kind is BASELINE else settings
    model = create_adapted_model(clip, described, device).eval()
    for key, module in (model.text_modules | model.image_modules).items():
        module.load_state_dict(below(f"{key}.", tensors))
    anchors = {name: value.to(device) for name, value in below(MEAN_ANCHORS, tensors).items()}
    run = LoadedRun(
        kind,
        settings,
        model,
        Path(folder) / WEIGHTS,
        config["settings"],
        {},
        loop=config["loop"],
        attends=config["attends"],
        adapted_text=config["adapted_text"],
        mean_anchors=anchors,
    )
    origin = {"kind": kind.name, "checkpoint": str(run.checkpoint), "backbone": clip.source.sha256}
    return PhotographScorer(partial(scorer_of, run), settings.model.img_size, device, origin=origin)


def below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
