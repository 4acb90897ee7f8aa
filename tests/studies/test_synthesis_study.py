"""What the study of synthetic anomalies runs and reports: studies/synthesis_study.py."""

import json

import pytest

pytest.importorskip("scipy", reason="the study's intervals need requirements-demo.txt")

from studies import synthesis_arms
from studies import synthesis_study as study
from studies.paired_report import METRICS


def result(arm, seed, pixel_ap, shot=2, **settings):
    """One run's JSON content."""
    classes = {name: dict.fromkeys(METRICS, 0.5) | {"pixel_ap": pixel_ap} for name in ("gear", "rope")}
    settings = synthesis_arms.settings_of(study.build_parser().parse_args([])) | settings
    return {
        "arm": arm,
        "shot": shot,
        "seed": seed,
        "settings": settings,
        "metrics": {"DemoB": {"classes": classes}},
        "seconds": 60.0,
        "generation_seconds": 1.0,
        "commands": [],
    }


def keyed(*results):
    return {(entry["arm"], entry["shot"], entry["seed"]): entry for entry in results}


def test_shots_are_compared_apart_and_only_arms_that_have_runs():
    found = keyed(
        result("real", 1, 0.50),
        result("perlin", 1, 0.40),
        result("generated", 1, 0.55),
        result("generated", 2, 0.99),
        result("real", 1, 0.60, shot=16),
    )
    told = study.tables(found, {}).splitlines()
    assert [line for line in told if line.startswith("## ")] == [
        "## 2 shots, against real",
        "## 2 shots, against perlin",
    ]
    start = told.index("### pixel_ap, DemoB")
    assert told[start + 4].startswith("| perlin | 1 | 50.00 | 40.00 | -10.00 ")
    assert told[start + 5].startswith("| generated | 1 | 50.00 | 55.00 | +5.00 ")  # seed 2 has no partner
    assert any(line.startswith("| generated | 1 | 40.00 | 55.00 | +15.00 ") for line in told)


@pytest.mark.parametrize("shot", [2, 16])
def test_every_arm_makes_the_same_updates_whatever_its_images(shot):
    args = study.build_parser().parse_args([])
    for own, extra in ((8 * shot, 0), (8 * shot, 8 * shot)):
        flags = synthesis_arms.training_flags(args, shot, own, extra, "x.jsonl" if extra else None)
        values = dict(zip(flags[::2], flags[1::2], strict=True))
        assert int(values["--text_epoch"]) * (own + extra) / 4 == args.text_steps
        assert int(values["--image_epoch"]) * (own + extra) / 8 == args.image_steps
        assert ("--extra_meta" in values) == (values.get("--extra_ratio") == "0.5") == bool(extra)


def test_steps_that_are_no_whole_epochs_are_refused_with_the_divisor():
    with pytest.raises(
        ValueError, match="--text_steps 100: 25 images in batches of 4 make 7 .*give a multiple of 7"
    ):
        synthesis_arms.epochs(100, 25, 4, "--text_steps")
    assert synthesis_arms.epochs(100, 17, 4, "--text_steps") == 20


def test_a_finished_run_is_not_repeated_and_the_report_names_its_command(tmp_path, monkeypatch, capsys):
    ran = []

    def run(args, arm, shot, seed, data, work):
        ran.append((arm, shot, seed))
        return result(arm, seed, 0.5) | {"shot": shot, "commands": [f"{data}/x {work}/y"]}

    monkeypatch.setattr(study, "python", lambda *command: "")
    monkeypatch.setattr(study, "run", run)
    monkeypatch.setattr(study.arm_runs, "run_missing", lambda *_: None)  # of the references
    flags = ["--seeds", "1", "--shots", "2", "--arms", "real", "sham", "--out", str(tmp_path)]
    study.main(flags)
    assert ran == [("real", 2, 1), ("sham", 2, 1)]
    study.main([*flags, "--seeds", "1", "2"])
    assert ran[2:] == [("real", 2, 2), ("sham", 2, 2)]
    text = (tmp_path / "table.md").read_text()
    assert (
        "--seeds 1 2 --shots 2 --ratio 0.5 --text_steps 128" in text
        and study.tables(study.read_results(tmp_path, study.build_parser().parse_args([])), {}) in text
    )
    assert json.loads((tmp_path / "sham_2shot_seed1.json").read_text())["commands"] == ["DATA/x WORK/y"]


def test_runs_of_other_settings_are_not_mixed_into_a_table(tmp_path):
    (tmp_path / "real_2shot_seed1.json").write_text(json.dumps(result("real", 1, 0.5, image_steps=7)))
    with pytest.raises(ValueError, match="real_2shot_seed1.json has .*'image_steps': 7.* give another --out"):
        study.read_results(tmp_path, study.build_parser().parse_args([]))
