"""Scoring a dataset class by class: anomaly maps, image scores, metrics, tables."""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch.utils.data import DataLoader
from tqdm import tqdm

from forward_utils import calculate_similarity_map, frozen_patches
from forward_utils_cross_attention import fixed_anchors, own_anchors, text_context_groups
from metrics import class_metrics, mean_row, metrics_eval
from utils import on_terminal


def adapted_predictor(model, anchors, img_size, domain):
    """Scores of an adapted model: function (image [B, 3, H, W], class name) -> (maps [B, H, W], head [B])."""

    def predict(image, class_name):
        seg, det = model(image)
        return score(seg, det, anchors[class_name], img_size, domain)

    return predict


def raw_clip_predictor(clip, anchors, img_size, domain):
    """Scores of unadapted CLIP: patches of the last block, projected as CLS is, and CLS for the head."""

    def predict(image, class_name):
        depth = clip.default_levels[-1]
        pooled, (tokens,) = clip.encode_image(image, [depth])
        patches = F.normalize(clip.visual.ln_post(tokens[:, 1:]) @ clip.visual.proj, dim=-1)
        return score([patches], F.normalize(pooled, dim=-1), anchors[class_name], img_size, domain)

    return predict


def cross_attention_predictor(model, contexts, anchors_of, img_size, domain):
    """Scores of a model whose images attend to prompts.

    Args:
        contexts: {class name: forward_utils_cross_attention.TextContext}.
        anchors_of: {"image", "class_name"} -> anchors [B, E, 2].
    """

    def predict(image, class_name):
        batch = {"image": image, "class_name": [class_name] * len(image)}
        seg, det = model(image, text_context_groups(contexts, batch["class_name"]))
        return score(seg, det, model.with_reference(anchors_of(batch)), img_size, domain)

    return predict


def frozen_first_patches(model, surgery):
    """Function batch -> first-level surgery patches [B, L, E] at test.

    One image at a time: under AA-CLIP's surgery the batch's other images would leak into a test score.
    """
    clip, first = model.clipmodel, model.levels[0]

    def first_patches(batch):
        return torch.cat([frozen_patches(clip, surgery, one, [first])[0][first] for one in batch["image"].split(1)])

    return first_patches


def anchors_at_test(model, dataset_name, wanted, means, first_patches, device):
    """Function batch -> anchors [B, E, 2], as the run was trained.

    Args:
        wanted: `--text_context`: "none", "train_mean" or "image".
        means: {class name: [E, 2]} averaged in training, for "train_mean".
        first_patches: batch -> first-level patches [B, L, E], for "image".
    """
    if wanted == "image":
        return own_anchors(model, dataset_name, first_patches, device)
    means = {name: anchors.to(device) for name, anchors in means.items()} if wanted == "train_mean" else {}
    return fixed_anchors(model, dataset_name, means, device)


def score(patches, head, anchors, img_size, domain):
    """Test map summed over the levels [B, img_size, img_size], and head score (head . abnormal + 1) / 2 [B].

    Anchors are [E, 2] for all images, or [B, E, 2], one pair per image.
    """
    anchors = anchors.expand(len(head), -1, -1)
    maps = [calculate_similarity_map(level, anchors, img_size, test=True, domain=domain) for level in patches]
    return torch.cat(maps, dim=1).sum(dim=1), (torch.einsum("be,be->b", head, anchors[..., 1]) + 1) / 2


@torch.no_grad()
def predict_class(predict, dataset, class_name, *, batch_size, device, workers=0):
    """Score every test image of one class.

    Returns:
        {"maps" [n, S, S] float32, "head" [n] float32, "masks" [n, S, S] uint8, "labels" [n], "files" [n]}
    """
    parts = {key: [] for key in ("maps", "head", "masks", "labels", "files")}
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers)
    for batch in tqdm(loader, desc=class_name, leave=False, disable=not on_terminal()):
        maps, head = predict(batch["image"].to(device), class_name)
        parts["maps"].append(maps.float().cpu().numpy())
        parts["head"].append(head.float().cpu().numpy())
        parts["masks"].append(batch["mask"][:, 0].numpy().astype(np.uint8))
        parts["labels"].append(np.asarray(batch["label"]))
        parts["files"].extend(batch["file_name"])
    return {key: value if key == "files" else np.concatenate(value) for key, value in parts.items()}


def evaluate(predict, test_sets, domain, levels, *, batch_size, device, workers=0, on_class=None):
    """Metrics of every class of a dataset.

    Args:
        predict: function (image, class name) -> (maps, head).
        test_sets: {class name: dataset}.
        levels: number of levels the maps sum over.
        on_class: function (class name, predictions) called after each class, for pictures.

    Returns:
        {"classes": {name: metrics}, "mean": metrics, "upstream": [rows of upstream's table]}
    """
    classes, upstream = {}, []
    for name, dataset in test_sets.items():
        found = predict_class(predict, dataset, name, batch_size=batch_size, device=device, workers=workers)
        maps, head = found["maps"], found["head"]
        classes[name] = class_metrics(found["masks"], found["labels"], maps, head, domain, levels)
        upstream.append(metrics_eval(found["masks"], found["labels"], maps, head, name, domain))
        if on_class is not None:
            on_class(name, found)
    average = {key: float(np.mean([row[key] for row in upstream])) for key in upstream[0] if key != "class name"}
    upstream.append({"class name": "Average"} | average)
    return {"classes": classes, "mean": mean_row(list(classes.values())), "upstream": upstream}


def format_table(rows):
    """Upstream's table as aligned text: one line per class, percent with two decimals."""
    columns = list(rows[0])
    cells = [[f"{row[key]:.2f}" if key != "class name" else str(row[key]) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
                     for line in [columns, *cells])  # fmt: skip


def write_metrics(save_path, dataset, checkpoint, result, about):
    """Merge one evaluation into `metrics.json` (full precision, undefined = null) and rewrite `metrics.csv`.

    Args:
        about: what the numbers depend on (image size, seed, settings of the checkpoint).

    Raises:
        ValueError: the folder's metrics.json is not readable; it is left as it is.
    """
    path = Path(save_path) / "metrics.json"
    with FileLock(Path(save_path) / ".metrics.lock"):  # two evaluations may end at the same time
        _merge_metrics(path, dataset, checkpoint, result, about)


def _merge_metrics(path, dataset, checkpoint, result, about):
    try:
        everything = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): move it away, evaluation would overwrite it") from error
    entry = about | {"classes": result["classes"], "mean": result["mean"]}
    everything.setdefault(dataset, {})[checkpoint] = entry
    write_text(path, json.dumps(everything, indent=1) + "\n")
    table = io.StringIO()
    writer = csv.writer(table)
    metrics = list(result["mean"])
    writer.writerow(["dataset", "checkpoint", "class", *metrics])
    for name, checkpoints in everything.items():
        for file, found in checkpoints.items():
            for row_name, row in [*found["classes"].items(), ("mean", found["mean"])]:
                writer.writerow([name, file, row_name, *(row.get(key) for key in metrics)])
    write_text(path.with_suffix(".csv"), table.getvalue())


def write_text(path, text):
    """Replace a text file in one step, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
