"""What trained cross-attention does: what it looks at, whether its content matters, how far its weights moved.

    python -m studies.explain_cross_attention

explains the runs that `python -m studies.evidence` left; other runs by --runs, --baselines and --data. What --out says
of runs that are not here stays.

Per run, on the test set: the share of image -> text attention on the words for damage, on the class's own words and on
the rest, for patches inside and outside defects, beside the share of the tokens (attention that looks at nothing in
particular); metrics with the class's own prompts, another class's, a constant and none; the anchors' cosine; how far
every module's weights lie from their first values; and the entropy of both stages' attention on training batches as a
share of uniform weights'. Written as JSON and Markdown.
"""

import argparse
import glob
import json
import statistics
from argparse import Namespace
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path

import torch

from dataset import DOMAINS, get_dataset
from evaluation.predictions import evaluate_dataset
from evaluation.scorer import AnomalyScorer
from files.atomic import write_text
from files.command import run_main
from files.logs import quiet_logger
from forward_utils import fixed_anchors, get_adapted_text_embedding
from forward_utils_cross_attention import controlled_text_contexts, text_context_dictionary
from model.adapter import AdaptedCLIP
from run_folder.flags import HelpFormatter
from run_folder.kinds import BASELINE, CROSS_ATTENTION, RunKind
from run_folder.loaded_run import LoadedRun, load_run
from studies.attention_shares import KINDS, attention_shares
from studies.trained_attention import attention_entropies, displacement, training_settings

STUDY = "runs/evidence/DemoA_DemoB_data1"


def last_epoch(folder: str, kind: RunKind) -> LoadedRun:
    """A run of a kind after its last epoch, on the CPU."""
    return load_run(folder, Path(folder) / f"{kind.image_prefix}.pth", device="cpu")


def separation(model: AdaptedCLIP, dataset: str) -> float:
    """Mean cosine of a dataset's normal and abnormal anchors."""
    with torch.no_grad():
        anchors = get_adapted_text_embedding(model, dataset, "cpu")
    return statistics.mean(float(pair[:, 0] @ pair[:, 1]) for pair in anchors.values())


def explain(folder: str, args: Namespace) -> dict[str, dict | float]:
    """Everything this script measures of one cross-attention run."""
    run = last_epoch(folder, CROSS_ATTENTION)
    model, settings = run.model, training_settings(run, args.data)
    test_sets = get_dataset(
        args.dataset,
        settings.model.img_size,
        "full_shot",
        0,
        "test",
        quiet_logger(),
        data_root=args.data,
    )
    contexts = text_context_dictionary(model, args.dataset)
    explanation = {
        "shares": attention_shares(model, args.dataset, test_sets, contexts),
        "anchor cosine": separation(model, args.dataset),
        "metrics": {},
    }
    anchors_of, size = fixed_anchors(model, args.dataset), settings.model.img_size
    controls = ("none", "other_class", "constant")
    controlled = {control: controlled_text_contexts(contexts, control) for control in controls}
    for name, seen_contexts in {
        "own prompts": controlled["none"],
        "another class's": controlled["other_class"],
        "a constant": controlled["constant"],
        "nothing": {},
    }.items():
        scorer = AnomalyScorer(model, anchors_of, seen_contexts, size, DOMAINS[args.dataset])
        mean = evaluate_dataset(scorer, test_sets, batch_size=32, device="cpu")["mean"]
        explanation["metrics"][name] = {key: mean[key] for key in ("pixel_ap", "image_auroc")}
    explanation["displacement"] = displacement(model, settings)
    explanation["entropy"] = attention_entropies(model, settings)
    return explanation


def explain_baseline(folder: str, args: Namespace) -> dict[str, float]:
    """The anchors' cosine of a baseline run."""
    return {"anchor cosine": separation(last_epoch(folder, BASELINE).model, args.dataset)}


def mean_of(runs: dict[str, dict], *keys: str) -> float:
    """Mean over {run: explanation} of the number that `keys` lead to."""
    return statistics.mean(reduce(getitem, keys, explanation) for explanation in runs.values())


def markdown(runs: dict[str, dict], baselines: dict[str, dict]) -> str:
    """The means over {run: explanation} as text."""
    lines = ["| image → text attention on | damage words | class's words | other |", "|--|--|--|--|"]
    for region, label in (
        ("inside", "patches inside defects"),
        ("outside", "patches outside"),
        ("tokens", "(share of the tokens)"),
    ):
        cells = [f"{100 * mean_of(runs, 'shares', region, kind):.1f} %" for kind in KINDS]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| images see at test | pixel AP | image AUROC |", "|--|--|--|"]
    for name in next(iter(runs.values()))["metrics"]:
        cells = [f"{100 * mean_of(runs, 'metrics', name, key):.2f}" for key in ("pixel_ap", "image_auroc")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += trained_lines({name: run for name, run in runs.items() if "displacement" in run}, len(runs))
    lines += [f"Cosine of normal and abnormal anchor: {mean_of(runs, 'anchor cosine'):.3f}"]
    if baselines:
        lines[-1] += f", baseline {mean_of(baselines, 'anchor cosine'):.3f}."
    return "\n".join(lines) + "\n"


def trained_lines(runs: dict[str, dict], every: int) -> list[str]:
    """Displacement and entropy of those of `every` runs that have them, as Markdown."""
    if not runs:
        return ["", "Weight displacement and attention entropy: not measured in these runs.", ""]
    first = next(iter(runs.values()))
    moved = [f"{key} {mean_of(runs, 'displacement', key):.3f}" for key in first["displacement"]]
    shares = [f"stage {i} {100 * mean_of(runs, 'entropy', s):.2f} %" for i, s in ((1, "text"), (2, "image"))]
    return [
        "",
        f"Weight displacement |W − W0| / |W0| ({len(runs)} of {every} runs): {', '.join(moved)}.",
        "",
        f"Entropy of the attention as a share of uniform weights' (the same runs): {', '.join(shares)}.",
        "",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
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
    runs = {Path(folder).name: explain(folder, args) for folder in folders}
    baselines = {Path(folder).name: explain_baseline(folder, args) for folder in others}
    file = Path(f"{args.out}.json")
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    everything = before | runs | baselines
    write_text(file, json.dumps(everything, indent=1) + "\n")
    runs = {name: entry for name, entry in everything.items() if "metrics" in entry}
    baselines = {name: entry for name, entry in everything.items() if "metrics" not in entry}
    text = markdown(runs, baselines)
    write_text(f"{args.out}.md", text)
    print(text)


if __name__ == "__main__":
    run_main(main)
