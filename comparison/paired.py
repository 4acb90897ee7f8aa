"""From arms to numbers: every metric of every arm, dataset and class, with paired differences to the baseline."""

import zlib
from collections.abc import Sequence

import numpy as np

from comparison.arms import Arm, pair
from comparison.comparable import reasons
from comparison.replicates import METRICS, image_weights, resampled
from comparison.significance import compare_pairs, holm, verdict
from evaluation.scores import ClassScores, read_scores, scores_file


def compare_arms(
    baseline: Arm,
    arms: Sequence[Arm],
    datasets: Sequence[str],
    *,
    verdict_metrics: Sequence[str],
    replicates: int,
    seed: int,
) -> dict[str, dict]:
    """Compare every arm with the baseline on every dataset.

    Args:
        baseline, arms: comparison.arms.Arm, evaluated on all datasets.
        verdict_metrics: metrics whose p-values are corrected together and that get a verdict.
        replicates: resampled test sets per class.
        seed: of the resampling.

    Returns:
        {dataset: {"img_size", "rows_sha256", "arms": {arm: see `compare_arm`}, "histogram_error": {pixel metric:
        largest |exact - histogram value| of a class}, "abouts": {arm: [what each run's scores file says]}}}

    Raises:
        ValueError: runs that are not comparable, with every reason; an arm that shares no seed with the baseline.
    """
    results = {}
    for dataset in datasets:
        evaluated = read_all([baseline, *arms], dataset, replicates, seed)
        first = evaluated[baseline.runs[0].key]
        errors = {}
        for run_metrics in evaluated.values():
            for metric, error in run_metrics["errors"].items():
                errors[metric] = max(errors.get(metric, 0.0), error)
        results[dataset] = {
            "img_size": first["evaluation_info"]["img_size"],
            "rows_sha256": first["evaluation_info"]["rows_sha256"],
            "arms": {arm.name: compare_arm(baseline, arm, evaluated, dataset, seed) for arm in arms},
            "histogram_error": errors,
            "abouts": {
                arm.name: [evaluated[run.key]["evaluation_info"] for run in arm.runs]
                for arm in [baseline, *arms]
            },
        }
    correct(results, verdict_metrics)
    return results


def read_all(arms: Sequence[Arm], dataset: str, replicates: int, seed: int) -> dict[str, dict]:
    """Exact and resampled metrics of every run on a dataset: {run.key: see `resample_run`}.

    Raises:
        ValueError: not all of them are comparable with the first run of the first arm.
    """
    evaluated, first, refused = {}, None, []
    for arm in arms:
        for run in arm.runs:
            if run.key in evaluated:
                continue
            classes, evaluation_info = read_scores(scores_file(run.folder, dataset, run.checkpoint))
            files = {
                name: (scores.files.tolist(), scores.digests.tolist()) for name, scores in classes.items()
            }
            first = first or (run, files, evaluation_info)
            differences = reasons(first[1], first[2], files, evaluation_info)
            refused += [
                f"{run.folder} cannot be compared with {first[0].folder} on {dataset}: {text}"
                for text in differences
            ]
            if not differences:
                evaluated[run.key] = resample_run(classes, evaluation_info, replicates, seed, dataset)
    if refused:
        raise ValueError("\n".join(refused))
    return evaluated


def resample_run(
    classes: dict[str, ClassScores], evaluation_info: dict, replicates: int, seed: int, dataset: str
) -> dict:
    """One run on one dataset; the resampled images are the same for every run, as they depend on labels and seed only.

    Returns:
        {"evaluation_info", "classes": exact metrics, "resampled": {class: {metric: [R]}}, "errors": {pixel metric:
        largest}}
    """
    resampled_metrics, errors = {}, {}
    for name, scores in classes.items():
        weights = image_weights(scores.labels, replicates, generator(seed, dataset, name), scores.mask_known)
        resampled_metrics[name], class_errors = resampled(scores, evaluation_info["classes"][name], weights)
        for metric, error in class_errors.items():
            errors[metric] = max(errors.get(metric, 0.0), abs(error))
    return {
        "evaluation_info": evaluation_info,
        "classes": evaluation_info["classes"],
        "resampled": resampled_metrics,
        "errors": errors,
    }


def generator(seed: int, *names: str) -> np.random.Generator:
    """A random generator that depends on a seed and some names only."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def compare_arm(baseline: Arm, arm: Arm, evaluated: dict[str, dict], dataset: str, seed: int) -> dict:
    """One arm on one dataset.

    Returns:
        {"seeds", "unpaired_seeds", "metrics": {metric: row with "classes": {class: row}}}; a row holds the means
        "baseline" and "arm" over the paired seeds (and classes) and the fields of significance.Difference; "pairs" are
        the differences [{"class", "seed", "difference"}].
    """
    pairs, alone = pair(baseline, arm)
    runs = [(evaluated[theirs.key], evaluated[ours.key]) for _, theirs, ours in pairs]
    names = list(runs[0][0]["classes"])
    metrics = {}
    for metric in METRICS:
        sides = [
            np.array([[both[side]["classes"][name][metric] for both in runs] for name in names], dtype=float)
            for side in (0, 1)
        ]  # [classes, seeds]; None becomes NaN
        defined = [i for i in range(len(names)) if not np.isnan(sides[0][i]).any()]
        resampled_sides = [
            np.array([[both[side]["resampled"][names[i]][metric] for both in runs] for i in defined])
            for side in (0, 1)
        ]  # [classes, seeds, R]
        exact = sides[1] - sides[0]
        moved = resampled_sides[1] - resampled_sides[0]
        random = generator(seed, dataset, metric)
        row = means(sides, defined) | compare_pairs(exact[defined], moved, random)._asdict()
        row["pairs"] = [
            {"class": names[i], "seed": pairs[j][0], "difference": float(exact[i, j])}
            for i in defined
            for j in range(len(pairs))
        ]
        row["classes"] = {}
        for i, name in enumerate(names):
            class_rows = [i] if i in defined else []  # none: the class has no value, and no interval
            replicate_rows = [defined.index(i)] if i in defined else []
            difference = compare_pairs(exact[class_rows], moved[replicate_rows], random, permutations=0)
            row["classes"][name] = means(sides, class_rows) | difference._asdict()
        metrics[metric] = row
    return {"seeds": [seed for seed, *_ in pairs], "unpaired_seeds": alone, "metrics": metrics}


def means(sides: Sequence[np.ndarray], rows: Sequence[int]) -> dict[str, float | None]:
    """{"baseline", "arm"}: means over some classes and all seeds, None for no class."""
    baseline, arm = (float(side[rows].mean()) if rows else None for side in sides)
    return {"baseline": baseline, "arm": arm}


def correct(results: dict[str, dict], verdict_metrics: Sequence[str]) -> None:
    """Add "p_holm" to every row, and "verdict" to the verdict metrics' rows.

    Holm's correction runs over all arms, datasets and verdict metrics together; each other metric is corrected over
    arms and datasets by itself, as a second look.
    """
    families = {}
    for result in results.values():
        for arm in result["arms"].values():
            for metric, row in arm["metrics"].items():
                families.setdefault("verdict" if metric in verdict_metrics else metric, []).append(
                    (metric, row)
                )
    for rows in families.values():
        for (metric, row), p in zip(rows, holm([row["p"] for _, row in rows]), strict=True):
            row["p_holm"] = p
            if metric in verdict_metrics:
                row["verdict"] = verdict(row, p)
