"""The main, corrected and reversed evidence studies pooled over their 16 test classes.

    python -m studies.pooled

Reads the runs kept in results/evidence/ and writes pooled.md beside them; nothing is rendered or trained.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from comparison.crossed_effects import MeanOfPairs, mean_of_pairs
from files.atomic import write_text
from files.command import run_main
from studies.arm_runs import ROOT, read_results
from studies.evidence import IDEA

METRICS = {
    "pixel_ap": "pixel AP",
    "pixel_aupro": "AUPRO@0.3",
    "image_auroc": "image AUROC",
    "own_image_auroc": "image AUROC of each image's own score",
}
ARMS = [arm for arm in IDEA if arm != "baseline"]
STUDIES = (  # (folder, training set, test set, flags of every arm)
    ("DemoA_DemoB_data1", "DemoA", "DemoB", []),
    ("DemoA_DemoB_data1_corrected", "DemoA", "DemoB", ["--corrected"]),
    ("DemoB_DemoA_data1", "DemoB", "DemoA", []),
)
ABOUT = """\
    python -m studies.pooled

Arm minus baseline of the same study, class and seed, in points, over the main, corrected and reversed studies of this
folder: 8 test classes of DemoB (main and corrected) and 8 of DemoA (reversed). Training sets and deviations differ
between studies, so these are means over settings and not figures of one setting. Two ways to pool:

* *classes*: a class's difference is the mean over all its runs in all studies, every run counting alike (DemoB's
  classes have {runs_b}, DemoA's {runs_a}); the {classes} classes are the units (t interval). It speaks about other
  classes with these training runs and says nothing about other training seeds.
* *classes and seeds*: a (class, seed) pair's difference is the mean over the studies in which the class is tested, for
  the seeds that all studies have ({seeds}); classes and seeds are crossed random effects. Three seeds leave two
  degrees of freedom, so these intervals are wide.

p belongs to the interval beside it and is not corrected: {count} methods in {metrics} metrics are {looks} looks, and
pooling was chosen after the studies were seen. "Found" is the smallest true difference that such a study finds in 4
of 5 cases.
"""


class Study(NamedTuple):
    """Finished runs of one evidence study."""

    runs: dict[tuple[str, int], dict]  # {(arm, seed): the run's JSON}
    test_set: str

    def seeds(self, arm: str) -> set[int]:
        """The seeds that arm and baseline have."""
        return {seed for name, seed in self.runs if name == arm and ("baseline", seed) in self.runs}

    def values(self, arm: str, seed: int, metric: str) -> dict[str, float]:
        """{class: metric}, a fraction."""
        classes = self.runs[arm, seed]["metrics"][self.test_set]["classes"]
        return {name: row[metric] for name, row in classes.items()}

    def differences(self, arm: str, seed: int, metric: str) -> dict[str, float]:
        """{class: arm minus baseline}, a fraction."""
        before = self.values("baseline", seed, metric)
        return {name: value - before[name] for name, value in self.values(arm, seed, metric).items()}


def by_class(studies: Sequence[Study], arm: str, metric: str) -> np.ndarray:
    """Differences [classes, 1]: a class's mean over all runs of all studies, every run counting alike."""
    found = {}
    for study in studies:
        for seed in sorted(study.seeds(arm)):
            for name, difference in study.differences(arm, seed, metric).items():
                found.setdefault(name, []).append(difference)
    return np.array([[np.mean(of_class)] for of_class in found.values()])


def by_class_and_seed(studies: Sequence[Study], arm: str, metric: str) -> np.ndarray:
    """Differences [classes, seeds], means over the studies that test the class, for the seeds of all studies.

    Raises:
        ValueError: no seed is in all studies.
    """
    seeds = common_seeds(studies, arm)
    found = {}
    for study in studies:
        rows = [study.differences(arm, seed, metric) for seed in seeds]
        for name in rows[0]:
            found.setdefault(name, []).append([row[name] for row in rows])
    return np.array([np.mean(of_class, axis=0) for of_class in found.values()])


def common_seeds(studies: Sequence[Study], arm: str) -> list[int]:
    """The seeds of arm and baseline that all studies have.

    Raises:
        ValueError: there is none.
    """
    seeds = set.intersection(*(study.seeds(arm) for study in studies))
    if not seeds:
        raise ValueError(
            f"{arm}: expected a seed that all studies have; run the missing ones (studies.evidence)"
        )
    return sorted(seeds)


def read_studies(results: Path) -> list[Study]:
    """The three studies from the folder of evidence."""
    studies = []
    for folder, train_set, test_set, flags in STUDIES:
        arms = {arm: (script, [*own, *flags, "--precision", "bf16"]) for arm, (script, own) in IDEA.items()}
        studies.append(Study(read_results(results / folder, arms, train_set), test_set))
    return studies


def cells(mean: MeanOfPairs) -> str:
    """A difference with its interval, p and the smallest difference found, as three cells in points."""
    low, high = mean.interval()
    difference = f"{100 * mean.value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{difference} | {mean.p():.3f} | {100 * mean.detectable():.1f}"


def report(studies: Sequence[Study]) -> str:
    """Markdown: what is pooled and how, one table per metric."""
    runs = [len(study.seeds(ARMS[0])) for study in studies]
    methods = [arm for arm in ARMS if not arm.startswith("control_")]
    about = ABOUT.format(
        runs_b=runs[0] + runs[1],
        runs_a=runs[2],
        classes=len(by_class(studies, ARMS[0], "pixel_ap")),
        seeds=", ".join(map(str, common_seeds(studies, ARMS[0]))),
        count=len(methods),
        metrics=len(METRICS),
        looks=len(methods) * len(METRICS),
    )
    parts = [about.rstrip()]
    for metric, title in METRICS.items():
        parts += ["", f"### {title}", ""]
        parts.append(
            "| arm | classes [95 % interval] | p | found | classes and seeds [95 % interval] | p | found |"
        )
        parts.append("|--|--|--|--|--|--|--|")
        for arm in ARMS:
            pooled = (mean_of_pairs(pool(studies, arm, metric)) for pool in (by_class, by_class_and_seed))
            parts.append(f"| {arm} | " + " | ".join(map(cells, pooled)) + " |")
    return "\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", default=str(ROOT / "results" / "evidence"), help="folder of the three studies' runs"
    )
    args = parser.parse_args(argv)
    text = report(read_studies(Path(args.results)))
    write_text(Path(args.results) / "pooled.md", text)
    print(text)


if __name__ == "__main__":
    run_main(main)
