"""test.py as a user runs it on a run of train.py."""

import csv
import json
import re
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from checkpoint_contents import read
from safetensors.torch import load_file

import test as test_script
import train as train_script
from evaluation.scores import read_about, read_scores, scores_file
from metrics import with_old_names

ROOT = Path(train_script.__file__).parent
UPSTREAM_ROW = ("pixel AUC", "pixel AP", "image AUC", "image AP")


def test_testing_a_run_writes_upstreams_table_and_full_metrics(flags, trained_copy, capsys):
    (result,) = test_script.main(flags)
    shown, log = capsys.readouterr().out, read(trained_copy, "test.log")
    for text in (shown, log):
        table = [line.split() for line in text.splitlines()]
        header = next(i for i, line in enumerate(table) if line[:2] == ["class", "name"])
        assert " ".join(table[header]) == "class name " + " ".join(UPSTREAM_ROW)
        assert [line[0] for line in table[header + 1 : header + 4]] == ["bottle", "screw", "Average"]
        for line, row in zip(table[header + 1 :], result["upstream"], strict=False):
            assert [float(value) for value in line[1:]] == [
                pytest.approx(row[key], abs=0.006) for key in UPSTREAM_ROW
            ]
    assert "image_adapter.pth @32px" in log
    entry = json.loads(read(trained_copy, "metrics.json"))["MVTec"]["image_adapter.pth"]
    assert entry["classes"] == {name: with_old_names(row) for name, row in result["classes"].items()}
    assert entry["mean"] == with_old_names(result["mean"])
    for name in ("auroc", "ap", "f1max"):  # the names of today and of before hold the same
        assert entry["mean"][f"own_image_{name}"] == entry["mean"][f"image_{name}_unnormalised"] is not None
    assert (entry["img_size"], entry["domain"], entry["settings"]["seed"]) == (32, "Industrial", 111)
    assert entry["mean"]["images"] == 12 and entry["mean"]["abnormal_images"] == 6
    wanted = {
        f"{kind}_{name}" for kind in ("pixel", "image", "own_image") for name in ("auroc", "ap", "f1max")
    }
    assert wanted | {"pixel_aupro"} <= set(entry["classes"]["screw"])
    rows = list(csv.DictReader((trained_copy / "metrics.csv").open(encoding="utf-8")))
    assert [row["class"] for row in rows] == ["bottle", "screw", "mean"]
    assert float(rows[2]["pixel_aupro"]) == entry["mean"]["pixel_aupro"]


@pytest.mark.bit_equality
def test_all_evaluates_every_epoch_by_number(flags, trained_copy):
    shutil.copy(trained_copy / "image_adapter_1.pth", trained_copy / "image_adapter_10.pth")
    results = test_script.main([*flags, "--all"])
    found = json.loads(read(trained_copy, "metrics.json"))["MVTec"]
    assert list(found) == ["image_adapter_1.pth", "image_adapter_2.pth", "image_adapter_10.pth"]
    assert results[0]["classes"] == results[2]["classes"] != results[1]["classes"]


def test_a_checkpoint_can_be_named_and_tested_into_another_folder(flags, trained, run):
    (result,) = test_script.main([*flags, "--checkpoint", str(trained / "image_adapter_1.pth")])
    assert list(json.loads(read(run, "metrics.json"))["MVTec"]) == ["image_adapter_1.pth"]
    assert "text_adapter.pth: epoch 1" in read(run, "test.log")
    assert not (trained / "metrics.json").exists()


def test_the_batch_size_of_testing_changes_no_score(flags, trained_copy):
    one, many = (test_script.main([*flags, "--batch_size", size])[0]["mean"] for size in ("1", "32"))
    assert one == pytest.approx(many, abs=1e-6)


def test_unadapted_clip_is_evaluated_without_a_run(flags, run):
    (result,) = test_script.main([*flags, "--raw_clip"])
    entry = json.loads(read(run, "metrics.json"))["MVTec"]["raw_clip"]
    assert entry["mean"] == with_old_names(result["mean"]) and 0 <= entry["mean"]["pixel_auroc"] <= 1


def test_visualize_writes_a_picture_per_image_showing_the_image(flags, trained_copy):
    test_script.main([*flags, "--visualize"])
    for class_name in ("bottle", "screw"):
        pictures = sorted((trained_copy / "visualization" / "MVTec" / class_name).iterdir())
        assert len(pictures) == 6 and all(path.suffix == ".png" for path in pictures)
        broken = next(path for path in pictures if "broken__000" in path.name)
        picture = cv2.imread(str(broken))[..., ::-1]
        assert picture.shape[1] >= 3 * 32
        assert picture[10, 10].tolist() == pytest.approx([220, 30, 30], abs=40)  # red, not blue


def test_scores_of_every_evaluation_lie_beside_its_metrics(flags, trained_copy):
    test_script.main([*flags, "--all"])
    rows = list(csv.DictReader((trained_copy / "scores.csv").open(encoding="utf-8")))
    first, last = rows[0], rows[-1]
    assert len(rows) == 2 * 12 and first["dataset"] == "MVTec"
    assert (first["checkpoint"], last["checkpoint"]) == ("image_adapter_1.pth", "image_adapter_2.pth")
    assert {row["label"] for row in rows} == {"0", "1"} and first["file"].startswith("mvtec_ad/bottle/test/")
    scores, about = read_scores(trained_copy / "scores" / "MVTec" / "image_adapter_2.pth.npz")
    own = dict(zip(scores["screw"].files.tolist(), scores["screw"].own.tolist(), strict=True))
    assert {row["file"]: float(row["own_score"]) for row in rows[-6:]} == own
    head = 2 * float(last["own_score"]) - float(last["map_maximum"]) / (100 * about["levels"])
    assert 0 <= head <= 1  # own score: half the map's maximum per level in hundreds, half the head's


def test_the_worst_errors_are_one_page_that_goes_when_its_numbers_do(flags, trained_copy, capsys):
    test_script.main([*flags, "--errors", "2"])
    page = trained_copy / "errors" / "MVTec" / "image_adapter.pth.html"
    text = page.read_text(encoding="utf-8")
    assert "MVTec with image_adapter.pth @32px" in text and "6 sound and 6 defective" in text
    heads = re.findall(r"<h2>(False alarms|Misses): (\d) of (\d+)</h2>", text)
    assert [head[0] for head in heads] == ["False alarms", "Misses"]
    assert text.count("heatmap, common scale</figcaption>") == sum(int(head[1]) for head in heads) > 0
    assert str(page) in capsys.readouterr().out
    test_script.main(flags)  # the same once more: it still shows it
    assert page.is_file()
    test_script.main([*flags, "--batch_size", "1", "--exact_pixels", "1"])
    assert not page.exists()
    assert read_about(scores_file(trained_copy, "MVTec", "image_adapter.pth"))["error_bounds"]["classes"]
    with pytest.raises(ValueError, match="--errors is -1"):
        test_script.main([*flags, "--errors", "-1"])


def test_a_checkpoint_from_other_adapter_settings_is_refused_with_the_flag(flags, trained_copy):
    with pytest.raises(RuntimeError, match="other adapter settings: --relu was False, is True"):
        test_script.main([*flags, "--relu"])


def test_a_file_of_aa_clip_from_other_adapter_settings_is_refused_with_the_tensors(flags, trained_copy):
    content = torch.load(trained_copy / "image_adapter.pth", weights_only=True)
    del content["settings"]
    torch.save(content, trained_copy / "image_adapter.pth")
    with pytest.raises(RuntimeError, match="other adapter settings.*det_proj.fc.0.weight is missing.*--relu"):
        test_script.main([*flags, "--relu"])


def test_testing_takes_adapter_settings_from_the_checkpoint(train_flags, flags, run):
    train_script.main([*train_flags, "--relu", "--image_adapt_until", "1"])
    untyped = [
        value
        for pair in zip(flags[::2], flags[1::2], strict=True)
        for value in pair
        if pair[0] not in ("--img_size", "--text_adapt_until", "--image_adapt_until")
    ]
    (result,) = test_script.main(untyped)
    assert result["mean"]["images"] == 12


def test_testing_a_folder_without_a_run_says_what_to_do(flags, run):
    with pytest.raises(FileNotFoundError, match="train with --save_path .*--raw_clip"):
        test_script.main(flags)


def test_the_same_backbone_in_another_kind_of_file_is_accepted(flags, trained_copy, weights, tmp_path):
    torch.save(load_file(weights), tmp_path / "same.pt")
    test_script.main([*flags, "--clip_weights", str(tmp_path / "same.pt")])
