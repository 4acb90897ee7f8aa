"""Selection and confirmation of the arms: studies/arms.py and what it is made of."""

import json
from pathlib import Path

import pytest

from dataset import constants
from dataset.custom import load_dataset_config
from dataset.jsonl import write_rows
from evaluation.provenance import flags_at_test
from evaluation.run import DEFAULTS as TEST_DEFAULTS
from evaluation.run import GROUPS as TEST_GROUPS
from evaluation.run import untrained_in
from files.atomic import write_text
from files.command import Refusal
from run_folder.flags import parse
from studies import arm_harness, arms, class_halves, rarity_weight
from studies.arm_outcomes import outcome_table, outcomes, state_of, watched_parts, watched_table
from studies.arm_registry import ARMS, complete
from studies.arm_report import compare, judged, report
from studies.arm_runs import CROSS, FEEDBACK, ROOT
from studies.evaluation_entry import entry_of
from studies.evidence import STEPS
from training.feedback_recipes import GROUPS, fill_in, plan

KEYS = ("pixel_ap", "image_auroc_unnormalised", "image_auroc", "pixel_aupro", "pixel_auroc")


def run(arm, seed, data_seed, value=0.5, half="DemoA_even", **classes):
    """{key: JSON} of a run, every metric `value`, changed for some classes."""
    rows = {name: dict.fromkeys(KEYS, classes.get(name, value)) for name in ("tiles", "wood", "leather")}
    entry = {"arm": arm, "seed": seed, "metrics": {class_halves.other_half(half): {"classes": rows}}}
    return {(arm, seed, data_seed, half): entry}


def study(arms_and_values, seeds=(1, 2, 3), data_seeds=(3, 4)):
    runs = {}
    for seed in seeds:
        for data_seed in data_seeds:
            for arm, value in arms_and_values.items():
                one = None if arm.startswith("rarity_alone") else seed
                runs |= run(arm, one, data_seed, value, wood=value + 0.01 * data_seed)
    return runs


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.script])
def test_every_trained_arm_takes_the_baselines_steps(name):
    script, flags = ARMS[name].script, [*ARMS[name].flags]
    if script == FEEDBACK:
        loops = plan(fill_in(parse("", GROUPS, ["--model_name", "ViT-Tiny-8-demo", *flags])))
        epochs = [str(sum(getattr(loop, f"{stage}_epochs") for loop in loops)) for stage in ("text", "image")]
        assert epochs == [STEPS[1], STEPS[3]]
    else:
        assert script in ("train.py", CROSS) and flags[:4] == STEPS and not {"--text_epoch"} & set(flags[4:])


def test_an_arm_comes_with_what_it_retests_and_has_to_beat_and_every_name_is_an_arm():
    for arm in ARMS.values():
        assert set(arm.against) | ({arm.retests} - {None}) <= set(ARMS)
        assert arm.retests is None or ARMS[arm.retests].script
    assert complete(["baseline_rarity"]) == [
        "baseline",
        "rarity_alone",
        "rarity_alone_shuffled",
        "baseline_rarity",
        "baseline_rarity_shuffled",
    ]
    with pytest.raises(ValueError, match="no arm is called loud"):
        complete(["loud"])


def test_the_declared_hypotheses_are_about_arms_that_are_held_against_one_another():
    for one in arms.hypotheses_in(ROOT / "results" / "arms"):
        assert one["against"] in ("baseline", *ARMS[one["arm"]].against)
        assert one["metric"] in KEYS[:2] and not ARMS[one["arm"]].control
    for name, arm in ARMS.items():  # nothing is selected that was not declared
        assert (
            arm.control
            or name == "rarity_alone"
            or any(one["arm"] == name for one in arms.hypotheses_in(ROOT / "results" / "arms"))
        )


def test_a_hypothesis_about_a_metric_that_is_not_there_is_refused(tmp_path):
    one = {"arm": "anchor_late", "against": "baseline", "metric": "pixel_app", "at_least": 1}
    for wrong, message in (
        ({}, "by 'pixel_app': expected a metric of pixel_ap"),
        ({"arm": "x"}, "expected arms"),
    ):
        write_text(tmp_path / "hypotheses.json", json.dumps({"hypotheses": [one | wrong]}))
        with pytest.raises(ValueError, match=message):
            arms.hypotheses_in(tmp_path)


def test_halves_and_quarters_share_no_class_and_leave_none_out(tmp_path):
    names = constants.CLASS_NAMES["DemoPhoto"]
    rows = [{"image_path": f"{name}/0.png", "label": 0, "class_name": name} for name in names]
    write_rows(rows, tmp_path / "DemoPhoto" / "full-shot.jsonl")
    load_dataset_config(class_halves.declare(tmp_path, "DemoPhoto"))
    even, odd = class_halves.halves_of("DemoPhoto")
    assert class_halves.other_half(even) == odd and class_halves.other_half(odd) == even
    for whole in ("DemoPhoto", even):
        first, second = (constants.CLASS_NAMES[half] for half in class_halves.halves_of(whole))
        assert not set(first) & set(second) and sorted(first + second) == sorted(constants.CLASS_NAMES[whole])


def test_differences_are_paired_by_class_seed_and_data_seed_and_what_is_not_trained_goes_with_every_seed():
    runs = study({"baseline": 0.4, "anchor_late": 0.5, "rarity_alone": 0.3})
    row = compare(runs, "anchor_late", "baseline", "pixel_ap")
    assert row["value"] == pytest.approx(0.1) and (row["seeds"], row["data_seeds"]) == ([1, 2, 3], [3, 4])
    assert (row["wins"], row["ties"], row["losses"]) == (18, 0, 0)
    assert set(row["by_class"]) == {"DemoA/tiles", "DemoA/wood", "DemoA/leather"}
    assert compare(runs, "anchor_late", "rarity_alone", "pixel_ap")["value"] == pytest.approx(0.2)
    del runs["anchor_late", 3, 4, "DemoA_even"]  # a seed that is not whole counts nowhere
    assert compare(runs, "anchor_late", "baseline", "pixel_ap")["seeds"] == [1, 2]
    assert compare(runs, "anchor_late_swapped", "baseline", "pixel_ap") is None


def test_verdicts_are_given_for_declared_hypotheses_alone_and_all_of_them_count():
    runs = study({"baseline": 0.4, "anchor_late": 0.5, "rarity_alone": 0.3})
    declared = [
        {"arm": "anchor_late", "against": against, "metric": "pixel_ap", "at_least": 1}
        for against in ("baseline", "baseline_rarity")
    ]
    rows = judged(runs, list(ARMS), declared)
    with_verdict = [row for row in rows if "verdict" in row]
    assert [(row["against"], row["metric"]) for row in with_verdict] == [("baseline", "pixel_ap")]
    assert with_verdict[0]["p_holm"] == pytest.approx(2 * 0.25)  # three classes, two hypotheses
    assert with_verdict[0]["verdict"] == "undecidable" and with_verdict[0]["at_least"] == 0.01
    assert "| anchor_late | 2 | 1 |" in report(runs, list(ARMS), declared)
    assert "anchor_late" not in report(runs, ["baseline", "rarity_alone"], declared)
    assert "| class | rarity_alone | anchor_late |" in report(runs, list(ARMS), declared)
    assert "| DemoA/tiles | -10.0 | +10.0 |" in report(runs, list(ARMS), declared)
    text = report(runs, list(ARMS), declared)
    assert (
        "| anchor_late | baseline | 3 × 2 | 41.17 | 51.17 | +10.00 [+10.00, +10.00] | 0.0 | 18/0/0 | ≥ +1 |"
        in text
    )


@pytest.mark.parametrize(
    ("value", "high", "verdict", "at_least", "selecting", "confirming"),
    [
        (0.02, 0.05, "not shown", 0.01, "reached", "missed"),  # a confirmation asks for the verdict too
        (0.02, 0.05, "helps", 0.01, "reached", "reached"),
        (0.005, 0.05, "helps", 0.01, "missed", "missed"),  # above 0 and below what was wanted
        (0.005, 0.009, "helps", 0.01, "excluded", "excluded"),
        (0.01, None, "helps", 0.01, "reached", "reached"),  # one seed has no interval
    ],
)
def test_a_row_is_held_against_what_was_wanted(value, high, verdict, at_least, selecting, confirming):
    row = {"value": value, "high": high, "verdict": verdict}
    assert state_of(row, at_least, False) == selecting and state_of(row, at_least, True) == confirming
    assert state_of(None, at_least, False) == "not run"


def test_an_arm_is_selected_where_all_its_rows_are_reached_and_its_attention_is_as_narrow_as_was_wanted():
    arm, entropy = "attention_trainable", {"image_cross_attn": {"attention_entropy": [0.7, 0.8]}}
    against = ("baseline", "attention_trainable_constant")
    declared = [{"arm": arm, "against": one, "metric": "pixel_ap", "at_least": 1} for one in against]

    def outcome(values, watched):
        rows = [
            {"arm": arm, "against": one, "metric": "pixel_ap", "value": value, "high": value + 0.002}
            for one, value in zip(against, values, strict=False)
        ]
        (found,) = outcomes(rows, declared, {arm: watched}, confirming=False)
        return found

    assert outcome([0.02, 0.01], entropy)["outcome"] == "selected"
    wide = {"image_cross_attn": {"attention_entropy": [0.7, 0.95]}}
    assert outcome([0.02, 0.01], wide)["outcome"] == outcome([0.02, 0.01], {})["outcome"] == "not selected"
    missed = outcome([0.02, 0.009], entropy)
    assert missed["outcome"] == "refuted here" and missed["states"] == {"reached": 1, "missed": 1}
    assert outcome([0.02, 0.009], wide)["outcome"] == "not selected"
    assert missed["worst"] == (pytest.approx(0.1), "attention_trainable_constant", "pixel_ap")
    assert outcome([0.02, 0.007], entropy)["outcome"] == "refuted here"
    assert (
        outcome([0.02], entropy)["outcome"] == "unfinished" and outcome([], entropy)["outcome"] == "not run"
    )


def test_every_arm_is_held_against_rarity_and_the_target_whether_declared_or_not():
    def found(arm, over_baseline, over_bar, low):
        return [
            {
                "arm": arm,
                "against": against,
                "metric": metric,
                "value": value,
                "low": value - low,
                "high": 1.0,
            }
            for metric in KEYS[:2]
            for against, value in (
                ("baseline", over_baseline),
                ("rarity_alone", over_bar),
                ("baseline_rarity", over_bar / 2),
            )
            if against != arm
        ]

    declared = [
        {"arm": arm, "against": "baseline", "metric": "pixel_ap", "at_least": 0}
        for arm in ("feedback_mix", "baseline_rarity")
    ]

    def told(over_baseline, over_bar, low, arm="feedback_mix"):
        results = outcomes(found(arm, over_baseline, over_bar, low), declared, {}, confirming=False)
        return next(one for one in results if one["arm"] == arm)

    good = told(0.03, 0.04, 0.01)
    assert good["over_bar"] == dict.fromkeys(KEYS[:2], 0.02) and good["target"] is True
    assert "| +2.0 / +2.0 | met |" in outcome_table([good])
    assert told(0.029, 0.04, 0.01)["target"] is False  # too little over the baseline
    assert told(0.03, 0.04, 0.025)["target"] is False  # an interval reaches 0
    own = told(0.03, 0.04, 0.01, "baseline_rarity")
    assert own["over_bar"] == dict.fromkeys(KEYS[:2], 0.04) and own["target"] is True
    assert outcomes([], declared, {}, confirming=False)[0]["target"] is None


def test_what_was_watched_is_told_from_the_smallest_to_the_largest_of_all_runs_levels_and_heads():
    stage = {
        "displacement": {"image_adapter": 0.2, "anchor_attention": 0.01, "text_cross_attn": 0.0},
        "attention_entropy": {"anchor_attention.0": 0.3, "anchor_attention.1": 0.5},
        "gate": {"anchor_attention.0": [-0.08, 0.01]},
    }
    runs = {("anchor_late", seed, 3, "DemoA_even"): {"watch": {"image": stage}} for seed in (1, 2)}
    watched = watched_parts(runs)
    assert watched["anchor_late"]["anchor_attention"]["attention_entropy"] == [0.3, 0.5, 0.3, 0.5]
    lines = watched_table(watched).splitlines()[2:]
    assert lines == [
        "| anchor_late | image_adapter | 0.200 | – | – | – | – |",
        "| anchor_late | anchor_attention | 0.010 | 0.300 to 0.500 | – | 0.010 to 0.080 | – |",
    ]


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """Rendering and training take minutes: every command writes made-up files; returns (flags of arms.main, calls)."""
    calls = []

    def run_command(command):
        calls.append(command)
        folder = Path(command[command.index("--save_path") + 1])
        if command[0] != "test.py":
            entry = {"watch": {"displacement": {"image_adapter": 0.1}}}
            write_text(folder / "history.json", json.dumps({"loops": [{"text": [entry], "image": [entry]}]}))
            return
        test_set = command[command.index("--dataset") + 1]
        settings = parse("", TEST_GROUPS, command[1:], TEST_DEFAULTS)
        weight, reference = settings.own.rarity_weight, untrained_in(settings.own)
        tested = flags_at_test(settings)
        if folder.name.startswith("anchor_late_other_image"):  # of its checkpoint
            tested["anchor_attention_control"] = "other_image"
        file = folder / "metrics.json"
        metrics = json.loads(file.read_text()) if file.is_file() else {test_set: {}}
        row = dict.fromkeys(KEYS, 0.5 + weight / 100)
        names = {"DemoC": ["coin", "leaf"]}.get(test_set, ["tiles" if "odd" in test_set else "wood"])
        entry = {"tested_with": tested, "mean": row, "classes": dict.fromkeys(names, row)}
        entry |= {"checkpoints": {} if reference else {"a.pth": "0"}, "settings": settings.record() | tested}
        metrics[test_set] = {" ".join(map(str, tested.values())): entry} | metrics[
            test_set
        ]  # the last in front
        write_text(file, json.dumps(metrics))

    monkeypatch.setattr(arm_harness, "run_command", run_command)
    monkeypatch.setattr(arm_harness, "weight_of", lambda *_: 2.0)
    monkeypatch.setattr(arms, "render", lambda *_: None)
    monkeypatch.setattr(arms, "declare", lambda *_: None)
    out = tmp_path / "out"
    write_text(out / "hypotheses.json", (ROOT / "results/arms/hypotheses.json").read_text("utf-8"))
    return ["--out", str(out), "--runs", str(tmp_path / "runs")], calls


def test_a_selection_trains_what_is_missing_and_retests_it_and_stops_where_a_command_has_changed(made_up):
    flags, calls = made_up
    flags = [
        "--select",
        *flags,
        "--sets",
        "DemoA",
        "--data_seeds",
        "3",
        "--arms",
        "baseline_rarity",
        "anchor_late",
    ]
    arms.main([*flags, "--seeds", "1", "2"])
    trained = [command for command in calls if command[0] != "test.py"]
    assert len(trained) == 2 * 2 * 3  # halves, seeds; the baseline, the arm and the control that is trained
    assert (
        sum("--rarity_alone" in command for command in calls) == 2 * 2
    )  # not trained: once, and its control
    weighed = [command for command in calls if "--rarity_weight" in command]
    assert (
        all(command[command.index("--rarity_weight") + 1] == "2" for command in weighed) and len(weighed) == 8
    )
    out = Path(flags[2])
    kept = json.loads((out / "DemoA_even_data3" / "baseline_rarity_seed2.json").read_text("utf-8"))
    assert kept["threads"] == 1 and kept["metrics"]["DemoA_odd"]["classes"]["tiles"]["pixel_ap"] == 0.52
    assert kept["commands"][0].startswith(
        "python test.py --dataset DemoA_odd --dataset_config DATA/halves_of_DemoA"
    )
    watched = json.loads((out / "DemoA_even_data3" / "anchor_late_seed2.json").read_text("utf-8"))["watch"]
    assert watched["image"]["displacement"] == {"image_adapter": 0.1}
    calls.clear()
    arms.main([*flags, "--seeds", "1", "2"])
    assert not calls
    arms.main([*flags, "--seeds", "1", "2", "3", "--shard", "1/2"])
    assert len({command[command.index("--seed") + 1] for command in calls}) == 1  # its half of the new seed
    table = (out / "selection_DemoA" / "table.md").read_text("utf-8")
    command = "python -m studies.arms --select --sets DemoA --arms baseline_rarity anchor_late"
    assert table.startswith(f"    {command} --seeds 1 2 3 --data_seeds 3\n")
    file = out / "DemoA_even_data3" / "anchor_late_seed2.json"
    file.write_text(file.read_text("utf-8").replace("--anchor_attention late", "--anchor_attention early"))
    with pytest.raises(ValueError, match="anchor_late_seed2.json was made by"):
        arms.main([*flags, "--seeds", "1", "2"])


def test_a_confirmation_is_of_declared_winners_resumed_if_begun_and_never_done_twice(made_up, capsys):
    flags, calls = made_up
    flags = [*flags, "--seeds", "1", "--data_seeds", "5", "6"]
    with pytest.raises(Refusal, match="not declared in .*hypotheses.json before the runs"):
        arms.main(["--confirm", "baseline", *flags])
    with pytest.raises(Refusal, match="expected one arm or 2"):
        arms.main(["--confirm", "anchor_late", "baseline_rarity", "rarity_alone", *flags])
    arms.main(["--confirm", "anchor_late", *flags, "--shard", "0/2"])  # one of its two halves
    with pytest.raises(Refusal, match="the confirmation of anchor_late was begun"):
        arms.main(["--confirm", "baseline_rarity", *flags])
    assert {command[command.index("--dataset") + 1] for command in calls} == {"DemoA", "DemoC"}
    arms.main(["--confirm", "anchor_late", *flags])
    calls.clear()
    with pytest.raises(Refusal, match="confirmed on DemoC already .*--again"):
        arms.main(["--confirm", "anchor_late", *flags])
    assert not calls
    arms.main(["--confirm", "anchor_late", *flags, "--again"])
    assert "| anchor_late | baseline | 1 × 2 |" in capsys.readouterr().out


def test_without_declared_hypotheses_nothing_runs(tmp_path):
    with pytest.raises(Refusal, match="declare the hypotheses there before the first run"):
        arms.main(["--select", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")])


def test_an_evaluation_is_found_by_all_it_was_tested_with_whatever_its_place(tmp_path):
    command = [
        "test.py",
        "--dataset",
        "MVTec",
        "--model_name",
        "ViT-Tiny-8-demo",
        "--save_path",
        str(tmp_path),
    ]
    tested = flags_at_test(parse("", TEST_GROUPS, command[1:], TEST_DEFAULTS))
    run = {"checkpoints": {"a.pth": "0"}, "settings": {"anchor_attention": "late", "relu": True}}
    own = run | {"tested_with": tested | {"anchor_attention": "late", "relu": True}}
    other = own | {"tested_with": own["tested_with"] | {"no_cross_attention": True}}
    few = own | {"few_shot": {"weight": 1}}
    raw = {"checkpoints": {}, "settings": {"raw_clip": True}, "tested_with": tested}
    older = {key: value for key, value in own["tested_with"].items() if key != "rarity_control"}

    def found(entries, *more):
        write_text(tmp_path / "metrics.json", json.dumps({"MVTec": entries}))
        return entry_of(tmp_path, "MVTec", [*command, *more])

    entries = {"raw_clip": raw, "off": other, "few": few, "a.pth": own}
    assert found(entries) == own and found(entries, "--no_cross_attention") == other
    assert found(entries, "--raw_clip") == raw
    assert found({"a.pth": own | {"tested_with": older}})["tested_with"] == older
    with pytest.raises(ValueError, match="a.pth and b.pth are both evaluations of MVTec by"):
        found({"a.pth": own, "b.pth": own})
    with pytest.raises(ValueError, match="a.pth differs in rarity_weight"):
        found({"a.pth": own}, "--rarity_weight", "2")
    with pytest.raises(ValueError, match="raw_clip differs in what was tested"):
        found({"raw_clip": raw}, "--rarity_alone")
    with pytest.raises(ValueError, match="it holds none at all"):
        found({})


def test_a_class_counts_by_the_metrics_it_has():
    both, pixels = {"pixel_ap": 0.2, "image_auroc_unnormalised": 0.6}, {"pixel_ap": 0.2}
    assert rarity_weight.class_value("a", both) == pytest.approx(0.4)
    assert rarity_weight.class_value("a", pixels | {"image_auroc_unnormalised": None}) == 0.2
    with pytest.raises(ValueError, match="class a has neither pixel_ap nor image_auroc_unnormalised"):
        rarity_weight.class_value("a", dict.fromkeys(both))


def test_the_weight_with_the_best_mean_over_classes_that_were_not_trained_on_wins(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(rarity_weight.subprocess, "run", lambda words, **_: trained.append(words))
    monkeypatch.setattr(rarity_weight, "declare_datasets", lambda _: None)
    scores = {"DemoA_even": 0.5, "DemoA_odd": 0.2}

    def criterion(folder, dataset, data):
        assert folder.name != f"weight_{dataset}"
        return {weight: [scores[dataset] - abs(weight - 0.5)] for weight in (0.0, *rarity_weight.GRID)}

    monkeypatch.setattr(rarity_weight, "criterion", criterion)
    for _ in range(2):  # the second time it is read
        weight = rarity_weight.weight_of(
            tmp_path / "w.json", "DemoA", tmp_path, tmp_path / "c.json", tmp_path / "runs", 7
        )
        assert weight == 0.5 and len(trained) == 2
    found = json.loads((tmp_path / "w.json").read_text("utf-8"))
    assert found["criterion"]["0.5"] == pytest.approx(35) and all("DATA" in one for one in found["commands"])
