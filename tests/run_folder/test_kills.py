"""Processes killed by SIGKILL at planned and random moments leave readable files and go on bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from cross_attention_world import MODEL, write_world

import train
import train_cross_attention
from dataset.constants import CLASS_NAMES
from files import atomic
from files.tensors import load_tensors
from forward_utils import class_tokens
from run_folder.progress import EPOCH_FILE
from training import engine

pytestmark = [pytest.mark.slow, pytest.mark.bit_equality]
ROOT = Path(train.__file__).resolve().parent
SCRIPTS = {
    train: ("text_adapter", "image_adapter"),
    train_cross_attention: ("text_adapter_cross_attn", "image_adapter_cross_attn"),
}
RANDOM_KILLS = 40  # of each script
MOMENTS = ("fsync", "replace", "unlink")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    for name in CLASS_NAMES["MVTec"]:
        class_tokens("MVTec", name)  # once here, not in every child
    return write_world(tmp_path_factory.mktemp("killed"))


@pytest.fixture
def command(world, data_root, tmp_path):
    """Function (script, name of the folder) -> command line; saves inside an epoch come after every step."""

    def of(script, name):
        words = (
            f"--model_name {MODEL} --clip_weights {world} --img_size 32 --dataset MVTec --data_root {data_root} "
            f"--save_path {tmp_path / name} --text_adapt_until 2 --image_adapt_until 2 --surgery_until_layer 3 "
            "--training_mode full_shot --text_batch_size 4 --image_batch_size 4 --text_epoch 1 --image_epoch 2 "
            "--text_lr 1e-2 --image_lr 1e-2 --save_every_steps 1"
        ).split()
        return words if script is train else [*words, "--cross_attn_heads", "4"]

    return of


def in_a_child(work):
    """Exit code of `work` in a process of its own, negative for a signal."""
    child = os.fork()
    if not child:
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(count, script, words):
    """Run a script that kills itself right before the n-th of the moments that matter; how many it passes with None."""
    passed = [0]

    def counted(real):
        def call(*args, **options):
            passed[0] += 1
            if passed[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    def work():
        for name in MOMENTS:
            setattr(atomic.os, name, counted(getattr(os, name)))
        engine.train_step = counted(engine.train_step)
        script.main(words)
        if count is None:
            os.write(pipe[1], str(passed[0]).encode())

    pipe = os.pipe()
    code = in_a_child(work)
    os.close(pipe[1])
    with os.fdopen(pipe[0]) as file:
        return code, file.read()


def tensors_of(script, folder):
    found = {}
    for name in SCRIPTS[script]:
        content = load_tensors(folder / f"{name}.pth")
        for key, part in content.items():
            if key in ("text_adapter", "image_adapter", "text_cross_attn", "image_cross_attn"):
                found |= {f"{key}.{tensor}": value for tensor, value in part.items()}
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda one: one.__name__)
def test_a_run_killed_anywhere_leaves_whole_files_and_ends_as_if_never_killed(command, tmp_path, script):
    code, moments = killed_at(None, script, command(script, "whole"))
    assert code == 0
    moments, wanted = int(moments), tensors_of(script, tmp_path / "whole")
    choose, failed = random.Random(14), 0
    points = [*range(1, moments + 1), *(choose.randint(1, moments) for _ in range(RANDOM_KILLS))]
    for number, point in enumerate(points):
        folder, words = tmp_path / f"killed_{number}", command(script, f"killed_{number}")
        code, _ = killed_at(point, script, words)
        assert code == -signal.SIGKILL
        if number >= moments:  # a second kill, on the way back
            killed_at(choose.randint(1, moments), script, words)
        try:
            for file in folder.glob("*.pth"):
                load_tensors(file)
            assert in_a_child(lambda words=words: script.main(words)) == 0
            found = tensors_of(script, folder)
            assert all(torch.equal(found[name], value) for name, value in wanted.items())
            assert not (folder / EPOCH_FILE).exists() and not list(folder.glob(".*.tmp"))
        except (AssertionError, RuntimeError, OSError) as error:
            failed += 1
            print(f"{script.__name__}, killed at {point}: {error}")
    assert not failed


def test_a_signal_to_the_whole_group_ends_a_process_with_its_workers_in_time(data_root, tmp_path):
    """As a cluster sends it: to the command and to its data loader's processes alike."""
    words = (
        f"--model_name ViT-Tiny-8-demo --dataset MVTec --data_root {data_root} --save_path {tmp_path / 'run'} "
        "--training_mode full_shot --text_epoch 1 --image_epoch 500 --workers 2 --device cpu"
    ).split()
    log = tmp_path / "run" / "train.log"
    command = subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not (log.is_file() and "training image epoch 1" in log.read_text(encoding="utf-8")):
            assert command.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        begin = time.monotonic()
        os.killpg(command.pid, signal.SIGTERM)
        assert command.wait(60) == 75 and time.monotonic() - begin < 30
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
    assert "stopped by SIGTERM" in log.read_text(encoding="utf-8")
    with pytest.raises(ProcessLookupError):  # no worker is left
        time.sleep(6)
        os.killpg(command.pid, 0)
