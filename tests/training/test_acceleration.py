"""Several processes and float16: training/acceleration.py, run_folder/processes.py."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from cross_attention_world import write_world
from flag_words import words

import test as test_script
import train_cross_attention
import train_cross_attention_feedback
from files import atomic, command
from files.command import Refusal
from files.tensors import load_tensors
from run_folder import processes
from run_folder.processes import Processes

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STOP_AT = 6  # of 4 steps of stage 1 and 8 of stage 2: in the latter's first epoch


def command_lines(weights, folder, data_root):
    """The command lines of a training, and of a test of it, in batches that two processes cannot share evenly."""
    common = words(
        model_name="ViT-TestCross-8",
        clip_weights=weights,
        img_size=32,
        data_root=data_root,
        text_adapt_until=2,
        image_adapt_until=2,
        cross_attn_heads=4,
        dataset="MVTec",
        device="cpu",
    )
    training = words(
        training_mode="full_shot",
        surgery_until_layer=3,
        text_batch_size=5,
        image_batch_size=3,
        text_epoch=1,
        image_epoch=2,
        text_lr=1e-2,
        image_lr=1e-2,
        cross_attn_dropout=0.0,
        self_reference=0.3,
        text_context="train_mean",
        log_every=1,
    )
    run = ["--save_path", str(folder)]
    testing = words(model_name="ViT-TestCross-8", clip_weights=weights, dataset="MVTec", data_root=data_root)
    testing += ["--device", "cpu", "--batch_size", "2", "--errors", "1", "--visualize", *run]
    return [*common, *training, *run], testing


def environment(rank, count, port):
    """What torchrun tells a process."""
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
    return os.environ | {name: str(value) for name, value in (shared | own).items()}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(count, argv, folder):
    """Start a command in `count` processes, as torchrun would."""
    port, running = free_port(), []
    for rank in range(count):
        with open(folder / f"process_{rank}.txt", "w") as log:
            how = {"env": environment(rank, count, port), "stdout": log, "stderr": log}
            running.append(subprocess.Popen([sys.executable, *map(str, argv)], cwd=ROOT, **how))
    return running


def start(count, argv, folder):
    """Start a command in `count` processes and wait for their exit codes."""
    return [one.wait(timeout=300) for one in started(count, argv, folder)]


def wait_for(path, running):
    """Until a running command has written a file."""
    while not path.exists():
        assert running.poll() is None, f"it ended before it wrote {path}"
        time.sleep(0.05)


def words_of(folder):
    return "\n".join(path.read_text() for path in sorted(folder.glob("process_*.txt")))[-4000:]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, write_world(folder)


@pytest.fixture(scope="module")
def pair(world, data_root, tmp_path_factory):
    """What two processes found that worked together (tests/training/two_processes.py), and the folder of their runs."""
    folder, (clip, weights) = tmp_path_factory.mktemp("pair"), world
    train, test = command_lines(weights, folder / "run", data_root)
    stopped, _ = command_lines(weights, folder / "stopped", data_root)
    lines = {"train": train, "test": test, "stopped": stopped, "stop_at": STOP_AT}
    (folder / "lines.json").write_text(json.dumps(lines), encoding="utf-8")
    findings = folder / "found.json"
    codes = start(2, [HERE / "two_processes.py", findings, clip, folder / "lines.json"], folder)
    assert codes == [0, 0], words_of(folder)
    return json.loads(findings.read_text(encoding="utf-8")), folder


@pytest.fixture(scope="module")
def alone(world, data_root, tmp_path_factory):
    """The folder of the same training by one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_cross_attention.main(command_lines(world[1], folder / "run", data_root)[0])
    return folder / "run"


def history(folder):
    loops = json.loads((folder / "history.json").read_text(encoding="utf-8"))["loops"]
    return [
        value
        for loop in loops
        for stage in ("text", "image")
        for entry in loop[stage]
        for value in (entry["loss"], entry["lr"], *entry["terms"].values())
    ]


def test_two_processes_compute_the_losses_and_gradients_of_one_for_batches_of_one_to_nine_images(pair):
    losses = pair[0]["losses"]
    assert len(losses) == 36 and {case: one for case, one in losses.items() if not one < 1e-5} == {}


def test_two_processes_give_the_metrics_of_one_to_the_last_bit_for_one_to_nine_images(pair):
    assert pair[0]["metrics"] == []


def test_a_run_of_two_processes_has_the_losses_of_one(pair, alone):
    assert history(pair[1] / "run") == pytest.approx(history(alone), rel=1e-5)


def test_processes_that_find_different_things_in_a_folder_refuse_to_go_on(pair):
    first, second = pair[0]["refused"]
    assert first == second and "process 0: 0, process 1: 1" in first and "all machines share" in first


def test_process_0_alone_writes_and_logs(pair, alone):
    def names(folder):
        return {path.name for path in folder.iterdir()}

    tested = {"metrics.json", "metrics.csv", ".metrics.lock", "test.log", "scores", "visualization"}
    assert names(alone) | tested <= names(pair[1] / "run")
    assert not any(name.endswith(".tmp") for name in names(pair[1] / "run"))
    log = (pair[1] / "run" / "train.log").read_text(encoding="utf-8")
    assert log.count("training text epoch 0:") == 1 and "processes 2" in log


@pytest.mark.bit_equality
def test_a_test_by_two_processes_writes_the_metrics_of_one(pair, world, data_root):
    folder = pair[1] / "run"
    (together,) = pair[0]["test"]
    (found,) = test_script.main(command_lines(world[1], folder, data_root)[1])
    assert json.loads(json.dumps(found)) == together and found["mean"]["images"] == 12


def test_a_signal_to_one_process_stops_both_at_the_same_step_and_one_process_goes_on(
    pair, alone, world, data_root
):
    assert pair[0]["stopped"] == [[75, STOP_AT], [75, STOP_AT]]
    folder = pair[1] / "stopped"
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert "stopped by SIGTERM: epoch_in_progress.pth holds stage image" in log
    train_cross_attention.main(command_lines(world[1], folder, data_root)[0])
    assert "goes on after" in (folder / "train.log").read_text(encoding="utf-8")
    assert history(folder) == pytest.approx(history(alone), rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_as_equal_as_can_be_and_make_up_the_whole(count):
    for total in range(1, 10):
        group = [Processes(rank, count) for rank in range(count)]
        parts = [list(range(total))[one.own(total)] for one in group]
        assert sum(parts, []) == list(range(total))
        assert [len(part) for part in parts] == group[0].sizes(total)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("variables", "device", "message"),
    [
        ({"WORLD_SIZE": "two"}, "cpu", "WORLD_SIZE is 'two': expected a number of processes"),
        ({"WORLD_SIZE": "2"}, "cpu", "RANK and LOCAL_RANK are not set: start the command with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "cuda:1", "each takes its own card"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "mps", "--device mps with 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, "cuda", "process 1 of this machine has no GPU"),
    ],
)
def test_what_does_not_fit_several_processes_is_refused(monkeypatch, variables, device, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(Refusal, match=message), processes.joined(device):
        pass
    assert processes.current() is processes.ALONE


def test_several_processes_without_accelerate_are_told_what_to_install(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ModuleNotFoundError, match="pip install -r requirements-distributed.txt"):
        with processes.joined("cpu"):
            pass


def test_a_command_that_is_one_process_s_work_refuses_several(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["compare.py"])
    with pytest.raises(SystemExit) as end:
        command.run_main(lambda: pytest.fail("it was started"))
    assert end.value.code == 2 and "compare.py is one process's work" in capsys.readouterr().err
    assert command.run_main(lambda: None, several=True) is None
    with pytest.raises(Refusal, match="--check_shapes is one process's work"):
        train_cross_attention.main(["--check_shapes"])


def test_a_process_whose_partner_has_ended_says_so(monkeypatch):
    def closed(*_):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("torch.distributed.all_reduce", closed)
    with pytest.raises(Refusal, match="another process of this run has ended.*closed by peer"):
        Processes(0, 2).agree(1)


def test_a_process_that_writes_nothing_leaves_every_file_as_it_is(tmp_path):
    path, unfinished = tmp_path / "a.txt", tmp_path / ".a.txt.abcdefgh.tmp"
    path.write_text("before")
    unfinished.write_text("half")
    with atomic.writing_nothing():
        atomic.write_text(path, "after")
        atomic.keep(path, tmp_path / "kept")
        atomic.copy_file(path, tmp_path / "copied")
        atomic.remove(path)
        assert atomic.sweep(tmp_path) == []
    assert path.read_text() == "before" and {one.name for one in tmp_path.iterdir()} == {
        path.name,
        unfinished.name,
    }
    atomic.write_text(path, "after")
    assert path.read_text() == "after"


@pytest.mark.slow
@pytest.mark.bit_equality
def test_two_processes_that_a_signal_stopped_end_as_two_that_were_never_stopped_with_dropout(
    world, data_root, tmp_path
):
    folders = {}
    for name in ("whole", "stopped"):
        folders[name] = tmp_path / name
        train = [*command_lines(world[1], folders[name], data_root)[0], "--cross_attn_dropout", "0.3"]
        line = [HERE / "with_world.py", world[0], "train_cross_attention.py", *train]
        if name == "stopped":
            running = started(2, [*line, "--save_every_steps", "1"], tmp_path)
            wait_for(folders[name] / "epoch_in_progress.pth", running[0])
            running[1].send_signal(signal.SIGTERM)
            assert [one.wait(timeout=120) for one in running] == [75, 75], words_of(tmp_path)
        assert start(2, line, tmp_path) == [0, 0], words_of(tmp_path)
    whole, found = (load_tensors(one / "image_adapter_cross_attn.pth") for one in folders.values())
    for key in ("image_adapter", "image_cross_attn", "self_reference"):
        for name, value in whole[key].items():
            assert torch.equal(found[key][name], value), name


@pytest.mark.slow
def test_a_killed_process_ends_the_others_within_a_minute_and_the_same_command_goes_on(
    world, data_root, tmp_path
):
    folder = tmp_path / "run"
    train = command_lines(world[1], folder, data_root)[0]
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    line += [HERE / "with_world.py", world[0], "train_cross_attention.py", *train, "--image_epoch"]
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    how = {"cwd": ROOT, "env": alone | {"OMP_NUM_THREADS": "1"}}
    with open(tmp_path / "process_0.txt", "w") as log:
        running = subprocess.Popen([*map(str, line), "1000"], **how, stdout=log, stderr=log)
        wait_for(folder / "image_adapter_cross_attn_2.pth", running)
        (second,) = [
            one for one in psutil.Process(running.pid).children() if one.environ().get("RANK") == "1"
        ]
        second.kill()
        assert running.wait(timeout=60) != 0
    done = load_tensors(folder / "image_adapter_cross_attn.pth")["epoch"]
    ended = subprocess.run([*map(str, line), str(done + 1)], **how, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert f"{done} epochs done, continuing from there" in ended.stdout
    assert load_tensors(folder / "image_adapter_cross_attn.pth")["epoch"] == done + 1


@pytest.mark.slow
def test_a_folder_that_another_process_works_in_is_refused_by_all(world, data_root, tmp_path):
    folder = tmp_path / "run"
    train = command_lines(world[1], folder, data_root)[0]
    lock = processes.lock_run(folder)
    try:
        line = [HERE / "with_world.py", world[0], "train_cross_attention.py", *train]
        assert start(2, line, tmp_path) == [2, 2]
    finally:
        lock.release()
    assert words_of(tmp_path).count("another process is working in") == 2


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_feedback_with_an_evaluation_after_every_loop_has_the_numbers_of_one_process(
    count, world, data_root, tmp_path
):
    found = []
    for name, processes_of_run in (("alone", 1), ("together", count)):
        folder = tmp_path / name
        line = command_lines(world[1], folder, data_root)[0]
        line += words(num_feedback_loops=2, loop1_image_epoch=1, loop2_image_epoch=1, eval_every_loop="MVTec")
        line += words(context_scope="class", text_context="image", loop2_text_epoch=1)
        if processes_of_run == 1:
            train_cross_attention_feedback.main(line)
        else:
            argv = [HERE / "with_world.py", world[0], "train_cross_attention_feedback.py", *line]
            assert start(count, argv, tmp_path) == [0] * count, words_of(tmp_path)
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["MVTec"]
        means = [metrics[f"loop_{loop}_final.pth"]["mean"]["pixel_ap"] for loop in (1, 2)]
        found.append((history(folder), means, {path.name for path in folder.iterdir()}))
    alone, together = found
    assert together[0] == pytest.approx(alone[0], rel=1e-4)
    assert together[1] == pytest.approx(alone[1], abs=1e-3) and together[2] == alone[2]
