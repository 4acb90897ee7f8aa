"""From arms to numbers: every metric of every arm, dataset and class, with paired differences to the baseline."""

import zlib
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from comparison.arms import Arm, pair
from comparison.comparable import reasons
from comparison.hypotheses import Hypothesis
from comparison.replicates import METRICS, image_shares, image_weights, resampled
from comparison.significance import compare_pairs, holm, units_needed, verdict
from evaluation.scores import ClassScores, read_scores, scores_file
from utils import on_terminal

# With fewer classes no p with classes as units is below 0.05, even uncorrected: single images are tested beside it.
ENOUGH_CLASSES = units_needed(1)


def compare_arms(
    baseline: Arm,
    arms: Sequence[Arm],
    datasets: Sequence[str],
    *,
    hypotheses: Sequence[Hypothesis],
    replicates: int,
    seed: int,
    margin: float | None = None,
) -> dict[str, dict]:
    """Compare every arm with the baseline on every dataset.

    Args:
        baseline, arms: comparison.arms.Arm, evaluated on all datasets.
        hypotheses: what was declared before looking; their p-values are corrected together and get a verdict.
        replicates: resampled test sets per class.
        seed: of the resampling.
        margin: differences below it are of no interest, a fraction; None for none.

    Returns:
        {dataset: {"img_size", "rows_sha256", "arms": {arm: see `compare_arm`}, "histogram_error": {pixel metric:
        largest |exact - histogram value| of a class}, "abouts": {arm: [what each run's scores file says]}}}

    Raises:
        ValueError: runs that are not comparable, with every reason; an arm that shares no seed with the baseline; a
            hypothesis that names no arm, metric or dataset of the comparison.
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
    correct(results, hypotheses, margin)
    return results


def read_all(arms: Sequence[Arm], dataset: str, replicates: int, seed: int) -> dict[str, dict]:
    """Exact and resampled metrics of every run on a dataset: {run.key: see `resample_run`}.

    Raises:
        ValueError: not all of them are comparable with the first run of the first arm.
    """
    evaluated, first, refused = {}, None, []
    runs = {run.key: run for arm in arms for run in arm.runs}
    bar = tqdm(runs.items(), desc=f"{dataset}: resampling", unit="run", disable=not on_terminal())
    for key, run in bar:
        classes, evaluation_info = read_scores(scores_file(run.folder, dataset, run.checkpoint))
        files = {name: (scores.files.tolist(), scores.digests.tolist()) for name, scores in classes.items()}
        first = first or (run, files, evaluation_info)
        differences = reasons(first[1], first[2], files, evaluation_info)
        refused += [
            f"{run.folder} cannot be compared with {first[0].folder} on {dataset}: {text}"
            for text in differences
        ]
        if not differences:
            evaluated[key] = resample_run(classes, evaluation_info, replicates, seed, dataset)
            if len(classes) < ENOUGH_CLASSES:
                evaluated[key]["shares"] = {
                    name: image_shares(scores, evaluation_info["classes"][name])
                    for name, scores in classes.items()
                }
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
        shares = shares_of(runs, [names[i] for i in defined], metric)
        compared = compare_pairs(exact[defined], moved, random, image_shares=shares)
        row = means(sides, defined) | compared._asdict()
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


def shares_of(runs: Sequence[tuple[dict, dict]], classes: Sequence[str], metric: str) -> np.ndarray | None:
    """What each test image adds to an arm's difference [images of all classes]; None where it was not computed.

    Args:
        runs: [(baseline run, arm's run)] of `resample_run`, one per seed.
    """
    by_class = []
    for name in classes:
        both = [[run.get("shares", {}).get(name, {}).get(metric) for run in sides] for sides in runs]
        if any(shares is None for sides in both for shares in sides):
            return None
        by_class.append(np.mean([arm - baseline for baseline, arm in both], axis=0))
    return np.concatenate(by_class) if by_class else None


def correct(results: dict[str, dict], hypotheses: Sequence[Hypothesis], margin: float | None = None) -> None:
    """Add "p_holm" to every row, and "verdict" and "hypotheses" (how many) to the declared ones.

    Holm's correction runs over all declared hypotheses together; what was not declared is corrected over arms and
    datasets metric by metric, as a second look.

    Raises:
        ValueError: a hypothesis that names nothing of the comparison.
    """
    declared, others = [], {}
    unused = set(hypotheses)
    for dataset, result in results.items():
        for arm, compared in result["arms"].items():
            for metric, row in compared["metrics"].items():
                matching = {one for one in hypotheses if one.names(arm, metric, dataset)}
                unused -= matching
                (declared if matching else others.setdefault(metric, [])).append(row)
    if unused:
        raise ValueError(
            f"--hypotheses {' '.join(map(str, sorted(unused)))}: names nothing of this comparison; expected "
            f"ARM:METRIC[:DATASET] with the arms {', '.join(next(iter(results.values()))['arms'])}, "
            f"the metrics {', '.join(METRICS)} and the datasets {', '.join(results)}"
        )
    for rows in (declared, *others.values()):
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = p
    count = sum(row["p"] is not None for row in declared)
    for row in declared:
        row["hypotheses"] = count
        row["verdict"] = verdict(row, row["p_holm"], count, margin)
