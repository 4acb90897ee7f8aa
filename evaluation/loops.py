"""The loops of a feedback run: evaluating after each one, and the table of all of them."""

import json
import re
from logging import Logger
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from dataset import get_dataset
from evaluation.picture_scores import gather_picture_scores, picture_scores, write_picture_scores
from evaluation.predictions import evaluate_dataset, shown_mean
from evaluation.provenance import provenance
from evaluation.results import UNDEFINED, write_metrics
from evaluation.scorer import scorer_of
from files.atomic import write_text
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import full_precision
from run_folder.caches import feature_cache, read_through_caches
from run_folder.checkpoints import restore_rng, rng_state
from run_folder.identity import identity_in
from run_folder.kinds import FEEDBACK, loop_file
from run_folder.loaded_run import LoadedRun
from run_folder.processes import current
from run_folder.session import Session
from run_folder.settings import Settings
from utils import allow_tf32

SHOWN = {  # columns of the loop table by their key in metrics.json
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_aupro": "pixel AUPRO",
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
}
EVALUATION_BATCH = 32  # images scored together; changes rounding only
CAUTION = (
    "The best loop (**bold**, largest mean of the columns) was found by looking at this test set: its numbers are "
    "optimistic. Choose the number of loops on other data, or report the last loop."
)


def test_sets_of(settings: Settings, dataset: str | None, logger: Logger) -> dict[str, Dataset]:
    """{class name: dataset} of `--eval_every_loop`; {} without."""
    if not dataset:
        return {}
    test_sets = get_dataset(
        dataset,
        settings.model.img_size,
        "full_shot",
        0,
        "test",
        logger,
        data_root=settings.data.data_root,
        mask_reading=settings.data.mask_reading,
    )
    read_through_caches(test_sets.values(), settings, logger)
    return test_sets


def evaluate_loop(
    session: Session,
    model: AdaptedCLIPWithCrossAttention,
    content: dict[str, Any],
    test_sets: dict[str, Dataset],
) -> None:
    """Evaluate a model as it stands after a loop on `--eval_every_loop`, into metrics.json and loops.md.

    Nothing that training draws from moves: a data loader takes its seed from torch's random generator.

    Args:
        content: of the loop's file: "loop", "cross_attention", "mean_anchors".
        test_sets: of `test_sets_of`.
    """
    settings, logger = session.settings, session.logger
    dataset, save_path = settings.feedback.eval_every_loop, settings.run.save_path
    file = loop_file(save_path, content["loop"], "final")
    run = LoadedRun(
        FEEDBACK,
        settings,
        model,
        file,
        settings.record(),
        {},
        content["loop"],
        content["cross_attention"],
        mean_anchors=content["mean_anchors"],
        identity=identity_in(content),
    )
    scorer = scorer_of(run, dataset, feature_cache(settings, model.clipmodel, logger))
    pictures = []
    before = rng_state()
    allow_tf32(False)
    with full_precision(model.clipmodel):
        result = evaluate_dataset(
            scorer,
            test_sets,
            batch_size=EVALUATION_BATCH,
            device=session.device,
            workers=settings.run.workers,
            on_class=lambda name, found: pictures.extend(
                picture_scores(found, name, scorer.domain, scorer.levels)
            ),
        )
    allow_tf32(settings.training.tf32)
    restore_rng(before)
    if not current().main:
        return
    tested = settings.change(dataset=dataset)
    info = provenance(tested, scorer.domain, test_sets, FEEDBACK.name, run=run)
    write_metrics(save_path, dataset, file.name, result, info)
    write_picture_scores(save_path, dataset, file.name, pictures)
    gather_picture_scores(save_path)
    session.tracker.metrics(dataset, file.name, result["mean"])
    write_loop_table(save_path, run.identity.run)
    logger.info(f"{dataset} after loop {content['loop']}: {shown_mean(result)}")


def write_loop_table(save_path: Path | str, run: str | None = None) -> str:
    """Write loops.md from what metrics.json holds of a run's loops.

    Args:
        run: the run's id, which leaves out what other runs left there; None where its files do not say it.

    Returns:
        the text.
    """
    everything = json.loads((Path(save_path) / "metrics.json").read_text(encoding="utf-8"))
    parts = [
        "# Loop by loop",
        "",
        "Mean over the classes in percent; in brackets the change against the first loop.",
    ]
    for dataset, entries in everything.items():
        for ending in ("", " without cross-attention"):
            means = {
                int(match[1]): entry["mean"]
                for name, entry in entries.items()
                if (match := re.fullmatch(r"loop_(\d+)_final\.pth" + ending, name))
                and entry.get("run") in (run, None)
                and "unfinished" not in entry
            }
            if means:
                parts += ["", f"## {dataset}{ending}", "", loop_table(means)]
    text = "\n".join([*parts, "", CAUTION]) + "\n"
    write_text(Path(save_path) / "loops.md", text)
    return text


def loop_table(means: dict[int, dict]) -> str:
    """Markdown table of {loop: mean metrics}: one row per loop, change against the first, the best one bold."""
    loops, columns = sorted(means), list(SHOWN)
    best = max(loops, key=lambda loop: mean_of(means[loop])) if len(loops) > 1 else None
    lines = ["| loop | " + " | ".join(SHOWN.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for loop in loops:
        cells = [cell(means[loop][key], means[loops[0]][key], loop == loops[0]) for key in columns]
        name = f"{loop} (best)" if loop == best else str(loop)
        lines.append(
            "| " + " | ".join(f"**{text}**" if loop == best else text for text in [name, *cells]) + " |"
        )
    return "\n".join(lines)


def mean_of(metrics: dict) -> float:
    """Mean of the table's metrics; an undefined one (None) is left out."""
    values = [metrics[key] for key in SHOWN if metrics[key] is not None]
    return sum(values) / max(1, len(values))


def cell(value: float | None, first: float | None, is_first: bool) -> str:
    """A metric in percent with its change in percentage points; a dash where undefined."""
    if value is None:
        return UNDEFINED
    return (
        f"{100 * value:.2f}"
        if is_first or first is None
        else f"{100 * value:.2f} ({100 * (value - first):+.2f})"
    )
