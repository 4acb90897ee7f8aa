"""`python -m run_folder`: what is said of run folders, what two differ in, and what may be deleted."""

import fcntl
import json
import os

import pytest

from files.command import Refusal
from run_folder import __main__ as browse
from run_folder.leftovers import leftovers
from run_folder.overview import in_words, overview, run_folders
from utils import lock_run

MEAN = {"pixel_auroc": 0.9, "pixel_ap": 0.4, "image_auroc": 0.8, "image_ap": None}


@pytest.fixture
def make(tmp_path):
    """Function (name, image epochs, **settings) -> folder of a finished baseline run without real weights."""

    def made(name, epochs=3, metrics=MEAN, **settings):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        values = {
            "dataset": "VisA",
            "training_mode": "full_shot",
            "image_epoch": epochs,
            "seed": 111,
        } | settings
        (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
        for file in ("text_adapter", "image_adapter", *(f"image_adapter_{n + 1}" for n in range(epochs))):
            (folder / f"{file}.pth").write_bytes(b"weights")
        loops = [{"loop": 1, "text": [{}], "image": [{}] * epochs}]
        (folder / "history.json").write_text(json.dumps({"loops": loops}))
        (folder / "metrics.json").write_text(json.dumps({"MVTec": {"image_adapter.pth": {"mean": metrics}}}))
        return folder

    return made


@pytest.fixture
def say(lines):
    """Function (*words) -> what the command says."""
    logger, messages = lines

    def said(*words):
        messages.clear()
        browse.main([str(word) for word in words], logger)
        return "\n".join(messages)

    return said


def test_a_list_says_kind_data_epochs_size_and_last_metrics_of_every_run(make, say, tmp_path):
    make("a"), make("deep/b", training_mode="few_shot", shot=4)
    told = say("list", tmp_path / "runs").splitlines()
    assert len(told) == 3 and told[1].split()[0].endswith("runs/a")
    assert "baseline" in told[1] and "VisA full-shot" in told[1] and "1 + 3" in told[1]
    assert "MVTec 90.00/40.00 · 80.00/–" in told[1] and "VisA 4-shot" in told[2]
    assert say("list", tmp_path / "runs" / "deep").count("\n") == 1
    (tmp_path / "empty").mkdir()
    assert say("list", tmp_path / "empty").startswith("no run at or below")


def test_a_run_that_is_not_readable_does_not_hide_the_others(make, say, tmp_path):
    make("a"), (make("b") / "metrics.json").write_text('{"MVTec": 3}')
    told = say("list", tmp_path / "runs").splitlines()
    assert "90.00" in told[1] and "not readable" in told[2] and "move it away" in told[2]
    with pytest.raises(ValueError, match="is not as this program writes it"):
        say("show", tmp_path / "runs" / "b")


@pytest.mark.parametrize(
    ("gone", "added", "epochs"),
    [
        (["history.json"], [], "image 3 of 3"),
        (["history.json"], ["epoch_in_progress.pth"], "image 3 of 3, inside an epoch"),
        (["history.json", *(f"image_adapter_{n}.pth" for n in (1, 2, 3)), "image_adapter.pth"], [], "text"),
        ([], ["epoch_in_progress.pth"], "1 + 3, inside an epoch"),
    ],
)
def test_how_far_a_run_is_follows_from_its_files(make, gone, added, epochs):
    folder = make("a")
    [(folder / name).unlink() for name in gone], [(folder / name).write_bytes(b"x") for name in added]
    assert overview(folder).epochs == epochs


def test_a_feedback_run_is_told_loop_by_loop(tmp_path):
    (tmp_path / "config.yaml").write_text("num_feedback_loops: 3\ndataset: VisA\n")
    (tmp_path / "loop_1_final.pth").write_bytes(b"x")
    assert overview(tmp_path).kind == "feedback" and overview(tmp_path).epochs == "1 of 3 loops"


def test_defaults_that_feedback_alone_has_do_not_count_as_changed(make, say):
    told = say("show", make("a", feedback_mix=1.0, recipe="v1", shot=32)).splitlines()
    assert "settings that are not the default: --training_mode full_shot --image_epoch 3" in told
    assert "settings that its command alone has: --recipe v1" in told


def test_a_run_is_shown_with_what_is_not_the_default_and_its_origin(make, say):
    folder = make("a", dataset="MVTec", relu="true")
    start = {"at": "2026-01-01T00:00:00+00:00", "program": "train.py", "flags": ["--relu"], "threads": 4}
    start |= {"versions": {"python": "3.12"}, "git": {"commit": "c" * 40, "changed": ["a.py"]}}
    manifest = {"run": "1", "kind": "baseline", "backbone": {"sha256": "5" * 64}, "rows": {"rows": 9}}
    manifest["rows"]["classes"] = {"screw": 4, "tile": 5}
    manifest |= {"starts": [start | {"machine": {"device": "cpu"}}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    told = say("show", folder)
    assert "--dataset MVTec" in told and "--relu True" in told and "--seed" not in told
    assert "train.py --relu" in told and "cccccccccccc with 1 changed files" in told and "5" * 64 in told
    assert "rows: rows 9, classes (screw 4, tile 5)" in told
    assert "image_adapter.pth  90.00        40.00     80.00        –" in told


def test_two_runs_differ_in_what_they_differ_in_and_nothing_else(make, say):
    first, second = make("a"), make("b", seed=112, metrics=MEAN | {"pixel_ap": 0.45})
    told = say("diff", first, second)
    assert "--seed" in told and "111" in told and "112" in told and "--dataset" not in told
    assert "pixel_ap     40.00  45.00   +5.00" in told and "image_ap     –      –       –" in told
    assert "the same settings and origin" in say("diff", first, first)
    for folder, screws in ((first, 4), (second, 5)):
        told = {
            "kind": "baseline",
            "rows": {"rows": 9, "classes": {"screw": screws, "tile": 5}},
            "base": None,
        }
        (folder / "manifest.json").write_text(
            json.dumps(told | ({} if screws == 4 else {"prompts": {"a": "b"}}))
        )
    lines = [line.split() for line in say("diff", first, second).splitlines()]
    assert ["rows", "classes", "screw", "4", "5"] in lines and ["prompts", "–", "a", "b"] in lines
    assert not any("tile" in line for line in lines)


def test_a_run_is_told_by_its_own_evaluation_and_never_by_one_of_another_kind(make, say):
    first, second = make("a"), make("b")
    tested = {"MVTec": {"image_adapter.pth": {"mean": MEAN}}}
    for name in ("image_adapter.pth with 4 normal references", "raw_clip"):
        tested["MVTec"][name] = {"mean": MEAN | {"pixel_ap": 0.99}}
    (second / "metrics.json").write_text(json.dumps(tested))
    assert "MVTec 90.00/40.00 · 80.00/– (image_adapter.pth)" in say("list", second)
    told = say("diff", first, second)
    assert "on MVTec: first image_adapter.pth, second image_adapter.pth" in told and "99.00" not in told
    (second / "metrics.json").write_text(json.dumps({"MVTec": {"raw_clip": {"mean": MEAN}}}))
    assert "80.00/– (raw_clip)" in say("list", second)
    begun = {"mean": MEAN, "unfinished": ["bottle"]}  # some classes' mean is not the data set's
    (second / "metrics.json").write_text(json.dumps({"MVTec": {"image_adapter.pth": begun}}))
    assert "80.00/– (image_adapter.pth, unfinished)" in say("list", second)


def test_a_folder_without_a_run_is_refused_with_the_command_that_finds_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run's folder: python -m run_folder list"):
        overview(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        list(run_folders(tmp_path / "none"))


def names(found):
    return [one.path.name for one in found]


def test_cleaning_says_what_would_go_deletes_it_when_told_to_and_never_a_final_file(make, say):
    folder = make("a", epochs=5)
    (folder / ".image_adapter.pth.abcd1234.tmp").write_bytes(b"half")
    before = sorted(os.listdir(folder))
    told = say("clean", folder, "--keep_last", 2)
    assert "image_adapter_3.pth: numbered checkpoint" in told and "25 B would be deleted" in told
    assert sorted(os.listdir(folder)) == before
    assert "25 B deleted" in say("clean", folder, "--keep_last", 2, "--yes")
    gone = {".image_adapter.pth.abcd1234.tmp", *(f"image_adapter_{n}.pth" for n in (1, 2, 3))}
    assert set(before) - set(os.listdir(folder)) == gone


def test_numbered_checkpoints_stay_where_none_is_final_or_nothing_is_said_of_them(make):
    folder = make("a")
    assert leftovers(folder) == []
    (folder / "image_adapter.pth").unlink()
    assert leftovers(folder, keep_last=1) == []
    with pytest.raises(ValueError, match="--keep_last 0: expected 1 or more"):
        leftovers(folder, keep_last=0)


def test_the_state_inside_an_epoch_stays_until_the_run_is_finished_or_it_is_asked_for(make):
    folder = make("a")
    begun, end = folder / "epoch_in_progress.pth", folder / "history.json"
    begun.write_bytes(b"x")
    os.utime(end, (1, 1))
    assert names(leftovers(folder)) == []
    assert names(leftovers(folder, begun_epoch=True)) == ["epoch_in_progress.pth"]
    os.utime(begun, (0, 0))
    assert names(leftovers(folder)) == ["epoch_in_progress.pth"]


def test_nothing_is_deleted_where_somebody_works(make, say):
    folder = make("a")
    lock = lock_run(folder)
    try:
        with pytest.raises(Refusal, match="another process is working"):
            say("clean", folder, "--keep_last", 1, "--yes")
    finally:
        lock.release()
    assert (folder / "image_adapter_1.pth").is_file()
    half = folder / ".metrics.json.abcd1234.tmp"
    with open(half, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        say("clean", folder, "--yes")
        assert half.is_file()


def test_sizes_are_told_in_units_people_read():
    assert [in_words(size) for size in (7, 1500, 1_640_000_000)] == ["7 B", "1.5 kB", "1.6 GB"]
