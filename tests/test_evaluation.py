"""Scores, tables and metrics files: evaluation.py."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation import (
    adapted_predictor,
    evaluate,
    format_table,
    predict_class,
    raw_clip_predictor,
    write_metrics,
    write_text,
)
from forward_utils import calculate_similarity_map, get_adapted_text_embedding
from metrics import class_metrics, metrics_eval


@pytest.fixture
def anchors(clip):
    return get_adapted_text_embedding(clip, "MVTec", "cpu")


@torch.no_grad()
def test_an_adapted_models_map_sums_the_levels_and_its_head_looks_at_the_abnormal_anchor(adapted, images, anchors):
    maps, head = adapted_predictor(adapted, anchors, 32, "Industrial")(images, "screw")
    seg, det = adapted(images)
    want = sum(calculate_similarity_map(level, anchors["screw"], 32, test=True, domain="Industrial") for level in seg)
    torch.testing.assert_close(maps, want[:, 0])
    torch.testing.assert_close(head, ((det * anchors["screw"][:, 1]).sum(1) + 1) / 2)
    assert maps.shape == (4, 32, 32) and head.shape == (4,)


@torch.no_grad()
def test_unadapted_clip_scores_its_last_patches_and_its_cls(clip, open_clip_model, images, anchors):
    maps, head = raw_clip_predictor(clip, anchors, 32, "Industrial")(images, "bottle")
    pooled, (tokens,) = clip.encode_image(images, [4])
    patches = F.normalize(clip.visual.ln_post(tokens[:, 1:]) @ clip.visual.proj, dim=-1)
    want = calculate_similarity_map(patches, anchors["bottle"], 32, test=True, domain="Industrial")
    torch.testing.assert_close(maps, want[:, 0])
    cls = F.normalize(open_clip_model.encode_image(images), dim=-1)
    torch.testing.assert_close(head, (cls @ anchors["bottle"][:, 1] + 1) / 2, rtol=1e-4, atol=1e-5)


def items(labels, side=6):
    """A dataset of small items; the image's first pixel carries its number."""
    dataset = []
    for number, label in enumerate(labels):
        mask = torch.zeros(1, side, side)
        mask[0, :2, :2] = label
        dataset.append({"image": torch.full((3, side, side), float(number)), "mask": mask, "label": label,
                        "class_name": "x", "file_name": f"{number}.png"})  # fmt: skip
    return dataset


def by_number(image, class_name):
    """Map and head from the image's number alone."""
    number = image[:, 0, 0, 0]
    ramp = torch.linspace(1, 0, 36).reshape(6, 6)
    return number[:, None, None] * ramp, number / 10


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_predictions_of_a_class_come_in_order_whatever_the_batch_size(batch_size):
    found = predict_class(by_number, items([0, 1, 0]), "x", batch_size=batch_size, device="cpu")
    assert found["files"] == ["0.png", "1.png", "2.png"]
    assert found["maps"].shape == found["masks"].shape == (3, 6, 6)
    assert found["maps"].dtype == np.float32 and found["masks"].dtype == np.uint8
    assert found["head"].tolist() == pytest.approx([0, 0.1, 0.2]) and found["labels"].tolist() == [0, 1, 0]
    assert found["masks"].reshape(3, -1).sum(1).tolist() == [0, 4, 0]


def test_evaluation_gives_each_class_the_mean_and_upstreams_rows_and_hands_predictions_out():
    seen = []
    sets = {"a": items([0, 1, 1]), "b": items([0, 0])}
    result = evaluate(by_number, sets, "Industrial", 4, batch_size=2, device="cpu",
                      on_class=lambda name, found: seen.append((name, found["files"])))  # fmt: skip
    found = predict_class(by_number, sets["a"], "a", batch_size=2, device="cpu")
    args = found["masks"], found["labels"], found["maps"], found["head"]
    assert result["classes"]["a"] == class_metrics(*args, "Industrial", 4)
    assert result["upstream"][0] == metrics_eval(*args, "a", "Industrial")
    assert [row["class name"] for row in result["upstream"]] == ["a", "b", "Average"]
    assert result["upstream"][2]["pixel AUC"] == pytest.approx(result["upstream"][0]["pixel AUC"] / 2)  # b counts as 0
    assert result["mean"]["pixel_auroc"] == result["classes"]["a"]["pixel_auroc"]  # b is left out
    assert result["classes"]["b"]["image_auroc"] is None
    assert seen == [("a", ["0.png", "1.png", "2.png"]), ("b", ["0.png", "1.png"])]


def test_evaluation_tracks_no_gradients(adapted, anchors):
    def predict(image, class_name):
        assert not torch.is_grad_enabled()
        return by_number(image, class_name)

    predict_class(predict, items([0, 1]), "x", batch_size=2, device="cpu")


def test_the_table_is_aligned_in_percent_with_two_decimals():
    text = format_table([{"class name": "a", "pixel AUC": 91.875}, {"class name": "Average", "pixel AUC": 100.0}])
    assert text.splitlines() == ["class name  pixel AUC", "         a      91.88", "   Average     100.00"]


def result_of(value):
    row = {"pixel_auroc": value, "image_auroc": None, "images": 3}
    return {"classes": {"a": row}, "mean": row}


def test_metrics_files_hold_full_precision_null_and_every_evaluation_so_far(tmp_path):
    third = 1 / 3
    write_metrics(tmp_path, "MVTec", "image_adapter_1.pth", result_of(third), {"img_size": 32})
    write_metrics(tmp_path, "MVTec", "image_adapter_2.pth", result_of(0.5), {"img_size": 32})
    write_metrics(tmp_path, "VisA", "image_adapter_2.pth", result_of(0.25), {"img_size": 64})
    write_metrics(tmp_path, "MVTec", "image_adapter_2.pth", result_of(0.75), {"img_size": 32})
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert found["MVTec"]["image_adapter_1.pth"]["classes"]["a"]["pixel_auroc"] == third
    assert found["MVTec"]["image_adapter_2.pth"]["mean"] == {"pixel_auroc": 0.75, "image_auroc": None, "images": 3}
    assert found["VisA"]["image_adapter_2.pth"]["img_size"] == 64
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(encoding="utf-8")))
    assert [(row["dataset"], row["checkpoint"], row["class"]) for row in rows] == [
        (name, f"image_adapter_{n}.pth", row) for name, n in (("MVTec", 1), ("MVTec", 2), ("VisA", 2))
        for row in ("a", "mean")
    ]  # fmt: skip
    assert float(rows[0]["pixel_auroc"]) == third and rows[0]["image_auroc"] == ""
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["metrics.csv", "metrics.json"]


def test_a_metrics_file_that_is_not_json_is_left_as_it_is(tmp_path):
    (tmp_path / "metrics.json").write_text("my notes", encoding="utf-8")
    with pytest.raises(ValueError, match="metrics.json is not JSON.*move it away"):
        write_metrics(tmp_path, "MVTec", "a.pth", result_of(0.5), {})
    assert (tmp_path / "metrics.json").read_text(encoding="utf-8") == "my notes"


def test_a_text_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    write_text(tmp_path / "new" / "a.txt", "old")

    def crash(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="no space"):
        write_text(tmp_path / "new" / "a.txt", "new")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "old"
