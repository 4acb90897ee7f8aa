"""Runs stopped inside an epoch end as if never stopped: training/epoch.py, run_folder/{progress,signals}.py."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from cross_attention_world import MODEL, write_world

import train
import train_cross_attention
import train_cross_attention_feedback
from files.tensors import load_tensors, save_tensors
from run_folder import state as run_state
from run_folder.progress import EPOCH_FILE
from run_folder.signals import STOP_SIGNALS
from training import engine, feedback

SHAPE = [
    *"--training_mode full_shot --text_batch_size 4 --image_batch_size 4 --surgery_until_layer 3".split()
]
SHAPE += [*"--text_lr 1e-2 --image_lr 1e-2".split()]
PER_EPOCH = 3  # 12 images in batches of 4
TWO_STAGES = ["--text_epoch", "1", "--image_epoch", "2"]
LOOPS = ["--num_feedback_loops", "2", "--loop1_text_epoch", "1", "--loop1_image_epoch", "1"]
LOOPS += ["--loop2_text_epoch", "1", "--loop2_image_epoch", "1"]
SCRIPTS = {
    train: (TWO_STAGES, ["text_adapter.pth", "image_adapter_1.pth", "image_adapter.pth"]),
    train_cross_attention: (
        [*TWO_STAGES, "--cross_attn_heads", "4"],
        ["text_adapter_cross_attn.pth", "image_adapter_cross_attn_1.pth", "image_adapter_cross_attn.pth"],
    ),
    train_cross_attention_feedback: (
        [*LOOPS, "--cross_attn_heads", "4"],
        [
            "loop_1_text_adapter.pth",
            "loop_1_image_adapter.pth",
            "loop_2_image_adapter.pth",
            "final_model.pth",
        ],
    ),
}
STEPS = {train: 9, train_cross_attention: 9, train_cross_attention_feedback: 12}
both_kinds = pytest.mark.parametrize("script", [train, train_cross_attention], ids=lambda one: one.__name__)
all_scripts = pytest.mark.parametrize("script", SCRIPTS, ids=lambda one: one.__name__)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("interrupted"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{script: the files of its run that was never stopped}, filled by the tests."""
    return {}


@pytest.fixture
def start(world, data_root, tmp_path, monkeypatch):
    """Function (script, name of the folder, further flags) -> folder; starts the script, or again where it stopped."""
    monkeypatch.setattr(feedback, "draw_curves", lambda path, loops: None)

    def run(script, name, *extra):
        folder = tmp_path / name
        run.folder = folder
        model = ["--model_name", MODEL, "--clip_weights", str(world), "--img_size", "32"]
        data = ["--dataset", "MVTec", "--data_root", str(data_root), "--save_path", str(folder)]
        cut = ["--text_adapt_until", "2", "--image_adapt_until", "2"]
        script.main([*model, *data, *cut, *SHAPE, *SCRIPTS[script][0], *extra])
        return folder

    return run


def at_step(monkeypatch, step, do):
    """Call `do` inside the process's n-th training step."""
    whole_step, count = engine.train_step, [0]

    def counted(*args):
        count[0] += 1
        if count[0] == step:
            do()
        return whole_step(*args)

    monkeypatch.setattr(engine, "train_step", counted)
    return count


def send(number):
    return lambda: os.kill(os.getpid(), number)


class Killed(BaseException):
    """Stands for the end of a process in the middle."""


def kill():
    raise Killed


def contents(script, folder):
    """The files of a finished run without what differs between equal runs."""
    found = {}
    for name in SCRIPTS[script][1]:
        content = load_tensors(folder / name)
        for own in ("settings", "identity"):  # the folder and the name of the run
            content.pop(own, None)
        found[name] = without_seconds(content)
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    return found | {"history.json": without_seconds(history)}


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(inner) for key, inner in value.items() if key != "seconds"}
    return [without_seconds(inner) for inner in value] if isinstance(value, list | tuple) else value


def differences(found, wanted, place=""):
    """Places where two nested contents differ, tensors to the last bit."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        if set(found) != set(wanted):
            return [f"{place}: {set(found) ^ set(wanted)}"]
        return [one for key in wanted for one in differences(found[key], wanted[key], f"{place}/{key}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [one for index, pair in pairs for one in differences(*pair, f"{place}/{index}")]
    equal = torch.equal(found, wanted) if isinstance(wanted, torch.Tensor) else found == wanted
    return [] if equal else [place]


def assert_as_never_stopped(script, folder, start, whole):
    if script not in whole:
        whole[script] = contents(script, start(script, "never_stopped"))
    assert differences(contents(script, folder), whole[script]) == []
    assert not (folder / EPOCH_FILE).exists()


def stopped(start, script, name, *extra):
    """Start a script that a signal stops; returns its folder."""
    handlers = [signal.getsignal(one) for one in STOP_SIGNALS]
    try:  # not pytest.raises: it keeps the frames, and loaders that are collected late end their workers slowly
        start(script, name, *extra)
    except SystemExit as error:
        code = error.code
    assert code == 75
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == handlers
    return start.folder


@pytest.mark.bit_equality
@all_scripts
@pytest.mark.parametrize(
    ("step", "number"), [(1, signal.SIGTERM), (5, signal.SIGINT), (6, signal.SIGUSR1)], ids=str
)
def test_a_signal_ends_a_run_with_75_and_started_again_it_ends_as_if_never_stopped(
    start, whole, monkeypatch, script, step, number
):
    with monkeypatch.context() as patched:
        at_step(patched, step, send(number))
        folder = stopped(start, script, "run")
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert f"stopped by {number.name}: {EPOCH_FILE} holds stage" in log and "exit code 75" in log
    assert load_tensors(folder / EPOCH_FILE)["so_far"]["steps"] == (step - 1) % PER_EPOCH + 1
    count = at_step(monkeypatch, None, None)
    start(script, "run")
    assert count[0] == STEPS[script] - step  # no step is made twice
    assert_as_never_stopped(script, folder, start, whole)


def unwatched(value):
    """Nested contents without what `--watch` adds."""
    if isinstance(value, dict):
        return {key: unwatched(inner) for key, inner in value.items() if key != "watch"}
    return [unwatched(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.bit_equality
def test_a_watched_run_has_the_same_weights_and_stopped_it_goes_on_as_if_never_stopped(
    start, whole, monkeypatch
):
    script = train_cross_attention
    watched = contents(script, start(script, "watched", "--watch"))
    if script not in whole:
        whole[script] = contents(script, start(script, "never_stopped"))
    assert differences(unwatched(watched), whole[script]) == []
    (loop,) = watched["history.json"]["loops"]
    for stage, attention in (("text", "text_cross_attn"), ("image", "image_cross_attn")):
        seen = loop[stage][-1]["watch"]
        assert 0.5 < seen["attention_entropy"][attention] <= 1 and seen["displacement"][attention] > 0
        assert -1 <= seen["output_cosine"][attention] <= 1
    with monkeypatch.context() as patched:
        at_step(patched, 5, send(signal.SIGTERM))
        folder = stopped(start, script, "run", "--watch")
    assert differences(contents(script, start(script, "run", "--watch")), watched) == []
    assert "displacement: image_adapter" in (folder / "train.log").read_text(encoding="utf-8")


@pytest.mark.bit_equality
@pytest.mark.slow
@all_scripts
@pytest.mark.parametrize("step", range(1, 13))
def test_a_run_stopped_at_any_step_ends_as_if_never_stopped(start, whole, monkeypatch, script, step):
    if step > STEPS[script]:
        pytest.skip("it has no such step")
    with monkeypatch.context() as patched:
        at_step(patched, step, send(signal.SIGTERM))
        stopped(start, script, "run", "--workers", str(2 * (step % 2)))
    assert_as_never_stopped(script, start(script, "run"), start, whole)


@pytest.mark.bit_equality
@both_kinds
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_workers_may_change_when_a_run_goes_on_inside_an_epoch(
    start, whole, monkeypatch, script, before, after
):
    with monkeypatch.context() as patched:
        at_step(patched, 8, send(signal.SIGTERM))
        stopped(start, script, "run", "--workers", str(before))
    folder = start(script, "run", "--workers", str(after))
    assert "goes on after 2 steps" in (folder / "train.log").read_text(encoding="utf-8")
    assert_as_never_stopped(script, folder, start, whole)


@pytest.mark.bit_equality
def test_workers_change_no_number_of_a_run_with_dropout(start, whole):
    folder = start(train_cross_attention, "workers", "--workers", "2")
    assert_as_never_stopped(train_cross_attention, folder, start, whole)


@pytest.mark.bit_equality
@all_scripts
def test_a_killed_run_goes_on_from_the_last_save_inside_the_epoch(start, whole, monkeypatch, script):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        at_step(patched, 6, kill)
        start(script, "run", "--save_every_steps", "2")
    assert load_tensors(start.folder / EPOCH_FILE)["so_far"]["steps"] == 2
    count = at_step(monkeypatch, None, None)
    folder = start(script, "run")
    assert count[0] == STEPS[script] - 5
    assert_as_never_stopped(script, folder, start, whole)


@pytest.mark.bit_equality
def test_a_run_stopped_again_and_again_ends_as_if_never_stopped(start, whole, monkeypatch):
    for _ in range(STEPS[train]):
        with monkeypatch.context() as patched:
            at_step(patched, 1, send(signal.SIGTERM))
            stopped(start, train, "run")
    assert_as_never_stopped(train, start(train, "run"), start, whole)
    (image,) = json.loads((start.folder / "history.json").read_text(encoding="utf-8"))["loops"]
    assert all(entry["seconds"] > 0 for entry in image["image"])


@pytest.mark.bit_equality
def test_what_a_kill_leaves_between_checkpoint_and_clearing_up_is_not_used(start, whole, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("run_folder.progress.EpochFile.remove", lambda self: kill())
        start(train, "run", "--save_every_steps", "1")
    assert load_tensors(start.folder / EPOCH_FILE)["stage_file"] == "text_adapter.pth"
    assert_as_never_stopped(train, start(train, "run"), start, whole)


@pytest.mark.bit_equality
def test_a_damaged_save_inside_an_epoch_costs_that_epoch_and_no_more(start, whole, monkeypatch):
    with monkeypatch.context() as patched:
        at_step(patched, 8, send(signal.SIGTERM))
        folder = stopped(start, train, "run")
    file = folder / EPOCH_FILE
    file.write_bytes(file.read_bytes()[:-100])
    assert_as_never_stopped(train, start(train, "run"), start, whole)
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert f"{EPOCH_FILE}" in log and "Going on from the last whole epoch" in log


def test_a_save_inside_an_epoch_of_a_run_with_other_flags_is_refused(start, monkeypatch):
    with monkeypatch.context() as patched:
        at_step(patched, 2, send(signal.SIGTERM))
        stopped(start, train, "run")
    with pytest.raises(
        RuntimeError, match=f"{EPOCH_FILE} belongs to a run with other settings: --seed was 111"
    ):
        start(train, "run", "--seed", "5")


@pytest.mark.bit_equality
def test_a_stage_that_has_its_epochs_does_not_go_into_an_epoch_of_a_longer_one(start, whole, monkeypatch):
    epochs = int(SCRIPTS[train][0][SCRIPTS[train][0].index("--text_epoch") + 1])
    start(train, "run", "--image_epoch", "0")
    with monkeypatch.context() as patched:
        at_step(patched, 2, send(signal.SIGTERM))
        stopped(start, train, "run", "--image_epoch", "0", "--text_epoch", str(epochs + 1))
    assert (start.folder / EPOCH_FILE).exists()
    assert_as_never_stopped(train, start(train, "run"), start, whole)


def test_flags_that_the_state_inside_an_epoch_refuses_train_nothing_before(start, monkeypatch):
    with monkeypatch.context() as patched:
        at_step(patched, PER_EPOCH + 2, send(signal.SIGTERM))  # in stage 2's first epoch
        stopped(start, train, "run")
    before = (start.folder / "text_adapter.pth").read_bytes()
    with pytest.raises(
        RuntimeError, match=f"{EPOCH_FILE} belongs to a run with other settings: --text_epoch"
    ):
        start(train, "run", "--text_epoch", "7")
    assert (start.folder / "text_adapter.pth").read_bytes() == before


@pytest.mark.bit_equality
def test_a_damaged_last_loop_is_made_again(start, whole):
    script = train_cross_attention_feedback
    folder = start(script, "run")
    for name in ("loop_2_final.pth", "final_model.pth"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    assert_as_never_stopped(script, start(script, "run"), start, whole)


def test_minutes_are_counted_from_the_epochs_begin_or_the_last_save(start, monkeypatch):
    saves, now, save = [], [0.0], engine.EpochKeeper.after_step
    monkeypatch.setattr("training.epoch.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "run_folder.progress.EpochFile.save", lambda self, state, so_far: saves.append(so_far["steps"])
    )

    def later(self, state, sums, steps):
        now[0] += 40  # seconds
        save(self, state, sums, steps)

    monkeypatch.setattr(engine.EpochKeeper, "after_step", later)
    start(train, "run", "--save_every_minutes", "1")
    assert saves == [2, 2, 2]  # 80 seconds after each epoch's begin
    saves.clear()
    start(train, "default")
    start(train, "never", "--save_every_minutes", "0")
    assert saves == []
    with pytest.raises(ValueError, match="--save_every_minutes -1.0: expected 0 .never. or more"):
        start(train, "wrong", "--save_every_minutes", "-1")
    with pytest.raises(ValueError, match="--save_every_steps -1: expected 0 .never. or more"):
        start(train, "wrong", "--save_every_steps", "-1")


def test_a_signal_while_a_checkpoint_is_written_ends_the_run_behind_it(start, whole, monkeypatch):
    write = run_state.save_checkpoint

    def signalled(path, content):
        os.kill(os.getpid(), signal.SIGTERM)
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(run_state, "save_checkpoint", signalled)
        folder = stopped(start, train, "run")
    assert (folder / "text_adapter.pth").is_file() and not (folder / EPOCH_FILE).exists()
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert "text_adapter.pth holds stage text up to epoch 1" in log
    assert_as_never_stopped(train, start(train, "run"), start, whole)


@pytest.mark.parametrize("place", ["create_backbone", "fixed_anchors", "write_history"])
def test_a_signal_outside_of_a_stage_ends_the_run_with_75_at_once(start, whole, monkeypatch, place):
    real = getattr(train, place)

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGUSR1)
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(train, place, signalled)
        folder = stopped(start, train, "run")
    assert "stopped by SIGUSR1: files are whole" in (folder / "train.log").read_text(encoding="utf-8")
    assert_as_never_stopped(train, start(train, "run"), start, whole)


def test_stages_of_aa_clips_functions_do_not_listen_to_signals(adapted, batch, lines, tmp_path, monkeypatch):
    handlers, seen = [signal.getsignal(one) for one in STOP_SIGNALS], []
    at_step(monkeypatch, 1, lambda: seen.extend(signal.getsignal(one) for one in STOP_SIGNALS))
    optimizer = torch.optim.Adam(adapted.image_adapter.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10])
    anchors = {name: torch.eye(16)[:, :2] for name in batch["class_name"]}
    train.train_image_adapter(
        adapted, anchors, [batch], optimizer, scheduler, "cpu", 0, str(tmp_path), 1, 32, lines[0]
    )
    assert seen == handlers and not (tmp_path / EPOCH_FILE).exists()
    assert Path(tmp_path / "image_adapter.pth").is_file()


def test_a_save_that_would_not_be_finite_is_refused_and_the_file_of_before_stays(tmp_path):
    path, good = tmp_path / "a.pth", torch.ones(3)
    save_tensors(path, {"image_adapter": {"weight": good}})
    with pytest.raises(FloatingPointError, match=r"a.pth is not written.*image_adapter/weight \(1 of 3\)"):
        save_tensors(path, {"image_adapter": {"weight": torch.tensor([1.0, float("nan"), 2.0])}})
    assert torch.equal(load_tensors(path)["image_adapter"]["weight"], good)
