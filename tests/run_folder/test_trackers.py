"""Trackers get what history.json and metrics.json hold: stand-ins write down every call; a failure is told once."""

import importlib.machinery
import json
import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from run_folder import flags
from run_folder.settings import BASELINE_GROUPS
from run_folder.trackers import PICTURES, SILENT, Tracker, grid, step_of, tracker_of

ENTRY = {
    "epoch": 1,
    "loss": 3.0,
    "terms": {"segmentation": 2.0, "image level": 1.0},
    "lr": 0.5,
    "seconds": 4.0,
}
ENTRY |= {"gradients": {"text_adapter": 0.25}, "gradient_norm": 0.25, "steps_left_out": 1}
ENTRY["watch"] = {"displacement": {"text_adapter": 0.5}, "gate": {"text_cross_attn": [0.1, 0.2]}}
WANTED = {"text/loss": 3.0, "text/loss/segmentation": 2.0, "text/loss/image level": 1.0, "text/lr": 0.5}
WANTED |= {"text/seconds": 4.0, "text/gradient/text_adapter": 0.25, "text/gradient_norm": 0.25}
WANTED |= {"text/steps_left_out": 1, "text/displacement/text_adapter": 0.5}
METRICS = {"test/MVTec/pixel_ap": 0.4}


class Recorder(types.ModuleType):
    """A module or object whose every call is written down as (name, words, named words)."""

    def __init__(self, name, calls, **own):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self._calls = calls
        vars(self).update(own)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*words, **named):
            self._calls.append((name, words, named))
            random.random(), torch.rand(1)  # as a library may that makes up a name
            return self

        return called


@pytest.fixture
def calls(monkeypatch):
    """All calls of all four stand-ins."""
    made = []
    for name in ("trackio", "wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, Recorder(name, made))
    monkeypatch.setitem(sys.modules, "mlflow", Recorder("mlflow", made, search_runs=lambda **named: []))
    return made


@pytest.fixture
def tracker(calls, lines, tmp_path):
    """Function (name) -> a tracker with a run's settings."""

    def made(name):
        settings = flags.parse(
            "", BASELINE_GROUPS, ["--tracker", name, "--save_path", str(tmp_path / "visa")]
        )
        return tracker_of(settings, lines[0])

    return made


def hand_on(tracker, folder):
    """What a training and a test hand on."""
    Image.fromarray(np.full((4, 6, 3), 7, np.uint8)).save(folder / "a.png")
    tracker.begin("0123456789abcdef")
    tracker.begin("0123456789abcdef")
    tracker.epoch("text", ENTRY, 2)
    tracker.metrics("MVTec", "image_adapter_15.pth", {"pixel_ap": 0.4, "image_ap": None})
    tracker.pictures("MVTec", "bottle", "image_adapter.pth", folder)
    tracker.close()


def of(calls, name):
    return [(words, named) for called, words, named in calls if called == name]


def test_trackio_gets_epochs_metrics_and_pictures_and_goes_on_with_the_run(tracker, calls, tmp_path):
    hand_on(tracker("trackio"), tmp_path)
    ((_, begun),) = of(calls, "init")
    assert (begun["project"], begun["name"], begun["resume"]) == ("aa-clip", "visa-012345", "allow")
    assert begun["config"]["tracker"] == "trackio" and begun["config"]["milestones"] == "[16000.0, 32000.0]"
    epoch, test, picture = of(calls, "log")
    assert epoch == ((WANTED,), {"step": 2}) and test == ((METRICS,), {"step": 15})
    assert list(picture[0][0]) == ["heatmaps/MVTec/bottle"] and of(calls, "Image")[0][0][0].shape == (4, 6, 3)
    assert calls[-1][0] == "finish"


def test_tensorboard_gets_the_same_in_the_runs_folder(tracker, calls, tmp_path):
    hand_on(tracker("tensorboard"), tmp_path)
    assert of(calls, "SummaryWriter") == [((tmp_path / "visa" / "tensorboard",), {})]
    scalars = {words[0]: words[1:] for words, _ in of(calls, "add_scalar")}
    assert scalars == {key: (value, 2) for key, value in WANTED.items()} | {"test/MVTec/pixel_ap": (0.4, 15)}
    ((name, pixels, step), named), *_ = of(calls, "add_image")
    assert (name, pixels.shape, step, named) == (
        "heatmaps/MVTec/bottle",
        (4, 6, 3),
        0,
        {"dataformats": "HWC"},
    )
    assert '"dataset": "VisA"' in of(calls, "add_text")[0][0][1] and calls[-1][0] == "close"


def test_wandb_gets_the_same_with_the_runs_own_id(tracker, calls, tmp_path):
    hand_on(tracker("wandb"), tmp_path)
    ((_, begun),) = of(calls, "init")
    assert (begun["id"], begun["resume"], begun["dir"]) == (
        "0123456789abcdef",
        "allow",
        str(tmp_path / "visa"),
    )
    logged = [words[0] for words, _ in of(calls, "log")]
    assert (
        logged[:2] == [WANTED | {"epoch": 2}, METRICS | {"epoch": 15}]
        and "heatmaps/MVTec/bottle" in logged[2]
    )
    assert calls[-1][0] == "finish"


def test_mlflow_gets_the_same_and_finds_a_run_that_goes_on(tracker, calls, tmp_path, monkeypatch):
    hand_on(tracker("mlflow"), tmp_path)
    assert of(calls, "start_run") == [((), {"run_name": "visa-012345", "tags": {"run": "0123456789abcdef"}})]
    assert of(calls, "log_metrics") == [((WANTED,), {"step": 2}), ((METRICS,), {"step": 15})]
    assert of(calls, "log_image")[0][1] == {"artifact_file": "heatmaps/MVTec/bottle_0.png"}
    assert calls[-1][0] == "end_run"
    before = [types.SimpleNamespace(info=types.SimpleNamespace(run_id="theirs"))]
    monkeypatch.setattr(sys.modules["mlflow"], "search_runs", lambda **named: before)
    tracker("mlflow").begin("0123456789abcdef")
    assert of(calls, "start_run")[-1] == ((), {"run_id": "theirs"})


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_ends_nothing(
    tracker, calls, lines, tmp_path, monkeypatch, broken
):
    def fail(*words, **named):
        raise ConnectionError("no server")

    monkeypatch.setattr(sys.modules["trackio"], broken, fail, raising=False)
    one = tracker("trackio")
    hand_on(one, tmp_path)
    hand_on(one, tmp_path)
    (told,) = lines[1]
    assert "the tracker failed (ConnectionError: no server)" in told and "history.json" in told


def test_pictures_that_are_not_there_are_a_failure_like_any_other(tracker, lines, tmp_path):
    one = tracker("trackio")
    one.begin("1")
    one.pictures("MVTec", "bottle", "image_adapter.pth", tmp_path / "none")
    assert len(lines[1]) == 1


def test_no_random_number_of_a_run_depends_on_its_tracker(tracker, tmp_path):
    def draw():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    draw()
    wanted = random.random(), np.random.rand(), float(torch.rand(1))
    draw()
    hand_on(tracker("trackio"), tmp_path)
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == wanted


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_done(monkeypatch, lines):
    settings = flags.parse("", BASELINE_GROUPS, ["--tracker", "wandb"])
    monkeypatch.setattr("run_folder.trackers.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="--tracker wandb needs wandb: pip install wandb"):
        tracker_of(settings, lines[0])


def test_without_a_tracker_nothing_happens(calls, tmp_path, lines):
    assert tracker_of(flags.parse("", BASELINE_GROUPS, []), lines[0]) is SILENT
    hand_on(Tracker(), tmp_path)
    assert calls == [] and lines[1] == []


def test_the_step_of_a_checkpoint_is_the_number_in_its_name():
    steps = {"image_adapter_15.pth": 15, "image_adapter_cross_attn_2.pth": 2, "loop_3_final.pth": 3}
    steps |= {"image_adapter.pth": 0, "raw_clip": 0, "image_adapter_4.pth without cross-attention": 4}
    assert {name: step_of(name) for name in steps} == steps


def test_few_shot_controls_and_raw_clip_never_share_a_runs_curve(tracker, calls):
    one = tracker("trackio")
    one.begin("0123456789abcdef")
    names = (
        "image_adapter_4.pth",
        "image_adapter_4.pth with 2 normal references",
        "image_adapter.pth",
        "raw_clip",
    )
    for name in names:
        one.metrics("MVTec", name, {"pixel_ap": 0.4})
    told = [next(iter(words[0])) for words, _ in of(calls, "log")]
    kinds = ("test", "test with 2 normal references", "last", "raw_clip")
    assert told == [f"{kind}/MVTec/pixel_ap" for kind in kinds]


def test_a_grid_holds_the_first_pictures_below_one_another(tmp_path):
    for number in range(PICTURES + 2):
        Image.fromarray(np.full((2, 3, 3), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    assert grid(tmp_path).shape == (2 * PICTURES, 3, 3) and grid(tmp_path)[-1, 0, 0] == PICTURES - 1


def test_tensorboards_own_files_hold_what_was_handed_on(tmp_path, lines):
    pytest.importorskip("tensorboard", reason="tensorboard is an optional package")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = flags.parse(
        "", BASELINE_GROUPS, ["--tracker", "tensorboard", "--save_path", str(tmp_path / "visa")]
    )
    hand_on(tracker_of(settings, lines[0]), tmp_path)
    found = EventAccumulator(str(tmp_path / "visa" / "tensorboard"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("text/loss/segmentation")] == [(2, 2.0)]
    assert found.Images("heatmaps/MVTec/bottle")[0].width == 6 and lines[1] == []


def test_trackios_own_store_holds_what_was_handed_on(tmp_path, lines, monkeypatch):
    pytest.importorskip("trackio", reason="trackio is an optional package")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    words = "import sys; from tests.run_folder.test_trackers import real_trackio; real_trackio(sys.argv[1])"
    import subprocess

    done = subprocess.run([sys.executable, "-c", words, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    assert json.loads(done.stdout.splitlines()[-1]) == [2, 2.0, []]


def real_trackio(folder):
    """In a process of its own, whose trackio has found its store: hand on, read back."""
    import logging

    told, logger = [], logging.getLogger("trackio test")
    logger.warning = lambda words: told.append(words)
    argv = ["--tracker", "trackio", "--save_path", str(Path(folder) / "visa")]
    hand_on(tracker_of(flags.parse("", BASELINE_GROUPS, argv), logger), Path(folder))
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("aa-clip", "visa-012345")
    row = next(one for one in rows if "text/loss/segmentation" in one)
    print(json.dumps([row["step"], row["text/loss/segmentation"], told]))
