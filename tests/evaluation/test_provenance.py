"""Numbers that carry what they came from, are there class by class, and have no stale picture beside them."""

import json
import shutil

import pytest
import torch

import test as test_script
import train
from evaluation.picture_folders import clear_stale
from evaluation.predictions import metrics_of
from evaluation.results import write_metrics
from files.atomic import sha256
from run_folder.checkpoints import load_checkpoint
from run_folder.identity import identity_in


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_name, weights, data_root):
    folder = tmp_path_factory.mktemp("provenance") / "run"
    words = f"--model_name {model_name} --clip_weights {weights} --img_size 32 --surgery_until_layer 3"
    words += f" --text_adapt_until 2 --image_adapt_until 2 --dataset MVTec --data_root {data_root}"
    words += f" --save_path {folder} --training_mode full_shot --text_epoch 1 --image_epoch 2"
    train.main([*words.split(), "--text_batch_size", "4", "--image_batch_size", "4"])
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def entry(run, name="image_adapter.pth"):
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))["MVTec"][name]


def test_an_entry_of_metrics_json_has_the_hashes_of_all_it_came_from(run, flags, weights):
    test_script.main(flags)
    found, content = entry(run), load_checkpoint(run / "image_adapter.pth")
    assert found["checkpoints"] == {
        name: sha256(run / name) for name in ("image_adapter.pth", "text_adapter.pth")
    }
    assert found["backbone"] == content["backbone"] and found["backbone"]["sha256"] == sha256(weights)
    assert found["run"] == identity_in(content).run and len(found["weights_sha256"]) == 64
    assert found["rows"]["rows"] == 12 and found["rows"]["masks"] == 6
    assert len(found["prompts_sha256"]) == 64 and found["tested_with"]["img_size"] == 32
    assert "unfinished" not in found and found["metrics_version"] == 1
    test_script.main([*flags, "--raw_clip"])
    test_script.main([*flags, "--local_contrast"])
    raw, contrast = entry(run, "raw_clip"), entry(run, "local_contrast")
    assert raw["backbone"] == found["backbone"] and raw["rows"] == found["rows"] == contrast["rows"]
    assert raw["checkpoints"] == {} and raw["run"] is None and contrast["backbone"] is None


def test_the_hashes_are_of_what_was_loaded_although_training_replaces_the_file_meanwhile(
    run, flags, monkeypatch
):
    from evaluation import report as evaluation

    loaded, evaluate = sha256(run / "image_adapter.pth"), evaluation.evaluate_dataset

    def replaced(*args, **options):
        shutil.copy(run / "image_adapter_1.pth", run / "image_adapter.pth")
        return evaluate(*args, **options)

    monkeypatch.setattr(evaluation, "evaluate_dataset", replaced)
    test_script.main(flags)
    assert entry(run)["checkpoints"]["image_adapter.pth"] == loaded != sha256(run / "image_adapter.pth")


def damaged_mask(tmp_path, data_root):
    """A copy of the images whose last class has a mask with an intact header and damaged pixels."""
    root = shutil.copytree(data_root, tmp_path / "data")
    mask = root / "mvtec_ad" / "screw" / "ground_truth" / "broken" / "002_mask.png"
    content = mask.read_bytes()
    begin = content.index(b"IDAT") + 4
    mask.write_bytes(content[:begin] + bytes(len(content) - begin))
    return ["--data_root", str(root)]


def test_a_late_error_loses_no_class_that_was_done(run, flags, tmp_path, data_root):
    damaged = damaged_mask(tmp_path, data_root)
    with pytest.raises(ValueError, match="cannot read mask .*002_mask.png"):
        test_script.main([*flags, *damaged])
    found = entry(run)
    assert list(found["classes"]) == ["bottle"] and found["unfinished"] == ["screw"]
    assert "MVTec,image_adapter.pth,bottle," in (run / "metrics.csv").read_text()
    rows = (run / "scores" / "MVTec" / "image_adapter.pth.csv").read_text().splitlines()
    assert len(rows) == 1 + 6
    test_script.main(flags)
    assert list(entry(run)["classes"]) == ["bottle", "screw"] and "unfinished" not in entry(run)


def test_pictures_of_a_finished_evaluation_stay_when_its_repetition_fails(run, flags, monkeypatch):
    test_script.main(flags)
    file = run / "scores" / "MVTec" / "image_adapter.pth.csv"
    whole = file.read_text()

    def failing(predictions, name, scorer):
        if name == "screw":
            raise ValueError("stopped")
        return metrics_of(predictions, name, scorer)

    monkeypatch.setattr("evaluation.predictions.metrics_of", failing)
    with pytest.raises(ValueError, match="stopped"):
        test_script.main(flags)
    assert file.read_text() == whole and "unfinished" not in entry(run)


def test_a_picture_that_cannot_be_written_loses_no_metric(run, flags, monkeypatch):
    def full(*args, **options):
        raise OSError("no space left")

    monkeypatch.setattr("evaluation.report.visualize", full)
    with pytest.raises(OSError, match="no space left"):
        test_script.main([*flags, "--visualize"])
    assert list(entry(run)["classes"]) == ["bottle"]


def test_a_finished_entry_of_the_same_things_is_not_replaced_by_a_part_of_it(tmp_path):
    row = {"images": 3, "pixel_ap": 0.5}
    part, whole = ({"classes": dict.fromkeys(names, row), "mean": row} for names in ("a", "ab"))

    def classes():
        found = json.loads((tmp_path / "metrics.json").read_text())["X"]["c.pth"]
        return list(found["classes"]), found.get("unfinished")

    write_metrics(tmp_path, "X", "c.pth", part, {"run": "1"}, ["a", "b"])
    assert classes() == (["a"], ["b"])
    write_metrics(tmp_path, "X", "c.pth", whole, {"run": "1"}, ["a", "b"])
    write_metrics(tmp_path, "X", "c.pth", part, {"run": "1"}, ["a", "b"])
    assert classes() == (["a", "b"], None)
    write_metrics(tmp_path, "X", "c.pth", part, {"run": "2"}, ["a", "b"])
    assert classes() == (["a"], ["b"])


def pictures(run, kind="visualization"):
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob(f"{kind}/**/*.png")}


def test_no_picture_of_an_earlier_evaluation_stays_beside_new_numbers(run, flags, tmp_path, data_root):
    test_script.main([*flags, "--visualize"])
    first = pictures(run)
    assert len(first) == 12
    test_script.main(flags)  # the same once more: they still show it
    test_script.main([*flags, "--checkpoint", str(run / "image_adapter_1.pth")])  # others have other numbers
    assert pictures(run) == first
    root = shutil.copytree(data_root, tmp_path / "data")
    for file in root.rglob("000.png"):
        file.unlink()
    test_script.main([*flags, "--data_root", str(root), "--visualize"])
    assert len(pictures(run)) == 8
    content = torch.load(run / "image_adapter.pth", weights_only=True)
    del content["digests"]
    content["image_adapter"]["det_proj.fc.weight"] += 0.1
    torch.save(content, run / "image_adapter.pth")
    test_script.main(flags)
    assert pictures(run) == {} and "deleted 8 pictures" in (run / "test.log").read_text()


def test_pictures_that_do_not_say_what_they_show_are_cleared(tmp_path):
    folder = tmp_path / "visualization" / "X"
    info = dict.fromkeys(("checkpoints", "weights_sha256", "backbone", "rows", "tested_with"), 1)

    def clear(checkpoint, draws, **changed):
        return clear_stale(tmp_path, "visualization", "X", checkpoint, info | changed, draws=draws)

    assert clear("a.pth", False) == 0 and not any(tmp_path.iterdir())
    (folder / "c").mkdir(parents=True)
    (folder / "c" / "0.png").touch()
    (folder / "c" / "notes.txt").touch()
    assert clear("a.pth", False) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]
    clear("a.pth", True)
    (folder / "c" / "0.png").touch()
    assert clear("a.pth", True) == 0  # the same again, as one image after the other
    assert clear("b.pth", False) == 0
    assert clear("a.pth", False, rows=2) == 1
