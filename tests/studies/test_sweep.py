"""Sweeps: from a file to runs, worked off side by side, gone on with after 75, compared; a stand-in trains."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from files.command import Refusal
from run_folder.signals import TRY_AGAIN
from studies.arm_runs import ROOT
from studies.sweep import __main__ as command
from studies.sweep import plan
from studies.sweep.work import Process, RunState, work_off

STAND_IN = """
import signal, sys, time, yaml
from pathlib import Path
values = yaml.safe_load(Path(sys.argv[2]).read_text())
folder = Path(values["save_path"])
folder.mkdir(parents=True, exist_ok=True)
calls = folder / "calls.txt"
calls.write_text((calls.read_text() if calls.exists() else "") + "x")
if values.get("mode") == "slow" and values.get("seed") != 2 and len(calls.read_text()) == 1:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    (folder / "ready").write_text("")
    time.sleep(60)
    sys.exit(9)
if values.get("mode") == "again" and len(calls.read_text()) < 3:
    sys.exit(75)
if values.get("mode") == "fails":
    print("it does not work")
    sys.exit(3)
"""


@pytest.fixture
def sweep_file(tmp_path):
    """Function (**keys) -> path of a sweep of the stand-in."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def made(**keys):
        values = {"out": str(tmp_path / "out"), "script": str(tmp_path / "stand_in.py")} | keys
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return made


@pytest.fixture
def start(lines):
    """Function (file, *flags) -> (exit code, what is said)."""
    logger, messages = lines

    def started(file, *flags):
        messages.clear()
        return command.main([str(file), *flags], logger), "\n".join(messages)

    return started


def calls(tmp_path):
    """{run: how often its command was called}."""
    return {
        file.parent.name: len(file.read_text()) for file in (tmp_path / "out" / "runs").glob("*/calls.txt")
    }


def test_a_grid_becomes_one_run_a_point_named_by_it_with_its_settings_in_a_file(sweep_file):
    path = sweep_file(settings={"a": 1, "b": True}, grid={"image_lr": [0.1, 0.2], "seed": [1, 2]})
    runs = plan.runs_of(plan.read_sweep(path), path)
    assert [run.name for run in runs] == [f"image_lr_0.{lr}_seed{seed}" for lr in (1, 2) for seed in (1, 2)]
    assert [run.arm for run in runs] == ["image_lr_0.1"] * 2 + ["image_lr_0.2"] * 2
    (words,) = runs[1].commands
    assert words[1] == "--config"
    values = yaml.safe_load(Path(words[2]).read_text())
    assert values == {"a": 1, "b": True, "image_lr": 0.1, "seed": 2, "save_path": str(runs[1].folder)}


def test_arms_have_scripts_and_settings_of_their_own_over_a_configuration_file(tmp_path):
    (tmp_path / "begin.yaml").write_text("img_size: 64\nimage_epoch: 7\n")
    arms = {"base": {"script": "train.py", "settings": {"image_epoch": 3}}, "cross": {}}
    keys = {"script": "train_cross_attention.py", "config": str(tmp_path / "begin.yaml"), "arms": arms}
    keys |= {"out": str(tmp_path / "out"), "settings": {"data_root": "data"}, "grid": {"seed": [5]}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(keys | {"test": {"datasets": ["BTAD"], "settings": {"img_size": 128}}}))
    base, cross = plan.runs_of(plan.read_sweep(path), path)
    assert base.commands[0][0].endswith("/train.py") and cross.commands[0][0].endswith(
        "/train_cross_attention.py"
    )
    first, tested = (yaml.safe_load(Path(words[2]).read_text()) for words in base.commands)
    assert (first["img_size"], first["image_epoch"], first["data_root"]) == (64, 3, "data")
    assert tested == {
        "data_root": "data",
        "seed": 5,
        "img_size": 128,
        "dataset": "BTAD",
        "save_path": str(base.folder),
    }
    assert yaml.safe_load(Path(cross.commands[0][2]).read_text())["image_epoch"] == 7


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"grids": {}}, r"unknown key 'grids' \(do you mean grid"),
        ({"grid": {"seed": 1}}, "seed is 1: expected a list"),
        ({"arms": {"a": {"settting": {}}}}, "arm a: unknown key 'settting'"),
        ({"test": {"dataset": ["MVTec"]}}, "test: unknown key 'dataset'"),
        ({"script": "none.py"}, "no script none.py"),
        ({"processes": "two"}, "processes is 'two': expected"),
        ({"settings": {"save_path": "x"}}, "save_path is chosen by the sweep"),
        ({"baseline": "b"}, "baseline is 'b': expected one of run"),
        ({"grid": {"a": [1, 1]}}, "two runs would be called a_1"),
        ({"script": "train.py", "settings": {"image_lrs": 1}}, "'image_lrs' is no flag of this command"),
        ({"script": "train.py", "settings": {"image_lr": "big"}}, "image_lr is 'big': expected a number"),
    ],
)
def test_a_mistake_in_a_sweep_is_told_before_anything_is_started(sweep_file, keys, said):
    path = sweep_file(**keys)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        plan.runs_of(plan.read_sweep(path), path)


def test_runs_are_worked_off_once_and_what_stopped_with_75_goes_on(sweep_file, start, tmp_path):
    path = sweep_file(settings={"mode": "again"}, grid={"seed": [1, 2]})
    code, told = start(path, "--jobs", "2")
    assert code == 0 and calls(tmp_path) == {"run_seed1": 3, "run_seed2": 3} and "nothing to compare" in told
    code, told = start(path)
    assert (
        code == 0 and calls(tmp_path) == {"run_seed1": 3, "run_seed2": 3} and "2 of them done before" in told
    )


def test_a_run_that_fails_leaves_the_others_and_is_tried_again(sweep_file, start, tmp_path):
    path = sweep_file(grid={"mode": ["fails", "fine"]})
    code, told = start(path)
    assert code == 1 and "1 of 2 runs failed: mode_fails" in told and "exit code 3" in told
    assert "it does not work" in (tmp_path / "out" / "logs" / "mode_fails.log").read_text()
    assert start(path)[0] == 1 and calls(tmp_path) == {"mode_fails": 2, "mode_fine": 1}


def test_a_dry_run_says_the_commands_and_starts_none(sweep_file, start, tmp_path):
    code, told = start(sweep_file(grid={"seed": [1, 2]}), "--dry_run")
    assert code == 0 and told.count("stand_in.py --config") == 2 and calls(tmp_path) == {}


def test_a_sweep_that_was_changed_under_its_runs_is_refused(sweep_file, start, tmp_path):
    start(sweep_file(settings={"a": 1}))
    with pytest.raises(Refusal, match="was begun with other settings"):
        start(sweep_file(settings={"a": 2}))

    (tmp_path / "out" / "runs" / "run" / "calls.txt").unlink()
    (tmp_path / "out" / "runs" / "run").rmdir()  # whose state says that it is done
    assert start(sweep_file(settings={"a": 1}))[0] == 0 and calls(tmp_path) == {"run": 1}


def test_a_run_may_get_further_tests_but_no_other_begin(tmp_path):
    first, second, folder = [["train.py", "--config", "a"]], [["test.py", "--config", "b"]], tmp_path / "run"
    folder.mkdir()
    RunState(tmp_path, plan.SweepRun("run", "run", folder, first)).write(done=1)
    more = RunState(tmp_path, plan.SweepRun("run", "run", folder, [*first, *second]))
    assert more.read() == {"commands": [*first, *second], "done": 1} and not more.is_done()
    with pytest.raises(Refusal, match="was begun with other commands"):
        RunState(tmp_path, plan.SweepRun("run", "run", folder, second)).read()


def test_a_signal_is_handed_on_and_the_same_command_goes_on(sweep_file, start, tmp_path):
    path = sweep_file(settings={"mode": "slow"}, grid={"seed": [1, 2]})
    process = subprocess.Popen(
        [sys.executable, "-m", "studies.sweep", str(path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    ready = tmp_path / "out" / "runs" / "run_seed1" / "ready"
    for _ in range(600):
        if ready.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == TRY_AGAIN
    assert calls(tmp_path) == {"run_seed1": 1}  # the second was not begun
    assert start(path)[0] == 0 and calls(tmp_path) == {"run_seed1": 2, "run_seed2": 1}


def test_gpus_are_shared_out_over_what_runs_at_once(sweep_file, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "studies.sweep.local.work_off",
        lambda state, process, environment, processes: seen.append(environment) or 0,
    )
    path = sweep_file(grid={"seed": [1, 2, 3]}, environment={"WORDS": 5})
    command.main([str(path), "--gpus", "4", "6", "--jobs", "1"])
    assert {one["CUDA_VISIBLE_DEVICES"] for one in seen} == {"4"} and seen[0]["WORDS"] == "5"
    seen.clear()
    command.main([str(path), "--gpus", "4", "6"])
    assert {one["CUDA_VISIBLE_DEVICES"] for one in seen} <= {"4", "6"} and len(seen) == 3


def test_each_process_of_a_run_has_a_gpu_of_its_own(sweep_file, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "studies.sweep.local.work_off",
        lambda state, process, environment, processes: seen.append(environment) or 0,
    )
    path = sweep_file(grid={"seed": [1, 2, 3]}, processes=2)
    command.main([str(path), "--executor", "torchrun", "--gpus", "4", "5", "6", "7"])
    assert {one["CUDA_VISIBLE_DEVICES"] for one in seen} <= {"4,5", "6,7"} and len(seen) == 3
    with pytest.raises(ValueError, match=r"--gpus 4 5 6: expected a multiple of the file's processes \(2\)"):
        command.main([str(path), "--executor", "torchrun", "--gpus", "4", "5", "6"])


def test_what_is_asked_to_stop_before_it_begins_does_not_begin(tmp_path):
    process = Process()
    process.stop(signal.SIGTERM)
    assert process(["-c", "raise SystemExit(3)"], tmp_path / "log", dict(os.environ)) == TRY_AGAIN
    assert not (tmp_path / "log").exists()


def test_a_command_ignores_the_notice_that_is_for_the_sweep(tmp_path):
    process, log = Process(), tmp_path / "log"
    code = "import os, signal, sys; os.kill(os.getpid(), signal.SIGUSR2); sys.exit(4)"
    assert process(["-c", code], log, dict(os.environ)) == 4


def test_torchruns_report_of_75_is_read_as_such(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "c.yaml").write_text("a: 1\n")
    run = plan.SweepRun("run", "run", folder, [["train.py", "--config", str(tmp_path / "c.yaml")]])
    state, started = RunState(tmp_path, run), []

    def report(words, log, environment):
        started.append(words)
        log.write_text("  exitcode  : 75 (pid: 7)\n")
        return 1

    assert work_off(state, report, {}, processes=2) == TRY_AGAIN
    assert started[0][:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert work_off(state, report, {}) == 1  # without torchrun it says nothing


def test_the_report_compares_every_arm_with_the_baseline(sweep_file, start, monkeypatch, tmp_path):
    compared = []

    class Ended:
        returncode = 0

    monkeypatch.setattr(command.subprocess, "run", lambda words, **options: compared.append(words) or Ended())
    monkeypatch.setattr("studies.sweep.local.work_off", lambda *arguments: 0)
    keys = {"grid": {"lr": [1, 2, 3], "seed": [7, 8]}, "baseline": "lr_2", "compare": ["--margin", 1]}
    (tmp_path / "config.yaml").write_text("data_root: data\n")  # what compare.py has to know, from there too
    keys["config"] = str(tmp_path / "config.yaml")
    code, _ = start(sweep_file(test={"datasets": ["BTAD"]}, **keys))
    ((_, script, *words),) = compared
    runs = tmp_path / "out" / "runs"
    assert (
        code == 0
        and script.endswith("compare.py")
        and words[1] == f"lr_2={runs}/lr_2_seed7,{runs}/lr_2_seed8"
    )
    assert [word.partition("=")[0] for word in words[3:5]] == ["lr_1", "lr_3"]
    assert words[5:] == ["--datasets", "BTAD", "--out", str(tmp_path / "out" / "comparison"), "--data_root", "data",
                         "--margin", "1"]  # fmt: skip


def test_slurm_without_submitit_says_what_to_install(sweep_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ModuleNotFoundError, match="pip install submitit"):
        command.main([str(sweep_file()), "--executor", "slurm"])


def test_jobs_of_a_cluster_do_the_same_and_are_queued_again(sweep_file, start, tmp_path):
    pytest.importorskip("submitit", reason="submitit is an optional package")
    path = sweep_file(settings={"mode": "slow"}, slurm={"cluster": "local", "timeout_min": 2})
    ended = []
    waiting = threading.Thread(target=lambda: ended.append(start(path, "--executor", "slurm")))
    waiting.start()
    ready = tmp_path / "out" / "runs" / "run" / "ready"
    for _ in range(600):
        if ready.exists():
            break
        time.sleep(0.05)
    job = (tmp_path / "out" / "state" / "run.job").read_text().strip()
    os.kill(
        int(subprocess.run(["pgrep", "-P", job], capture_output=True, text=True).stdout.split()[0]),
        signal.SIGUSR2,
    )
    waiting.join(60)
    assert ended[0][0] == 0 and calls(tmp_path) == {"run": 2}


@pytest.mark.slow
def test_two_tiny_trainings_side_by_side_end_in_one_report(tmp_path):
    """Stopped once, and gone on with by the same command."""
    rendered = "--name DemoA --size 64 --train_good 0 --test_good 2 --test_defective 2".split()
    render = [sys.executable, "-m", "demo_world.render_sets", *rendered, "--out", str(tmp_path / "data")]
    subprocess.run(render, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    settings = {"model_name": "ViT-Tiny-8-demo", "dataset": "DemoA", "data_root": str(tmp_path / "data")}
    settings |= {"img_size": 64, "text_epoch": 1, "image_epoch": 2}
    keys = {"out": str(tmp_path / "out"), "script": "train.py", "settings": settings}
    keys |= {"grid": {"image_lr": [1e-3, 2e-3], "seed": [1]}, "compare": ["--replicates", 100]}
    keys |= {"test": {"datasets": ["DemoA"], "settings": {"img_size": 64}}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(keys))
    words = [sys.executable, "-m", "studies.sweep", str(path), "--jobs", "2"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    begun = tmp_path / "out" / "runs" / "image_lr_0.001_seed1" / "text_adapter.pth"
    for _ in range(2400):
        if begun.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == TRY_AGAIN
    assert subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "out" / "comparison" / "report.html").is_file()
    metrics = [json.loads(file.read_text()) for file in (tmp_path / "out" / "runs").glob("*/metrics.json")]
    assert [list(one["DemoA"]) for one in metrics] == [["image_adapter.pth"]] * 2


@pytest.mark.slow
def test_torchrun_starts_a_run_and_its_75_is_understood(sweep_file, start, tmp_path):
    path = sweep_file(settings={"mode": "again"})
    assert start(path, "--executor", "torchrun")[0] == 0 and calls(tmp_path) == {"run": 3}


def test_a_parameter_that_no_cluster_has_is_refused(sweep_file):
    pytest.importorskip("submitit", reason="submitit is an optional package")
    path = sweep_file(slurm={"cluster": "local", "partitions": "gpu"})
    with pytest.raises(ValueError, match="slurm: .*partitions"):
        command.main([str(path), "--executor", "slurm"])
