"""The references without training that stand in every study's table: the contrast filter and rarity alone.

They have no seed; a study evaluates each once, on its own test images, and keeps the JSON under its first seed.
"""

from collections.abc import Iterable, Sequence

REFERENCES = {  # arm: (None: nothing is trained, test.py's flags)
    "local_contrast": (None, ["--local_contrast"]),
    "rarity_alone": (None, ["--rarity_alone"]),
}
Results = dict[tuple[str, int], dict]  # {(arm, seed): the run's JSON}


def reference_tasks(arms: Iterable[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """[(reference, first seed)] of those among `arms`."""
    return [(arm, seeds[0]) for arm in arms if arm in REFERENCES]


def for_every_seed(results: Results) -> Results:
    """The results with each reference's evaluation under every seed there is, to be paired with every run."""
    seeds = {seed for arm, seed in results if arm not in REFERENCES}
    once = {arm: run for (arm, _), run in results.items() if arm in REFERENCES}
    return results | {(arm, seed): run for arm, run in once.items() for seed in seeds}
