"""What the demo and the studies say about finished runs: scripts/demo.py, studies/study.py, studies/arm_runs.py."""

import ast
import contextlib
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from cross_attention_world import MODEL, write_world

from demo_world.render_sets import Counts, render_demo
from files.pictures import GAP, write_png
from run_folder.flags import parse
from scripts import commands, contact_sheet, demo
from studies import arm_runs, study
from training.feedback_recipes import GROUPS, fill_in, plan

ROOTS = (
    "train",
    "test",
    "train_cross_attention",
    "train_cross_attention_feedback",
    "compare",
    "test_stage2_gradients",
)
VALUES = {"pixel_auroc": 0.9, "pixel_ap": 0.25, "pixel_aupro": 0.5, "image_auroc": None, "image_ap": 0.125}


def write_run(folder, colour):
    """A run as test.py leaves it: metrics of every test set and one strip of three pictures."""
    folder.mkdir()
    metrics = {name: {"image_adapter.pth": {"mean": VALUES}} for name in demo.TEST_SETS}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    strip = np.full((12, 36, 3), 9, np.uint8)
    strip[:, 24:] = colour
    for name in ("DemoB__gear__test__chip__000", "DemoB__gear__test__good__000"):
        write_png(folder / "visualization" / "DemoB" / "gear" / f"{name}.png", strip)
    return folder


def test_the_demos_table_has_a_row_per_test_set_and_run_and_a_dash_for_undefined(tmp_path):
    lines = demo.table({"baseline": write_run(tmp_path / "run", 50)}).splitlines()
    assert len(lines) == 2 + len(demo.TEST_SETS)
    assert lines[2] == "| DemoB | baseline | 90.0 | 25.0 | 50.0 | – | 12.5 |"


def test_the_contact_sheet_puts_every_runs_heatmap_beside_original_and_truth(tmp_path):
    runs = {"one": write_run(tmp_path / "one", (200, 0, 0)), "two": write_run(tmp_path / "two", (0, 0, 200))}
    header = "dataset,checkpoint,file,own_score\n"
    (tmp_path / "one" / "scores.csv").write_text(f"{header}DemoB,x,DemoB/gear/test/chip/000.png,0.25\n")
    assert contact_sheet.own_scores(tmp_path / "one", "DemoB") == {
        "DemoB__gear__test__chip__000.png": "0.2500"
    }
    assert (
        contact_sheet.own_scores(tmp_path / "one", "DemoA") == {}
        and contact_sheet.own_scores(tmp_path / "two", "DemoB") == {}
    )
    sheet = contact_sheet.contact_sheet(runs, "DemoB")
    middle = contact_sheet.LINE + GAP + 5  # below the titles
    assert (sheet[middle, 30] == (200, 0, 0)).all()
    assert ((sheet[middle] == (0, 0, 200)).all(axis=-1)).sum() >= 12
    assert (sheet[: contact_sheet.LINE] < 128).any()  # the titles
    below = sheet[contact_sheet.LINE + GAP + 12 + GAP :][: contact_sheet.LINE, : sheet.shape[1] // 2]
    assert (below < 128).any()
    wide = np.zeros((4, 400, 3), np.uint8)
    line = contact_sheet.caption_line(["gear/test/chip/" + 9 * "0", None, "0.25"], wide)
    assert line.shape == (contact_sheet.LINE, 400, 3)
    assert (line[:, :100] < 128).any() and not (line[:, 262:266] < 128).any()  # cut before the next column
    assert (line[:, 267:] < 128).any() and contact_sheet.told_of("DemoB__a__b.png", "DemoB") == "a/b"
    assert contact_sheet.fitting("abc", contact_sheet.font_of(12), 1000) == "abc"
    assert contact_sheet.fitting("a" * 99, contact_sheet.font_of(12), 60).endswith("a…")


def test_a_demo_folder_of_other_seeds_is_refused(tmp_path):
    demo.bind_folder_to_seeds(tmp_path, {"seed": 1, "data_seed": 0})
    demo.bind_folder_to_seeds(tmp_path, {"seed": 1, "data_seed": 0})
    with pytest.raises(ValueError, match="was made with .*'data_seed': 0.* choose another --out"):
        demo.bind_folder_to_seeds(tmp_path, {"seed": 1, "data_seed": 2})


@pytest.mark.parametrize("pace", list(demo.EPOCHS))
def test_what_the_demo_compares_took_equally_many_epochs(pace):
    epochs, (_, flags) = demo.EPOCHS[pace], demo.CONTINUED["feedback"]
    words = ["--model_name", demo.MODEL, *flags, *demo.epoch_flags(epochs["feedback"])]
    loops = plan(fill_in(parse("", GROUPS, words)))
    of_feedback = tuple(
        sum(getattr(loop, f"{stage}_epochs") for loop in loops) for stage in ("text", "image")
    )
    assert {epochs[title] for title in demo.CONTINUED if title != "feedback"} == {of_feedback}
    assert set(demo.CONTINUED) == set(epochs) - {"baseline"} and demo.SAME_STEPS in demo.CONTINUED


def test_a_studys_table_gives_mean_and_extremes_over_the_seeds():
    def run(value):
        return {"metrics": {"DemoB": {"mean": dict.fromkeys(study.COLUMNS, value)}}}

    told = study.table("baseline", {("baseline", 1): run(0.5), ("baseline", 2): run(0.7)}, ["DemoB"])
    assert told.splitlines()[-1].startswith("| DemoB | baseline | 2 | 60.0 (50.0–70.0) |")


def test_a_finished_run_of_another_command_is_refused_and_other_arms_are_not_read(tmp_path):
    arms = {"baseline": ("train.py", ["--precision", "bf16"])}
    command = " ".join(["python", *arm_runs.training_command(*arms["baseline"], 3, "DemoA")])
    run = {"arm": "baseline", "seed": 3, "commands": [command]}
    (tmp_path / "baseline_seed3.json").write_text(json.dumps(run), encoding="utf-8")
    (tmp_path / "other_seed3.json").write_text(json.dumps(run | {"arm": "other"}), encoding="utf-8")
    assert arm_runs.read_results(tmp_path, arms, "DemoA") == {("baseline", 3): run}
    for changed, train_set in (({"baseline": ("train.py", [])}, "DemoA"), (arms, "DemoB")):
        with pytest.raises(ValueError, match="was trained by"):
            arm_runs.read_results(tmp_path, changed, train_set)


def test_a_feedback_studys_table_has_a_row_per_loop_and_says_whether_the_image_loss_falls():
    def run(value, losses):
        metrics = [dict.fromkeys(study.COLUMNS, value), dict.fromkeys(study.COLUMNS, value + 0.1)]
        loops = [{"loop": loop, "image": [{"loss": loss} for loss in losses]} for loop in (1, 2)]
        return {"loops": {"DemoB": metrics}, "history": {"loops": loops}}

    results = {("v1_3_loops", 1): run(0.5, [3.0, 2.0]), ("v1_3_loops", 2): run(0.7, [3.0, 3.5])}
    lines = study.loops_table("feedback", results, ["DemoB"]).splitlines()
    assert lines[2].startswith("| DemoB | v1_3_loops | 1 | 60.0 (50.0–70.0) |")
    assert lines[3].startswith("| DemoB | v1_3_loops | 2 | 70.0 (60.0–80.0) |")
    assert lines[3].endswith("| 3.000 → 2.750 | 1 of 2 |")
    assert study.loops_table("baseline", {}, ["DemoB"]) == ""


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("scripts.evidence", "--shard"),
        ("scripts.study", "--study"),
        ("scripts.pretrain_tiny_clip", "--cache"),
        ("dataset.demo", "--test_defective"),
    ],
)
def test_names_from_before_still_run(name, flag):
    ran = subprocess.run(
        [sys.executable, "-m", name, "--help"], cwd=commands.ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("usage:") and flag in ran.stdout


def test_pictures_can_be_imported_by_their_name_from_before():
    import visualization
    from files import pictures

    assert visualization.heatmap is pictures.heatmap and visualization.visualize is pictures.visualize


def test_a_command_runs_in_this_process_and_its_error_is_raised_here(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image_adapter\.pth"):
        commands.run_command("test.py", ["--save_path", str(tmp_path), "--device", "cpu"])


def write_command(path, body):
    path.write_text(f"import os, sys, time\n\n\ndef main(argv):\n    {body}\n")
    return str(path)


def test_chains_side_by_side_run_in_order_on_one_thread_and_their_lines_carry_the_title(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # the user's own choice stays
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    say = write_command(tmp_path / "say.py", f"print(*argv, *(os.environ[name] for name in {names}))")
    with commands.SideBySide(2) as jobs:
        jobs.start("first", [(say, ["a"]), (say, ["b"])])
        jobs.start("second", [(say, ["c"])])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "first" in line] == ["[first] a 1 ACTIVE", "[first] b 1 ACTIVE"]
    assert [line for line in lines if "second" in line] == ["[second] c 1 ACTIVE"]


def test_a_chain_that_fails_stops_the_others_and_names_itself(tmp_path):
    wait = write_command(tmp_path / "wait.py", "time.sleep(60); open(argv[0], 'w').close()")
    fail = write_command(tmp_path / "fail.py", "time.sleep(1); sys.exit(3)")
    begin = time.monotonic()
    with (
        pytest.raises(RuntimeError, match="broken: stopped with exit status 3"),
        commands.SideBySide(2) as jobs,
    ):
        jobs.start("waiting", [(wait, [str(tmp_path / "written")])])
        jobs.start("broken", [(fail, [])])
    assert time.monotonic() - begin < 50 and not (tmp_path / "written").exists()


def test_neither_scripts_nor_studies_nor_benchmarks_import_a_command():
    for room in ("scripts", "studies", "benchmarks", "synthesis"):
        for file in (commands.ROOT / room).glob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            found |= {
                one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names
            }
            assert not found & set(ROOTS), file


def test_the_demo_runs_from_rendering_to_its_report(tmp_path, monkeypatch, capsys):
    """Every command is the real one, on a tiny random CLIP, two pictures a class and one epoch a stage."""
    weights = write_world(tmp_path)
    tiny = ["--model_name", MODEL, "--clip_weights", str(weights), "--img_size", "32"]
    tiny += ["--surgery_until_layer", "3", "--device", "cpu"]
    adapters = ["--text_adapt_until", "2", "--image_adapt_until", "2"]
    short = ["--training_mode", "full_shot", "--text_epoch", "1", "--image_epoch", "1", "--text_lr", "1e-3"]
    heads = ["--cross_attn_heads", "4"]
    added = {
        "test.py": tiny,
        "predict.py": tiny,
        "train.py": [*tiny, *adapters, *short],
        "train_cross_attention.py": [*tiny, *adapters, *short, *heads],
        "train_cross_attention_feedback.py": [*tiny, *adapters, *short, *heads],
        "compare.py": ["--replicates", "100"],
    }
    ran, paces = [], []

    class InThisProcess(contextlib.AbstractContextManager):
        """SideBySide's interface, one chain after the other, every command with the flags of a tiny run."""

        def __exit__(self, *_):
            return None

        def start(self, title, chain):
            for name, argv in chain:
                if name == "demo_world/render_sets.py":
                    words = dict(zip(argv[::2], argv[1::2], strict=True))
                    render_demo(words["--name"], words["--out"], size=64, counts=Counts(0, 1, 1))
                    continue
                ran.append((title, name))
                paces.append("--matmul" in argv and argv[argv.index("--feature_cache") + 1])
                commands.run_command(name, [*argv, *added[name]])
            return lambda: None

    monkeypatch.setattr(demo, "SideBySide", InThisProcess)
    monkeypatch.setattr(demo, "TEST_SETS", ("DemoB",))
    out = tmp_path / "demo"
    demo.main(["--out", str(out), "--seed", "3", "--quick"])
    assert ran == [
        ("first look", "predict.py"),
        ("baseline", "train.py"),
        ("local contrast", "test.py"),
        ("rarity alone", "test.py"),
        ("raw CLIP", "test.py"),
        ("continued baseline", "train_cross_attention.py"),
        ("continued baseline", "test.py"),
        ("cross-attention", "train_cross_attention.py"),
        ("cross-attention", "test.py"),
        ("feedback", "train_cross_attention_feedback.py"),
        ("feedback", "test.py"),
        ("baseline", "test.py"),
        ("compare", "compare.py"),
    ]
    # One cache for all, and it was filled: the frozen backbone sees what all train on once.
    assert paces == [False, *[str(out / "data" / "cache" / "features")] * 11, False]
    assert any((out / "data" / "cache" / "features").rglob("*.safetensors"))
    report = (out / "report.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[1] for line in report.splitlines() if line.startswith("| DemoB")] == [
        "local contrast",
        "rarity alone",
        "raw CLIP",
        "baseline",
        "continued baseline",
        "cross-attention",
        "feedback",
    ]
    assert (out / "report.html").is_file() and (out / "contact_sheet_DemoB.png").is_file()
    compared = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert compared["hypotheses"] == ["cross-attention:image_auroc:DemoB", "cross-attention:pixel_ap:DemoB"]
    assert compared["baseline"] == "continued baseline"  # which took the others' steps
    assert not any("more steps" in note for note in compared["notes"])
    rows = compared["datasets"]["DemoB"]["arms"]
    # Eight classes can decide two hypotheses: no verdict here is out of reach whatever the runs say.
    declared = [rows["cross-attention"]["metrics"][metric] for metric in ("image_auroc", "pixel_ap")]
    assert [row["hypotheses"] for row in declared] == [2, 2]
    assert all(row["verdict"] in ("helps", "hurts", "not shown") for row in declared)
    assert not any("verdict" in row for row in rows["feedback"]["metrics"].values())
    assert "decides two hypotheses" in report
    printed = capsys.readouterr().out
    assert "This is the quick demo" in report and "[4/4] compare" in printed
    page = out / demo.FIRST_LOOK / "index.html"
    assert page.is_file() and f"first heatmaps, of CLIP without training, are in {page}" in printed
    assert printed.rstrip().endswith(f"Open {out / 'report.html'}")
    html = (out / "report.html").read_text(encoding="utf-8")
    assert html.count('<tr class="reference">') == 3
    with pytest.raises(ValueError, match="'seed': 3.* choose another --out"):
        demo.main(["--out", str(out), "--seed", "4"])
