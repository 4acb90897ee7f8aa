"""Image scores as figures: ROC curves, and how the scores of normal and of abnormal pictures are spread."""

from collections.abc import Sequence

import numpy as np

from comparison.arms import Arm
from comparison.figures import COLOURS, data_uri, new_figure, plain
from evaluation.scores import ImageScores, read_image_scores, scores_file

GRID = np.linspace(0, 1, 201)  # false positive rates at which curves are averaged
BINS = 30
NORMAL, ABNORMAL = "#4c72b0", "#c44e52"
ArmScores = dict[str, list[dict[str, ImageScores]]]  # {arm: [{class: ImageScores} of every run]}


def image_scores_of(arms: Sequence[Arm], dataset: str) -> ArmScores:
    """The image scores of every run of some arms."""
    return {
        arm.name: [read_image_scores(scores_file(run.folder, dataset, run.checkpoint)) for run in arm.runs]
        for arm in arms
    }


def colour_of(place: int) -> str:
    """An arm's colour in every figure, by its place; the baseline's is 0."""
    return "#555555" if place == 0 else COLOURS[(place - 1) % len(COLOURS)]


def mean_curve(runs: Sequence[dict[str, ImageScores]]) -> np.ndarray | None:
    """True positive rate at every rate of GRID, mean over the classes with both labels and over runs.

    The rates are averaged at equal false positive rates (T. Fawcett, "An introduction to ROC analysis", 2006, section
    8.1), so that the curve's area is the mean image AUROC up to the grid's steps. None where no class has both labels.
    """
    from sklearn.metrics import roc_curve  # here, because importing it takes a second

    curves = []
    for classes in runs:
        for one in classes.values():
            if 0 < one.labels.sum() < len(one.labels):
                false, true, _ = roc_curve(one.labels, one.fused, drop_intermediate=False)
                curves.append(np.interp(GRID, false, true))
    return np.mean(curves, axis=0) if curves else None


def roc(scores: ArmScores) -> str | None:
    """ROC curves of the image score, one line per arm; None where no class has both labels."""
    curves = {name: mean_curve(runs) for name, runs in scores.items()}
    if all(curve is None for curve in curves.values()):
        return None
    figure, axes = new_figure(4.2)
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.8)
    for place, (name, curve) in enumerate(curves.items()):
        if curve is not None:
            axes.plot([0, *GRID], [0, *curve], color=colour_of(place), linewidth=1.6, label=plain(name))
    axes.set_xlabel("false positive rate (normal pictures called anomalous)")
    axes.set_ylabel("true positive rate")
    axes.set_title("image ROC, mean over classes and runs", fontsize="medium")
    axes.set_aspect("equal")
    axes.legend(loc="lower right", fontsize="small")
    return data_uri(figure)


def histograms(scores: ArmScores) -> str:
    """How the image scores that a picture alone determines are spread, one panel per arm, all classes and runs."""
    figure, panels = new_figure(0.9 + 1.1 * len(scores), rows=len(scores))
    for axes, (name, runs) in zip(np.atleast_1d(panels), scores.items(), strict=True):
        labels = np.concatenate([one.labels for classes in runs for one in classes.values()])
        own = np.concatenate([one.own for classes in runs for one in classes.values()])
        borders = np.histogram_bin_edges(own, BINS)
        for label, colour, words in ((0, NORMAL, "normal"), (1, ABNORMAL, "abnormal")):
            side = own[labels == label]
            if len(side):
                weights = np.full(len(side), 100 / len(side))
                axes.hist(side, borders, weights=weights, color=colour, alpha=0.55, label=words)
        axes.set_title(plain(name), fontsize="small", loc="left")
    handles, words = np.atleast_1d(panels)[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside upper right", ncols=2, fontsize="small")
    figure.supylabel("percent of the pictures", fontsize="small")
    figure.supxlabel("score of the picture alone; scales differ from arm to arm", fontsize="small")
    return data_uri(figure)
