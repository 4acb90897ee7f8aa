"""What a comparison is to decide, declared before looking: arm, metric, dataset."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from comparison.replicates import METRICS


class Hypothesis(NamedTuple):
    """ "This arm differs from the baseline in this metric on this dataset"; each part may be a pattern such as `*`."""

    arm: str
    metric: str
    dataset: str = "*"

    def names(self, arm: str, metric: str, dataset: str) -> bool:
        """Whether it is about this arm, metric and dataset."""
        places = zip((arm, metric, dataset), self, strict=True)
        return all(value == pattern or fnmatchcase(value, pattern) for value, pattern in places)

    def __str__(self) -> str:
        return ":".join(self)


def read_hypotheses(texts: Sequence[str] | None, verdict_metrics: Sequence[str]) -> list[Hypothesis]:
    """Hypotheses as typed, `ARM:METRIC[:DATASET]`; without any, all arms and datasets in the verdict metrics.

    Raises:
        ValueError: not of that form, or no metric goes by that name.
    """
    if not texts:
        return [Hypothesis("*", metric) for metric in verdict_metrics]
    hypotheses = []
    for text in texts:
        parts = text.split(":")
        if len(parts) not in (2, 3) or not any(fnmatchcase(metric, parts[1]) for metric in METRICS):
            raise ValueError(
                f"--hypotheses {text}: expected ARM:METRIC[:DATASET], METRIC one of {', '.join(METRICS)}; "
                "a part may be a pattern such as *"
            )
        hypotheses.append(Hypothesis(*parts))
    return hypotheses
