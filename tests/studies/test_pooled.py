"""Three studies pooled over their 16 test classes: studies/pooled.py."""

import numpy as np
import pytest

from studies import pooled
from studies.arm_runs import ROOT


def study(test_set, differences):
    """A study whose baseline scores 0.5; {class: {seed: difference of the arm "method"}}."""
    runs = {}
    for name, of_seeds in differences.items():
        for seed, difference in of_seeds.items():
            for arm, value in (("baseline", 0.5), ("method", 0.5 + difference)):
                run = runs.setdefault((arm, seed), {"metrics": {test_set: {"classes": {}}}})
                run["metrics"][test_set]["classes"][name] = {"pixel_ap": value}
    return pooled.Study(runs, test_set)


STUDIES = [
    study("DemoB", {"gear": {1: 0.1, 2: 0.2, 3: 0.6}, "key": {1: 0.0, 2: 0.0, 3: 0.3}}),
    study("DemoB", {"gear": {1: 0.3, 2: 0.4}, "key": {1: 0.2, 2: 0.0}}),
    study("DemoA", {"wood": {1: -0.1, 2: 0.3}}),
]


def test_a_class_is_the_mean_over_all_its_runs_of_all_studies():
    got = pooled.by_class(STUDIES, "method", "pixel_ap")
    assert got == pytest.approx(np.array([[1.6 / 5], [0.5 / 5], [0.2 / 2]]))


def test_a_pair_is_the_mean_over_the_studies_of_its_class_for_the_seeds_that_all_have():
    got = pooled.by_class_and_seed(STUDIES, "method", "pixel_ap")
    assert got == pytest.approx(np.array([[0.2, 0.3], [0.1, 0.0], [-0.1, 0.3]]))


def test_a_seed_whose_baseline_is_missing_is_left_out_and_no_common_seed_is_refused():
    runs = {key: run for key, run in STUDIES[2].runs.items() if key != ("baseline", 1)}
    partial = [*STUDIES[:2], pooled.Study(runs, "DemoA")]
    assert pooled.by_class_and_seed(partial, "method", "pixel_ap").shape == (3, 1)
    with pytest.raises(ValueError, match="method: expected a seed that all studies have"):
        pooled.by_class_and_seed([*STUDIES, study("DemoA", {"wood": {9: 0.0}})], "method", "pixel_ap")


def test_the_kept_page_is_what_the_kept_runs_say(tmp_path, capsys):
    evidence = ROOT / "results" / "evidence"
    for folder, *_ in pooled.STUDIES:
        (tmp_path / folder).symlink_to(evidence / folder)
    pooled.main(["--results", str(tmp_path)])
    page = (tmp_path / "pooled.md").read_text(encoding="utf-8")
    assert page == (evidence / "pooled.md").read_text(encoding="utf-8") and page in capsys.readouterr().out
    assert "DemoB's\n  classes have 8, DemoA's 3" in page and "(211, 212, 213)" in page
