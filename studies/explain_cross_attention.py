"""What trained cross-attention does: what it looks at, whether its content matters, how much gradient it gets.

    python -m studies.explain_cross_attention

explains the runs that `python -m studies.evidence` left; other runs by --runs, --baselines and --data.

Per run, on the test set: the share of image -> text attention on the words for damage, on the class's own words and on
the rest, for patches inside and outside defects, beside the share of the tokens (attention that looks at nothing in
particular); metrics with the class's own prompts, another class's, a constant and none; the anchors' cosine; and the
part of both stages' gradient that goes to the attention. Written as JSON and Markdown.
"""

import argparse
import glob
import json
import logging
import statistics
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from dataset import get_dataset
from dataset.constants import REAL_NAMES
from evaluation.predictions import evaluate_dataset
from evaluation.scorer import scorer_of
from files.atomic import write_text
from forward_utils import class_tokens, fixed_anchors, frozen_image_features, get_adapted_text_embedding
from forward_utils_cross_attention import (
    TextContext,
    anchors_seeing_images,
    comparison_seeing_prompts,
    controlled_text_contexts,
    scope_named,
    text_context_dictionary,
)
from model.adapter import AdaptedCLIP
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.tokenizer import tokenize
from run_folder.flags import settings_of
from run_folder.kinds import BASELINE, CROSS_ATTENTION, RunKind
from run_folder.loaded_run import LoadedRun, load_run
from run_folder.session import surgery_of
from run_folder.settings import CROSS_ATTENTION_GROUPS, Settings
from training.engine import StepLoss, gradient_norm, to_device
from training.loaders import training_loaders
from training.optimisation import only_training
from training.stages import image_stage_loss, loss_levels, text_stage_loss

STUDY = "runs/evidence/DemoA_DemoB_data1"
DAMAGE = ("damaged", "broken", "flaw", "defect", "damage")
BATCHES = 8  # of each stage, for the gradients


def token_kinds(dataset: str, class_name: str) -> list[str]:
    """Kind of every real token of a class's prompts, in the order of its TextContext: "damage", "class" or "other"."""
    damage, own = (set(words_ids(words)) for words in (DAMAGE, REAL_NAMES[dataset][class_name].split()))
    tokens = class_tokens(dataset, class_name)[0]
    real = torch.arange(tokens.shape[1]) <= tokens.argmax(dim=-1, keepdim=True)
    return [
        "damage" if token in damage else "class" if token in own else "other"
        for token in tokens[real].tolist()
    ]


def words_ids(words: Sequence[str]) -> list[int]:
    """Token ids of words, without start and end."""
    return [token for row in tokenize(list(words)).tolist() for token in row[1 : row.index(max(row))]]


@torch.no_grad()
def attention_shares(
    model: AdaptedCLIPWithCrossAttention,
    dataset: str,
    test_sets: dict[str, Dataset],
    contexts: dict[str, TextContext],
) -> dict[str, dict[str, float]]:
    """{"inside" or "outside": {kind: share of the attention}, "tokens": {kind: share of the tokens}}, class means."""
    found = {"inside": [], "outside": [], "tokens": []}
    for name, images in test_sets.items():
        kinds = token_kinds(dataset, name)
        member = torch.tensor(
            [[kind == wanted for kind in kinds] for wanted in ("damage", "class", "other")]
        ).float()
        found["tokens"].append(member.mean(dim=1))
        sums = {"inside": [], "outside": []}
        for item in images:
            if not item["mask_known"]:
                continue
            x = model.attending_tokens(item["image"][None])[:, 1:]
            weights = model.image_cross_attn.attention_map(x, contexts[name].seen)[0]
            side = int(weights.shape[0] ** 0.5)
            covered = F.adaptive_avg_pool2d(torch.as_tensor(item["mask"]).float(), side).flatten()
            shares = weights @ member.T
            sums["inside"].append(shares[covered > 0.5])
            sums["outside"].append(shares[covered == 0])
        for where, parts in sums.items():
            found[where].append(torch.cat(parts).mean(dim=0))
    return {
        where: dict(zip(("damage", "class", "other"), torch.stack(parts).mean(dim=0).tolist(), strict=True))
        for where, parts in found.items()
    }


def loaded(folder: str, kind: RunKind) -> LoadedRun:
    """A run of a kind after its last epoch, on the CPU."""
    return load_run(folder, Path(folder) / f"{kind.image_prefix}.pth", device="cpu")


def training_settings(run: LoadedRun, data: str) -> Settings:
    """What a run was trained with, as its checkpoint has it, with the data's place and in float32.

    Raises:
        RuntimeError: the checkpoint says nothing of it.
    """
    if run.stored is None:
        raise RuntimeError(
            f"{run.checkpoint} has no settings, which name its training images: explain a run of this project"
        )
    return settings_of(CROSS_ATTENTION_GROUPS, run.stored).change(data_root=data, precision="fp32")


def separation(model: AdaptedCLIP, dataset: str) -> float:
    """Mean cosine of a dataset's normal and abnormal anchors."""
    with torch.no_grad():
        anchors = get_adapted_text_embedding(model, dataset, "cpu")
    return statistics.mean(float(pair[:, 0] @ pair[:, 1]) for pair in anchors.values())


def stage_losses(model: AdaptedCLIPWithCrossAttention, settings: Settings) -> dict[str, StepLoss]:
    """{stage: its loss, a function of a batch}, as train_cross_attention.py trains."""
    dataset, contexts, corrections = settings.data.dataset, settings.contexts, settings.corrections
    levels, surgery = loss_levels(model, corrections), surgery_of(model.clipmodel, settings)
    scope = scope_named(contexts.context_scope, contexts.context_control)
    prompts = text_context_dictionary(model, dataset, contexts.context_control)
    text = partial(
        text_stage_loss,
        patches_of=frozen_image_features(model, surgery, [model.levels[0], *levels]),
        anchors_of=anchors_seeing_images(model, dataset, scope),
        loss_levels=levels,
        norm_weight=settings.training.text_norm_weight,
        cls_weight=corrections.text_cls_weight,
    )
    image = partial(
        image_stage_loss,
        compare=comparison_seeing_prompts(model, prompts),
        anchors_of=fixed_anchors(model, dataset),
        head_temperature=corrections.head_temperature,
    )
    return {"text": text, "image": image}


def gradient_shares(model: AdaptedCLIPWithCrossAttention, settings: Settings) -> dict[str, float]:
    """{stage: share of the squared gradient norm that goes to its attention}, on training batches."""
    losses, found = stage_losses(model, settings), {}
    loaders = training_loaders(settings, logging.getLogger(__name__))
    for (stage, loss_of), loader in zip(losses.items(), loaders, strict=True):
        modules, shares = {"text": model.text_modules, "image": model.image_modules}[stage], []
        with only_training(model, modules):
            for _, batch in zip(range(BATCHES), loader, strict=False):
                model.zero_grad(set_to_none=True)
                sum(loss_of(to_device(batch, "cpu")).values()).backward()
                squares = {key: float(gradient_norm(module)) ** 2 for key, module in modules.items()}
                shares.append(squares[f"{stage}_cross_attn"] / sum(squares.values()))
        found[stage] = statistics.mean(shares)
    return found


def explain(folder: str, args: Namespace) -> dict[str, dict | float]:
    """Everything this script measures of one cross-attention run."""
    run = loaded(folder, CROSS_ATTENTION)
    model, settings = run.model, training_settings(run, args.data)
    test_sets = get_dataset(
        args.dataset,
        settings.model.img_size,
        "full_shot",
        0,
        "test",
        logging.getLogger(__name__),
        data_root=args.data,
    )
    contexts = text_context_dictionary(model, args.dataset)
    found = {
        "shares": attention_shares(model, args.dataset, test_sets, contexts),
        "anchor cosine": separation(model, args.dataset),
        "metrics": {},
    }
    scorer = scorer_of(run, args.dataset)
    scorer.anchors_of = fixed_anchors(model, args.dataset)
    controls = ("none", "other_class", "constant")
    seen = {control: controlled_text_contexts(contexts, control) for control in controls}
    for name, shown in {
        "own prompts": seen["none"],
        "another class's": seen["other_class"],
        "a constant": seen["constant"],
        "nothing": {},
    }.items():
        scorer.contexts = shown
        mean = evaluate_dataset(scorer, test_sets, batch_size=32, device="cpu")["mean"]
        found["metrics"][name] = {key: mean[key] for key in ("pixel_ap", "image_auroc")}
    found["gradient"] = gradient_shares(model, settings)
    return found


def explain_baseline(folder: str, args: Namespace) -> dict[str, float]:
    """The anchors' cosine of a baseline run."""
    return {"anchor cosine": separation(loaded(folder, BASELINE).model, args.dataset)}


def markdown(found: dict[str, dict], baselines: dict[str, dict]) -> str:
    """The runs' means as text."""

    def mean(*keys, of=found):
        values = []
        for one in of.values():
            for key in keys:
                one = one[key]
            values.append(one)
        return statistics.mean(values)

    lines = ["| image → text attention on | damage words | class's words | other |", "|--|--|--|--|"]
    for where, label in (
        ("inside", "patches inside defects"),
        ("outside", "patches outside"),
        ("tokens", "(share of the tokens)"),
    ):
        cells = [f"{100 * mean('shares', where, kind):.1f} %" for kind in ("damage", "class", "other")]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| images see at test | pixel AP | image AUROC |", "|--|--|--|"]
    for name in next(iter(found.values()))["metrics"]:
        cells = [f"{100 * mean('metrics', name, key):.2f}" for key in ("pixel_ap", "image_auroc")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text, image = (100 * mean("gradient", stage) for stage in ("text", "image"))
    lines += [
        "",
        f"Share of the squared gradient that goes to the attention: stage 1 {text:.1f} %, stage 2 "
        f"{image:.1f} %.",
        "",
        f"Cosine of normal and abnormal anchor: {mean('anchor cosine'):.3f}",
    ]
    if baselines:
        lines[-1] += f", baseline {mean('anchor cosine', of=baselines):.3f}."
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", default=f"{STUDY}/cross_attention_seed*", help="cross-attention runs, as a pattern"
    )
    parser.add_argument("--baselines", default=f"{STUDY}/baseline_seed*", help="baseline runs, as a pattern")
    parser.add_argument("--dataset", default="DemoB", help="the test set")
    parser.add_argument("--data", default="runs/evidence/data_seed1", help="folder of the rendered sets")
    parser.add_argument("--out", default="results/evidence/explanation", help="file without its ending")
    args = parser.parse_args(argv)
    folders = sorted(glob.glob(args.runs))
    if not folders:
        raise FileNotFoundError(f"--runs {args.runs}: no such folder")
    others = sorted(glob.glob(args.baselines))
    if not others:
        raise FileNotFoundError(f"--baselines {args.baselines}: no such folder")
    found = {Path(folder).name: explain(folder, args) for folder in folders}
    baselines = {Path(folder).name: explain_baseline(folder, args) for folder in others}
    write_text(f"{args.out}.json", json.dumps(found | baselines, indent=1) + "\n")
    told = markdown(found, baselines)
    write_text(f"{args.out}.md", told)
    print(told)


if __name__ == "__main__":
    main()
