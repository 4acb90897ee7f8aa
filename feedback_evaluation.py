"""The loops of a feedback run at test: loading one, scoring with it, and the table of all of them."""

import json
import re
from pathlib import Path

from checkpoints import load_checkpoint, load_module, restore_rng, rng_state
from dataset import DOMAINS
from evaluation import (
    anchors_at_test,
    cross_attention_predictor,
    evaluate,
    frozen_first_patches,
    write_metrics,
    write_text,
)
from forward_utils_cross_attention import text_context_dictionary, trained_paths
from model.clip import surgery_copy
from options import settings
from run_files import FEEDBACK, loop_file

SHOWN = {  # columns of the loop table by their key in metrics.json
    "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pixel_aupro": "pixel AUPRO", "image_auroc": "image AUROC",
    "image_ap": "image AP",
}  # fmt: skip
EVALUATION_BATCH = 32  # images scored together; changes no number
CAUTION = (
    "The best loop (**bold**, largest mean of the columns) was found by looking at this test set: its numbers are "
    "optimistic. Choose the number of loops on other data, or report the last loop."
)


def modules_of(model):
    """What a loop's file holds of a model, by key."""
    return {key: getattr(model, key) for key in FEEDBACK.text_keys} | model.image_modules


def load_loop(model, path):
    """Load all modules of a loop_{n}_final.pth or final_model.pth, strictly.

    Returns:
        the file's content.
    """
    content = load_checkpoint(path, keys=list(modules_of(model)))
    for key, module in modules_of(model).items():
        load_module(module, content[key], path)
    return content


def loop_of(content):
    """Number of the loop a file's weights are of; the final model is its last loop."""
    return content.get("loop", content.get("total_loops"))


def cross_attention_weights(args, content):
    """(text, image) cross-attention weights of a loop: the flags', or 0 where the loop was trained without.

    Files of other programs do not say, and count as trained with.
    """
    on = content.get("cross_attention", True)
    return (args.text_cross_attn_weight, args.image_cross_attn_weight) if on else (0.0, 0.0)


def loop_predictor(model, dataset_name, loop, means, args, device, *, cross_attention=True):
    """Scores of the model as it stands after a loop.

    Args:
        dataset_name: the dataset that is scored.
        loop: number of the loop, 1 for a run without feedback; with `--text_context image` prompts attend to frozen
            patches in loop 1, as they did in its training, and to the trained image path from loop 2 on.
        means: the loop's anchors for `--text_context train_mean`.
        cross_attention: False switches everything off, the ablation of test.py.

    Returns:
        (predict, contexts, first_patches): evaluation.cross_attention_predictor's function and its two inputs.
    """
    contexts = text_context_dictionary(model, dataset_name, device, args.context_control) if cross_attention else {}
    if loop == 1:
        across_batch = args.surgery_attention == "batch"
        first_patches = frozen_first_patches(
            model, surgery_copy(model.clipmodel, args.surgery_until_layer, across_batch=across_batch)
        )
    else:
        first_patches = trained_paths(model, contexts)[1]
    wanted = args.text_context if cross_attention else "none"
    anchors_of = anchors_at_test(model, dataset_name, wanted, means, first_patches, device)
    predict = cross_attention_predictor(model, contexts, anchors_of, args.img_size, DOMAINS[dataset_name])
    return predict, contexts, first_patches


def evaluate_loop(model, loop, means, test_sets, args, device, logger):
    """Evaluate a model as it stands after a loop on `--eval_every_loop`, into metrics.json and loops.md.

    Nothing that training draws from moves: a data loader takes its seed from torch's random generator.

    Args:
        test_sets: {class name: dataset} of `--eval_every_loop`.
    """
    dataset, before, visual = args.eval_every_loop, rng_state(), model.clipmodel.visual
    autocast, visual.autocast = visual.autocast, None  # evaluations are float32
    predict, *_ = loop_predictor(model, dataset, loop, means, args, device)
    result = evaluate(predict, test_sets, DOMAINS[dataset], len(model.levels), batch_size=EVALUATION_BATCH,
                      device=device, workers=args.workers)  # fmt: skip
    restore_rng(before)
    visual.autocast = autocast
    about = {"model_name": args.model_name, "img_size": args.img_size, "domain": DOMAINS[dataset],
             "kind": FEEDBACK.name, "settings": settings(args)}  # fmt: skip
    write_metrics(args.save_path, dataset, loop_file(args.save_path, loop, "final").name, result, about)
    write_loop_table(args.save_path)
    mean = {key: f"{value:.4f}" for key, value in result["mean"].items() if isinstance(value, float)}
    logger.info(f"{dataset} after loop {loop}: " + ", ".join(f"{key} {value}" for key, value in mean.items()))


def write_loop_table(save_path):
    """Write loops.md from what metrics.json holds of a run's loops.

    Returns:
        the text.
    """
    everything = json.loads((Path(save_path) / "metrics.json").read_text(encoding="utf-8"))
    parts = ["# Loop by loop", "", "Mean over the classes in percent; in brackets the change against the first loop."]
    for dataset, entries in everything.items():
        for ending in ("", " without cross-attention"):
            means = {
                int(match[1]): entry["mean"]
                for name, entry in entries.items()
                if (match := re.fullmatch(r"loop_(\d+)_final\.pth" + ending, name))
            }
            if means:
                parts += ["", f"## {dataset}{ending}", "", loop_table(means)]
    text = "\n".join([*parts, "", CAUTION]) + "\n"
    write_text(Path(save_path) / "loops.md", text)
    return text


def loop_table(means):
    """Markdown table of {loop: mean metrics}: one row per loop, change against the first, the best one bold."""
    loops, columns = sorted(means), list(SHOWN)
    best = max(loops, key=lambda loop: mean_of(means[loop])) if len(loops) > 1 else None
    lines = ["| loop | " + " | ".join(SHOWN.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for loop in loops:
        cells = [cell(means[loop][key], means[loops[0]][key], loop == loops[0]) for key in columns]
        name = f"{loop} (best)" if loop == best else str(loop)
        lines.append("| " + " | ".join(f"**{text}**" if loop == best else text for text in [name, *cells]) + " |")
    return "\n".join(lines)


def mean_of(metrics):
    """Mean of the table's metrics; an undefined one (None) is left out."""
    values = [metrics[key] for key in SHOWN if metrics[key] is not None]
    return sum(values) / max(1, len(values))


def cell(value, first, is_first):
    """A metric in percent with its change in percentage points; "-" where undefined."""
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if is_first or first is None else f"{100 * value:.2f} ({100 * (value - first):+.2f})"
