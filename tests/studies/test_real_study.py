"""The study on real weights: protocol, gate, plan, binding, runs and report; a backbone in the slow ones alone."""

import json
from argparse import Namespace

import pytest

from files.atomic import write_text
from files.command import Refusal
from run_folder.flags import parse
from run_folder.settings import BASELINE_GROUPS, CROSS_ATTENTION_GROUPS
from studies.arm_runs import CROSS, FEEDBACK
from studies.real_study import __main__ as command
from studies.real_study import analysis, anchors, binding, protocol, runs
from studies.real_study import plan as costs
from training.feedback_recipes import GROUPS, fill_in, plan

ONE_TRAIN = protocol.REAL._replace(directions={"VisA": ("MVTec", "BTAD")})
GOOD = {"pixel_auroc": 0.915, "pixel_ap": 0.45, "pixel_aupro": 0.85, "image_auroc": 0.905, "image_ap": 0.96}
GOOD |= {"image_auroc_unnormalised": 0.9}


def study_in(out, arms=("baseline", "rarity_alone", "cross_attention"), agreed=None, one=ONE_TRAIN):
    agreed = agreed or {
        "precision": "fp32",
        "hardware": {"name": "GPU", "torch": "2"},
        "weights": {"sha256": "0", "published_as": None},
        "data": {"MVTec": {"normal": 1, "anomalous": 2, "published": [467, 1258]}},
    }
    return runs.Study(
        one._replace(arms=tuple(arms)), tuple(arms), out, ("--data_root", "DATA"), (), agreed, {}
    )


def made_up(monkeypatch, values=GOOD):
    """Commands come back at once and leave what training and test.py leave; returns the commands."""
    ran = []

    def run_commands(commands, environment):
        for script, words in commands:
            ran.append((script, words))
            folder = runs.Path(words[words.index("--save_path") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            if script != "test.py":
                write_text(folder / "history.json", json.dumps({"loops": []}))
                for name in ("text_adapter.pth", "image_adapter.pth", "image_adapter_15.pth"):
                    (folder / name).touch()
                continue
            name = "image_adapter_15.pth" if "--epoch" in words else "image_adapter.pth"
            name = "rarity_alone" if "--rarity_alone" in words else name
            file = folder / "metrics.json"
            everything = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            entry = {"mean": values, "classes": {"bottle": values}, "tested_with": {}}
            everything.setdefault(words[words.index("--dataset") + 1], {})[name] = entry
            write_text(file, json.dumps(everything))

    monkeypatch.setattr(runs, "run_commands", run_commands)
    monkeypatch.setattr(command, "run_commands", lambda commands, environment: ran.extend(commands))
    return ran


@pytest.mark.parametrize("arm", [arm for arm in protocol.ARMS if protocol.ARMS[arm].script])
def test_every_arm_takes_aa_clips_passes_batches_and_rates(arm):
    script, words = protocol.ARMS[arm].script, protocol.training_flags(arm, protocol.REAL.schedule)
    assert not {"--precision", "--matmul"} & set(words)  # all arms have the command line's
    groups = {"train.py": BASELINE_GROUPS, CROSS: CROSS_ATTENTION_GROUPS, FEEDBACK: GROUPS}[script]
    settings = parse("", groups, words)
    passes = (settings.training.text_epoch, settings.training.image_epoch)
    if script == FEEDBACK:
        settings = fill_in(settings)
        loops = plan(settings)
        passes = tuple(sum(getattr(loop, f"{stage}_epochs") for loop in loops) for stage in ("text", "image"))
    assert passes == (5, 20)
    training = settings.training
    assert (training.training_mode, training.text_batch_size, training.image_batch_size) == (
        "full_shot",
        16,
        2,
    )
    if arm != "feedback_v2":  # the recipe names rates of its own
        assert (training.text_lr, training.image_lr) == (1e-5, 5e-4)
    if "--cross_attn_lr" in words:
        assert settings.cross_attention.cross_attn_lr == 5e-4


def test_arms_that_are_dropped_go_with_their_controls_and_the_question_itself_stays():
    dropped = [arm for group in protocol.DROPPED_FIRST for arm in group]
    assert len(dropped) == len(set(dropped))
    kept = {"baseline", "rarity_alone", "baseline_rarity", "local_contrast", "cross_attention"}
    assert set(dropped) | kept == set(protocol.ARMS) and not kept & set(dropped)


def test_arms_that_share_a_run_stay_in_one_group_and_untrained_ones_come_once():
    groups = protocol.groups_of(
        ["VisA"], ["baseline", "rarity_alone", "anchor_late", "anchor_late_swapped"], [1, 2]
    )
    assert ("VisA", 1, ["anchor_late", "anchor_late_swapped"]) in groups
    assert [group for group in groups if group[2] == ["rarity_alone"]] == [("VisA", 1, ["rarity_alone"])]
    assert [seed for _, seed, _ in groups] == sorted(seed for _, seed, _ in groups)


def test_the_gate_is_the_published_range_within_one_point():
    assert anchors.outside("MVTec", {"pixel_auroc": 0.8961, "image_auroc": 0.9259}) == []
    low, high = anchors.outside("MVTec", {"pixel_auroc": 0.8959, "image_auroc": 0.9261})
    assert "pixel_auroc on MVTec is 89.6, expected 90.6 to 92.1" in low and "image_auroc" in high
    assert anchors.outside("VisA", {"pixel_auroc": 0.94, "image_auroc": 0.79}) == []
    assert anchors.outside("DemoB", {}) is None


def test_arms_are_dropped_in_the_declared_order_until_the_rest_fits(tmp_path):
    study = study_in(tmp_path, protocol.ARMS)
    cost = dict.fromkeys(protocol.ARMS, costs.Cost(0.5, 0.2, 10, 0.1, 20, 0.1))
    sizes = costs.Sizes({"VisA": 2162, "MVTec": 1725, "BTAD": 741}, 16, 2)
    every = costs.hours_of(study, study.arms, [1, 2, 3], cost, sizes)
    assert costs.arms_that_fit(study, [1, 2, 3], cost, sizes, None) == study.arms
    fitting = costs.arms_that_fit(study, [1, 2, 3], cost, sizes, every - 0.1)
    assert set(study.arms) - set(fitting) == {"feedback_v2"}
    few = costs.arms_that_fit(study, [1, 2, 3], cost, sizes, every / 3)
    assert {"baseline", "rarity_alone", "cross_attention"} <= set(few) and "feedback_v1" not in few
    with pytest.raises(Refusal, match="alone take .* hours; give more hours"):
        costs.arms_that_fit(study, [1, 2, 3], cost, sizes, 0.1)
    text = costs.plan_text(study, [1, 2, 3], cost, sizes, fitting)
    assert text.count("dropped") == 1 and "20.0 GB of its memory" in text


def test_hours_are_steps_times_seconds_and_tests_of_both_epochs(tmp_path):
    study = study_in(tmp_path)
    sizes = costs.Sizes({"VisA": 32, "MVTec": 100, "BTAD": 50}, 16, 2)
    cost = costs.Cost(text_step=1, image_step=2, start=3, picture=0.5, memory=1, checkpoint=1)
    trained = 5 * 2 * 1 + 20 * 16 * 2
    tests = 2 * 3 + 150 * 0.5
    assert costs.seconds_of_run(study, "baseline", "VisA", cost, sizes) == trained + 2 * tests
    assert costs.seconds_of_run(study, "rarity_alone", "VisA", cost, sizes) == tests


def test_a_study_goes_on_as_it_was_begun_and_refuses_other_hardware_precision_or_analysis(tmp_path):
    agreed = {"precision": "fp32", "hardware": {"name": "A"}, "analysis": {"compare.py": "1"}}
    assert binding.arms_begun(tmp_path) is None
    binding.bind(tmp_path, agreed | {"arms": ["baseline"]})
    binding.bind(tmp_path, agreed)
    assert binding.arms_begun(tmp_path) == ("baseline",)
    for changed, told in (
        ({"precision": "bf16"}, "precision: fp32 then, bf16 now"),
        ({"hardware": {"name": "B"}}, "hardware, name: A then, B now"),
        ({"analysis": {"compare.py": "2"}}, "analysis, compare.py: 1 then, 2 now"),
    ):
        with pytest.raises(ValueError, match=told):
            binding.bind(tmp_path, agreed | changed)


def test_the_frozen_analysis_names_what_decides():
    files = binding.analysis_files()
    assert {"compare.py", "comparison/significance.py", "studies/real_study/analysis.py"} <= files.keys()


def test_counts_that_differ_from_the_published_are_told():
    data = {"MVTec": {"normal": 467, "anomalous": 1257, "published": [467, 1258]}}
    data |= {"own": {"normal": 1, "anomalous": 1, "published": None}}
    (told,) = binding.differing_counts(data)
    assert told == "MVTec has 467 normal and 1257 anomalous pictures, published were 467 and 1258"


def test_a_set_that_is_not_whole_is_refused_before_anything_runs(tmp_path, monkeypatch):
    ran, study = made_up(monkeypatch), study_in(tmp_path)
    data = {"MVTec": {"normal": 466, "anomalous": 1258, "published": [467, 1258]}}
    monkeypatch.setattr(command, "study_of", lambda args: (study, data))
    with pytest.raises(Refusal, match="MVTec has 466 normal .*\n?unpack these sets anew"):
        command.main(["--out", str(tmp_path)])
    assert not ran and not (tmp_path / binding.STUDY).exists()


def test_runs_are_kept_one_json_each_and_neither_repeated_nor_mixed(tmp_path, monkeypatch):
    ran, study = made_up(monkeypatch), study_in(tmp_path)
    groups = protocol.groups_of(["VisA"], study.arms, [1, 2])
    runs.run_missing(study, groups)
    count = len(ran)
    runs.run_missing(study, groups)
    assert len(ran) == count
    found = runs.read_runs(study, [1, 2])
    assert len(found) == 6 and found["VisA", "rarity_alone", 2]["seed"] is None
    run = found["VisA", "baseline", 2]
    assert set(run["metrics"]["MVTec"]) == {"last", "epoch_15"} and set(run["metrics"]) == {"MVTec", "BTAD"}
    study.file("VisA", "baseline", 1).unlink()
    runs.run_missing(study, groups)
    assert len(ran) == count, "a finished training and its finished tests were repeated"
    other = study._replace(agreed=study.agreed | {"precision": "bf16"})
    with pytest.raises(ValueError, match="made with precision fp32, the study has bf16"):
        runs.read_runs(other, [1, 2])
    monkeypatch.setitem(protocol.ARMS, "cross_attention", protocol.ARMS["cross_attention_image"])
    with pytest.raises(ValueError, match="cross_attention was .* then and is .*--text_context image.* now"):
        runs.read_runs(study, [1, 2])


def test_a_control_of_another_arms_run_is_told_apart_by_what_it_was_tested_with(tmp_path):
    (tmp_path / "image_adapter_cross_attn.pth").touch()
    own, swapped = (
        {"mean": 1, "tested_with": {}},
        {"mean": 2, "tested_with": {"anchor_attention_control": "swapped"}},
    )
    unfinished = own | {"unfinished": ["a"]}
    name = "image_adapter_cross_attn.pth"
    entries = {"MVTec": {f"{name}, anchors swapped": swapped, name: own}, "BTAD": {name: unfinished}}
    write_text(tmp_path / "metrics.json", json.dumps(entries))
    assert runs.evaluation(tmp_path, "anchor_late", "MVTec") == own
    assert runs.evaluation(tmp_path, "anchor_late_swapped", "MVTec") == swapped
    assert runs.evaluation(tmp_path, "anchor_late_uniform", "MVTec") is None
    assert runs.evaluation(tmp_path, "anchor_late", "BTAD") is None


def test_a_baseline_with_rarity_is_told_from_the_baseline_and_from_one_with_another_weight(tmp_path):
    (tmp_path / "image_adapter.pth").touch()
    name, weight = "image_adapter.pth", float(protocol.RARITY)
    own, with_rarity = ({"mean": n, "tested_with": {"rarity_weight": w}} for n, w in ((1, 0.0), (2, weight)))
    entries = {f"{name} with rarity {weight:g}": with_rarity, name: own}
    write_text(tmp_path / "metrics.json", json.dumps({"MVTec": entries}))
    assert runs.evaluation(tmp_path, "baseline", "MVTec") == own
    assert runs.evaluation(tmp_path, "baseline_rarity", "MVTec") == with_rarity
    with_rarity["tested_with"]["rarity_weight"] = weight + 1
    write_text(tmp_path / "metrics.json", json.dumps({"MVTec": entries}))
    assert runs.evaluation(tmp_path, "baseline_rarity", "MVTec") is None


@pytest.mark.parametrize("reproduced", [True, False])
def test_there_is_no_verdict_without_a_reproduced_baseline(tmp_path, monkeypatch, reproduced):
    ran = made_up(monkeypatch, GOOD if reproduced else GOOD | {"pixel_auroc": 0.85})
    study = study_in(tmp_path)
    runs.run_missing(study, protocol.groups_of(["VisA"], study.arms, [1]))
    text = command.decide(study, [1])
    compared = [words for script, words in ran if script == "compare.py"]
    if reproduced:
        assert "lands where AA-CLIP does" in text and analysis.NO_VERDICT not in text and len(compared) == 2
        words = compared[0]
        declared = words[words.index("--hypotheses") + 1 : words.index("--data_root")]
        assert declared[0] == "cross_attention:pixel_ap:MVTec" and len(declared) == 2
    else:
        assert f"**{analysis.NO_VERDICT}** (pixel_auroc on MVTec is 85.0" in text and not compared
    assert "| baseline, epoch 15 | 1 |" in text and "| *AA-CLIP, paper (arXiv 2503.06661)* | | 91.9 |" in text
    assert "NOT as published: MVTec has 1 normal" in text and "NOT a file that OpenAI published" in text


def test_an_unfinished_study_says_how_far_it_is(tmp_path, monkeypatch):
    made_up(monkeypatch)
    study = study_in(tmp_path)
    runs.run_missing(study, protocol.groups_of(["VisA"], study.arms, [1])[:1])
    assert "1 of 3 runs are there: no verdict yet." in command.decide(study, [1])


def test_sets_that_are_not_here_can_be_left_out_but_not_the_one_that_decides():
    args = Namespace(dry_run=False, train=["VisA"], leave_out=["Brain", "Liver"])
    assert "Brain" not in command.protocol_of(args).directions["VisA"]
    with pytest.raises(ValueError, match="MVTec decides for VisA"):
        command.protocol_of(Namespace(dry_run=False, train=None, leave_out=["MVTec"]))
    with pytest.raises(ValueError, match="--train BTAD: expected some of VisA, MVTec"):
        command.protocol_of(Namespace(dry_run=False, train=["BTAD"], leave_out=[]))


@pytest.mark.slow
def test_the_dry_run_is_the_whole_command_and_is_not_repeated(tmp_path, capsys):
    words = ["--dry_run", "--out", str(tmp_path), "--seeds", "111"]
    command.main(words)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert report.count("| anchor_late_uniform | 1 |") == 1 and "runs are there: no verdict yet" not in report
    for reference in analysis.REFERENCES:
        assert (tmp_path / f"compare_DemoA_few_{reference}" / "report.html").is_file()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "results").rglob("*.json")}
    capsys.readouterr()
    command.main(words)
    assert {file: file.stat().st_mtime_ns for file in files} == files
    with pytest.raises(ValueError, match="precision: fp32 then, bf16 now"):
        command.main([*words, "--precision", "bf16"])
    command.main([*words, "--hours", "1e-9"])  # arms were chosen when the study began


@pytest.mark.slow
def test_the_plan_times_every_arm_and_drops_what_does_not_fit(tmp_path, capsys):
    words = ["--dry_run", "--out", str(tmp_path), "--seeds", "111"]
    command.main([*words, "--plan"])
    told = capsys.readouterr().out
    assert "hours of one device" in told and "| anchor_late_uniform | – | – |" in told
    kept = json.loads((tmp_path / "plan" / "plan.json").read_text(encoding="utf-8"))["costs"]
    assert set(kept) == {protocol.trained_arm(arm) for arm in protocol.DRY.arms}
    for arm, values in kept.items():
        cost = costs.Cost(*values)
        assert cost.picture > 0 and cost.memory > 0
        assert (cost.text_step > 0) == (cost.image_step > 0) == (protocol.ARMS[arm].script is not None)
    assert not (tmp_path / "results").exists()


def test_the_timed_process_writes_seconds_and_memory(tmp_path, monkeypatch):
    from studies.real_study import timing

    monkeypatch.setattr(timing, "run_command", lambda script, words: None)
    timing.main([str(tmp_path / "t.json"), json.dumps(["test.py", []]), json.dumps(["test.py", []])])
    found = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert len(found["seconds"]) == 2 and found["peak_gb"] > 0
