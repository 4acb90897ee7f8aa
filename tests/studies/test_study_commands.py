"""The studies' commands as a user types them: real data, tables and JSON files; only the trained runs are made up."""

import json
import sys

import pytest

from dataset.constants import CLASS_NAMES
from demo_world import render_sets
from files.atomic import write_text
from studies import arm_runs, evidence, improvements, pooled, study, tables
from studies.arm_runs import ROOT
from studies.paired_report import METRICS

HELPS = ("cross_attention", "self_reference")  # arms whose made-up numbers are better


@pytest.fixture
def made_up_runs(monkeypatch):
    """Training takes minutes: every arm comes back as (arm's folder, training set, test sets), metrics made up."""
    ran = []

    def run_arm(script, flags, seed, train_set, test_sets, data, folder, config=None):
        arm = folder.name.rpartition("_seed")[0]
        ran.append((arm, seed, train_set, *test_sets))
        command = ["test.py", *flags]
        if script:
            command = arm_runs.training_command(script, flags, seed, train_set, data, folder, config)
        row = dict.fromkeys(METRICS, 0.6 if arm in HELPS else 0.5)
        halves = {half: CLASS_NAMES["DemoA"][i::2] for i, half in enumerate(improvements.HALVES)}
        classes = {name: halves.get(name) or CLASS_NAMES[name] for name in test_sets}
        metrics = {name: {"mean": row, "classes": dict.fromkeys(classes[name], row)} for name in test_sets}
        return {"commands": [" ".join(["python", *command])], "seconds": 1.0, "metrics": metrics}

    monkeypatch.setattr(arm_runs, "run_arm", run_arm)
    return ran


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """The studies render in a process of its own; here in this one, two small pictures a class."""

    def run(command, **options):
        assert command[:3] == [sys.executable, "-m", "demo_world.render_sets"]
        counts = ("--train_good", "0", "--test_good", "1", "--test_defective", "1")
        given = command[3:] if "--name" in command else [*command[3:], "--name", "DemoA"]
        render_sets.main([*given, "--size", "64", *counts])

    for module in (study, evidence, improvements):
        monkeypatch.setattr(module.subprocess, "run", run)


def test_improvements_trains_on_each_half_tests_on_the_other_and_reports_both(tmp_path, made_up_runs, capsys):
    flags = ["--seeds", "1", "2", "--arms", "baseline", "self_reference", "--precision", "bf16"]
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    improvements.main([*flags, *places])
    even, odd = improvements.HALVES
    assert len(made_up_runs) == 8 and {ran[2:] for ran in made_up_runs} == {(even, odd), (odd, even)}
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "python -m studies.improvements --seeds 1 2 --data_seed 2 --precision bf16" in table
    wins = 2 * len(CLASS_NAMES["DemoA"])
    assert f"| self_reference | 2 | 50.00 | 60.00 | +10.00 [+10.00, +10.00] | 0.0 | {wins}/0/0 |" in table
    assert table.partition("\n\n")[2] in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / even / "baseline_seed1.json").read_text(encoding="utf-8"))
    assert f"--dataset {even} " in result["commands"][0] and "DATA/halves.json" in result["commands"][0]
    improvements.main([*flags, *places])
    assert len(made_up_runs) == 8, "finished runs were repeated"
    with pytest.raises(ValueError, match="was trained by"):
        improvements.main([*flags[:-1], "fp32", *places])


def test_every_table_is_remade_by_its_own_first_line_without_training(tmp_path, made_up_runs, monkeypatch):
    flags = ["--arms", "baseline", "cross_attention", "--seeds", "1", "2"]
    evidence.main([*flags, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results/evidence")])
    study.main(
        ["--study", "baseline", "--arms", "baseline", "--seeds", "1", "--test", "DemoB"]
        + ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "results/baseline")]
    )
    made, files = len(made_up_runs), sorted(tmp_path.rglob("table.md"))
    before = [file.read_text(encoding="utf-8") for file in files]
    for file in files:
        file.write_text(before[files.index(file)].replace("50.0", "99.9"), encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    tables.main([])
    assert [file.read_text(encoding="utf-8") for file in files] == before and len(made_up_runs) == made


def test_the_pooled_page_is_remade_with_the_tables(tmp_path, monkeypatch):
    kept, evidence = ROOT / "results" / "evidence", tmp_path / "evidence"
    evidence.mkdir()
    for folder, *_ in pooled.STUDIES:
        (evidence / folder).mkdir()
        for file in (kept / folder).glob("*.json"):
            (evidence / folder / file.name).symlink_to(file)
    (evidence / "pooled.md").write_text("stale", encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    tables.main([])
    page = (evidence / "pooled.md").read_text(encoding="utf-8")
    assert page == (kept / "pooled.md").read_text(encoding="utf-8")


def test_a_table_without_a_command_of_a_study_is_refused(tmp_path, monkeypatch):
    write_text(tmp_path / "some" / "table.md", "| a | b |\n")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="some/table.md: expected a line .*python -m studies"):
        tables.main([])


def test_evidence_pairs_every_arm_with_the_baseline_and_controls_with_methods(tmp_path, made_up_runs):
    arms = ["--arms", "baseline", "cross_attention", "control_constant"]
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    evidence.main(["--seeds", "1", *arms, *places])
    assert {ran[2:] for ran in made_up_runs} == {("DemoA", "DemoB")}
    table = (tmp_path / "out" / "DemoA_DemoB_data1" / "table.md").read_text(encoding="utf-8")
    assert "python -m studies.evidence --seeds 1 --train DemoA --test DemoB --data_seed 1" in table
    assert "Arm minus baseline" in table and "Arm minus control_constant" in table
    evidence.main(["--seeds", "1", "2", *arms, "rarity_alone", *places])
    assert made_up_runs.count(("rarity_alone", 1, "DemoA", "DemoB")) == 1 and len(made_up_runs) == 7
    table = (tmp_path / "out" / "DemoA_DemoB_data1" / "table.md").read_text(encoding="utf-8")
    assert "| rarity_alone | 2 | 50.00 | 50.00 |" in table  # one evaluation, beside the runs of both seeds
    alone = table[table.index("Arm minus rarity_alone") :].splitlines()
    row = next(line for line in alone if line.startswith("| cross_attention | 2 |"))
    assert row.endswith("|  |")  # no verdict against what is not trained
    evidence.main(["--seeds", "1", *arms, *places, "--corrected"])
    corrected = tmp_path / "out" / "DemoA_DemoB_data1_corrected" / "table.md"
    assert "| corrected_baseline | 1 | 50.00 | 50.00 |" in corrected.read_text(encoding="utf-8")


def test_a_study_keeps_a_json_per_run_and_one_table(tmp_path, made_up_runs, capsys):
    places = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--test", "DemoB"]
    study.main(["--study", "baseline", "--arms", "baseline", "--seeds", "1", "2", *places])
    assert made_up_runs == [("baseline", seed, "DemoA", "DemoB") for seed in (1, 2)]
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert (
        "| DemoB | baseline | 2 | 50.0 (50.0–50.0) |" in table
        and "| DemoB | baseline" in capsys.readouterr().out
    )
    assert sorted(file.name for file in (tmp_path / "out").glob("*.json")) == [
        "baseline_seed1.json",
        "baseline_seed2.json",
    ]
