"""The study at equal steps and its paired tables: studies/evidence.py, studies/paired_report.py."""

import json

import pytest

from run_folder.flags import parse
from studies import evidence, paired_report
from studies.arm_runs import FEEDBACK
from training.feedback_recipes import GROUPS, fill_in, plan

CLASSES = ("gear", "tile", "rope", "coin")


def run(**changes):
    """A run's JSON: every metric 0.5 in every class, changed for some."""
    return {
        "metrics": {
            "DemoB": {
                "classes": {
                    name: dict.fromkeys(paired_report.METRICS, 0.5) | changes.get(name, {})
                    for name in CLASSES
                }
            }
        }
    }


@pytest.mark.parametrize("arm", [name for name, (script, _) in evidence.IDEA.items() if script == FEEDBACK])
def test_every_feedback_arm_takes_the_baselines_steps(arm):
    settings = fill_in(parse("", GROUPS, ["--model_name", "ViT-Tiny-8-demo", *evidence.IDEA[arm][1]]))
    assert sum(loop.text_epochs for loop in plan(settings)) == 5
    assert sum(loop.image_epochs for loop in plan(settings)) == 10


def test_shards_share_out_all_tasks_seed_by_seed():
    shares = [evidence.tasks(["a", "b", "c"], [1, 2], f"{i}/2") for i in (0, 1)]
    assert shares[0] == [("a", 1), ("c", 1), ("b", 2)]
    assert sorted(shares[0] + shares[1]) == [(arm, seed) for arm in "abc" for seed in (1, 2)]
    with pytest.raises(ValueError, match="--shard 2/2: expected i/n"):
        evidence.tasks(["a"], [1], "2/2")


def test_arms_of_another_study_are_refused(capsys):
    with pytest.raises(SystemExit):
        evidence.main(["--arms", "baseline", "self_reference"])
    assert (
        "--arms self_reference: not in --study idea, which has baseline, cross_att" in capsys.readouterr().err
    )


def test_differences_are_paired_by_class_and_seed_and_seeds_without_a_baseline_left_out():
    worse = {name: {"pixel_ap": 0.4} for name in CLASSES}
    results = {
        ("baseline", 1): run(),
        ("baseline", 2): run(**worse),
        ("cross_attention", 1): run(**worse),
        ("cross_attention", 2): run(**worse),
        ("cross_attention", 3): run(**worse),
    }
    row = paired_report.paired_rows(results, ["baseline", "cross_attention"], "DemoB", "pixel_ap")[
        "cross_attention"
    ]
    assert (row["seeds"], row["wins"], row["ties"], row["losses"]) == (2, 0, 4, 4)
    assert row["value"] == pytest.approx(-5)
    assert row["baseline"] == pytest.approx(45)


def test_differences_by_class_are_means_over_the_seeds():
    results = {
        ("baseline", 1): run(),
        ("baseline", 2): run(gear={"pixel_ap": 0.3}),
        ("cross_attention", 1): run(tile={"pixel_ap": 0.9}),
        ("cross_attention", 2): run(),
    }
    row = paired_report.paired_rows(results, ["cross_attention"], "DemoB", "pixel_ap")["cross_attention"]
    assert row["by_class"] == pytest.approx({"gear": 10, "tile": 20, "rope": 0, "coin": 0})
    told = paired_report.report(results, ["cross_attention"], "DemoB").splitlines()
    start = told.index("Difference by class, pixel_ap:")
    assert told[start + 2] == "| arm | gear | tile | rope | coin |"
    assert told[start + 4] == "| cross_attention | +10.0 | +20.0 | +0.0 | +0.0 |"


def test_the_corrected_baseline_is_held_against_the_plain_one_of_its_seed():
    better = {name: {"pixel_ap": 0.6} for name in CLASSES}
    plain = {("baseline", 1): run(), ("baseline", 2): run(**better), ("cross_attention", 1): run(**better)}
    corrected = {("baseline", 1): run(**better), ("cross_attention", 1): run()}
    told = evidence.corrections(plain, corrected, "DemoB").splitlines()
    start = told.index("### pixel_ap, DemoB")
    assert told[start + 4].startswith("| corrected_baseline | 1 | 50.00 | 60.00 | +10.00 ")
    assert told[start + 5] == ""


def test_plain_runs_of_another_command_are_refused_before_a_corrected_study_trains(tmp_path, monkeypatch):
    plain = tmp_path / "DemoA_DemoB_data1"
    plain.mkdir()
    content = run() | {"arm": "baseline", "seed": 211, "commands": ["python train.py --precision fp32"]}
    (plain / "baseline_seed211.json").write_text(json.dumps(content))
    trained = []
    monkeypatch.setattr(evidence.subprocess, "run", lambda *args, **kwargs: None)
    monkeypatch.setattr(evidence, "run_missing", lambda *args: trained.append(args))
    flags = ["--runs", str(tmp_path), "--out", str(tmp_path), "--precision", "bf16"]
    with pytest.raises(
        ValueError, match="baseline_seed211.json was trained by\npython train.py --precision fp32"
    ):
        evidence.main([*flags, "--corrected"])
    assert not trained


def test_the_report_gives_verdicts_for_the_decisive_metrics_only():
    better = {name: {"pixel_ap": 0.6} for name in CLASSES}
    results = {}
    for seed in range(6):
        results["baseline", seed], results["cross_attention", seed] = run(), run(**better)
        results["control_constant", seed] = run()
    told = paired_report.report(results, list(evidence.IDEA), "DemoB").splitlines()
    start = told.index("### pixel_ap, DemoB")
    # Four classes cannot give a p below 0.125, however clear the difference.
    assert "| +10.00 [+10.00, +10.00] | 0.0 | 24/0/0 | undecidable (p 0.250) |" in told[start + 4]
    assert told[start + 5].endswith("| +0.00 [+0.00, +0.00] | 0.0 | 0/24/0 |  |")  # a control is no hypothesis
    assert told[told.index("### pixel_auroc, DemoB") + 4].endswith("0/24/0 |  |")
