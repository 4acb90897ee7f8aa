"""Defects known by label only, and pictures without a label: rows, losses, metrics, scores and tables."""

import contextlib
import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import compare
import test as test_script
import train
from comparison.gallery import Chosen, draw_row
from comparison.replicates import image_weights, weighted_metrics
from dataset import get_dataset, register_dataset
from evaluation.picture_scores import picture_scores
from evaluation.results import format_table
from evaluation.scores import ClassScores, class_scores, digest, read_scores
from files.pictures import UNKNOWN_GREY
from forward_utils import calculate_seg_loss
from metrics import class_metrics, fused_image_score, metrics_eval, table_row
from synthesis.make_triptychs import main as make_triptychs
from training.stages import image_stage_loss, text_stage_loss


@pytest.fixture
def own(tmp_path):
    """Function (rows) -> the flags of a dataset "Own" with these rows: (class, label or None, has a mask) each."""
    random = np.random.default_rng(3)

    def write(*rows):
        folder, lines = tmp_path / "data" / "own", []
        for number, (class_name, label, has_mask) in enumerate(rows):
            pixels = random.integers(60, 120, (32, 32, 3), dtype=np.uint8)
            mask = np.zeros((32, 32), np.uint8)
            if label:
                mask[6:18, 8:20] = 255
                pixels[mask > 0] = (220, 30, 30)
            (folder / class_name).mkdir(parents=True, exist_ok=True)
            name = f"{class_name}/{number}.png"
            Image.fromarray(pixels).save(folder / name)
            row = {"image_path": name, "class_name": class_name}
            if label is not None:
                row["label"] = label
            if has_mask:
                row["mask_path"] = f"{class_name}/{number}_mask.png"
                Image.fromarray(mask).save(folder / row["mask_path"])
            lines.append(json.dumps(row) + "\n")
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        classes = {name: name for name in dict.fromkeys(name for name, *_ in rows)}
        entry = {"path": "own", "domain": "Industrial", "classes": classes, "metadata": "data/own/rows.jsonl"}
        (tmp_path / "own.json").write_text(json.dumps({"Own": entry}), encoding="utf-8")
        return ["--dataset", "Own", "--dataset_config", str(tmp_path / "own.json")] + [
            "--data_root",
            str(tmp_path / "data"),
        ]

    return write


MIXED = [("ring", 0, False)] * 2 + [("ring", 1, True)] * 2 + [("ring", 1, False)] * 2
LABELS_ONLY = [("scan", 0, False)] * 2 + [("scan", 1, False)] * 2


def metrics_of(folder, checkpoint="raw_clip"):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["Own"][checkpoint]


def loaded(own_flags, split="test"):
    config = json.loads(open(own_flags[3], encoding="utf-8").read())["Own"]
    register_dataset("Own", "own", "Industrial", config["classes"], f"{own_flags[5]}/own/rows.jsonl")
    return get_dataset("Own", 32, "full_shot", 0, split, data_root=own_flags[5])


def test_a_label_without_a_mask_says_nothing_about_pixels(own):
    items = list(loaded(own(*MIXED))["ring"])
    assert [item["label"] for item in items] == [0, 0, 1, 1, 1, 1]
    assert [float(item["mask_known"]) for item in items] == [1, 1, 1, 1, 0, 0]
    assert [bool(item["mask"].any()) for item in items] == [False, False, True, True, False, False]


def test_pixel_metrics_are_over_masks_and_image_metrics_over_labels(own, flags, tmp_path, caplog):
    test_script.main([*flags, *own(*MIXED, *LABELS_ONLY), "--raw_clip", "--visualize"])
    found = metrics_of(tmp_path / "run")
    ring, scan = found["classes"]["ring"], found["classes"]["scan"]
    assert all(scan[key] is None for key in scan if key.startswith("pixel"))
    assert scan["image_auroc"] is not None and ring["images"] == 6 and ring["abnormal_images"] == 4
    assert found["mean"]["pixel_ap"] == ring["pixel_ap"] > 0
    assert found["mean"]["image_auroc"] == (ring["image_auroc"] + scan["image_auroc"]) / 2
    log = (tmp_path / "run" / "test.log").read_text(encoding="utf-8")
    assert "4 of 6 anomalous images have no mask" in log
    assert "Own: masks are read robust" in log and "'mask_reading': 'robust'" in log
    row = next(line for line in log.splitlines() if line.split()[:1] == ["scan"])
    assert row.split()[1:3] == ["–", "–"] and "–" not in row.split()[3:]
    # What is not known is not drawn as normal either.
    strip = np.asarray(
        Image.open(next((tmp_path / "run" / "visualization" / "Own" / "scan").glob("*scan__9*")))
    )
    assert (strip[:32, 36:68] == UNKNOWN_GREY).all()


def test_a_masked_picture_counts_the_same_whether_label_only_pictures_are_there_or_not(own, flags, tmp_path):
    dataset = own(*MIXED)
    test_script.main([*flags, *dataset, "--raw_clip"])
    with_them = metrics_of(tmp_path / "run")["classes"]["ring"]
    scores, _ = read_scores(tmp_path / "run" / "scores" / "Own" / "raw_clip.npz")
    assert scores["ring"].mask_known.tolist() == [True] * 4 + [False] * 2
    assert scores["ring"].positive.sum(1).tolist()[4:] == scores["ring"].regions.tolist()[4:] == [0, 0]
    rows = (tmp_path / "data" / "own" / "rows.jsonl").read_text().splitlines()
    (tmp_path / "data" / "own" / "rows.jsonl").write_text("\n".join(rows[:4]))
    test_script.main([*flags, *dataset, "--raw_clip"])
    alone = metrics_of(tmp_path / "run")["classes"]["ring"]
    assert alone["images"] == 4
    assert {key: with_them[key] for key in alone if key.startswith("pixel")} == {
        key: alone[key] for key in alone if key.startswith("pixel")
    }


def test_training_goes_on_by_the_image_loss_alone_and_says_for_how_many(own, train_flags, tmp_path):
    train.main([*train_flags, *own(*LABELS_ONLY, *MIXED)])
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "4 of 10 training images are anomalous without a mask: the image loss alone trains on them" in log
    assert (tmp_path / "run" / "image_adapter.pth").is_file() and not re.search(r"\bnan\b", log)


def test_training_without_any_mask_says_what_stage_1_lacks(own, train_flags, tmp_path):
    train.main([*train_flags, *own(*LABELS_ONLY)])
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "--text_cls_weight above 0" in log and not re.search(r"\bnan\b", log)


@pytest.fixture
def prob():
    logits = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    return torch.softmax(logits, dim=1).requires_grad_()


@pytest.fixture
def mask():
    return (torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(2)) > 0.7).float()


def value_and_gradient(prob, *args):
    loss = calculate_seg_loss(prob, *args)
    return loss.detach(), torch.autograd.grad(loss, prob)[0]


@pytest.mark.bit_equality
def test_the_segmentation_loss_with_every_mask_known_is_the_same_to_the_last_bit(prob, mask):
    for one, other in zip(
        value_and_gradient(prob, mask), value_and_gradient(prob, mask, torch.ones(4)), strict=True
    ):
        assert torch.equal(one, other)


def test_the_segmentation_loss_is_that_of_the_known_images_alone(prob, mask):
    loss, gradient = value_and_gradient(prob, mask, torch.tensor([1.0, 0.0, 1.0, 0.0]))
    known = prob[::2].detach().requires_grad_()
    wanted, own_gradient = value_and_gradient(known, mask[::2])
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient[::2], own_gradient)
    assert not gradient[1::2].any()


@pytest.mark.bit_equality
def test_the_segmentation_loss_of_a_batch_without_masks_is_zero_and_pulls_nowhere(prob, mask):
    loss, gradient = value_and_gradient(prob, mask, torch.zeros(4))
    assert float(loss) == 0 and not gradient.any() and torch.isfinite(gradient).all()


def test_both_stages_leave_pictures_without_a_place_to_the_image_loss(batch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 16, 2, generator=generator).requires_grad_()
    head = torch.randn(4, 2, generator=generator).requires_grad_()
    anchors = torch.nn.functional.normalize(torch.randn(4, 8, 2, generator=generator), dim=1)
    batch = batch | {"mask_known": torch.tensor([1.0, 1.0, 1.0, 0.0])}
    terms = image_stage_loss(batch, lambda *_: ([logits], head), lambda _: anchors)
    grid, own_head = torch.autograd.grad(sum(terms.values()), (logits, head))
    assert not grid[3].any() and grid[:3].flatten(1).any(1).all() and own_head.any(1).all()
    patches = torch.randn(4, 16, 8, generator=generator).requires_grad_()
    terms = text_stage_loss(
        batch, lambda _: ({1: patches}, None), lambda *_: anchors, [1], norm_weight=0.1, cls_weight=0.0
    )
    (found,) = torch.autograd.grad(terms["segmentation"], patches)
    assert not found[3].any() and found[:3].flatten(1).any(1).all()


def predictions(labels, known, seed=0):
    random = np.random.default_rng(seed)
    labels, known = np.array(labels), np.array(known, bool)
    masks = np.zeros((len(labels), 8, 8), np.uint8)
    masks[(labels == 1) & known, 2:5, 2:5] = 1
    return {
        "maps": (random.normal(size=masks.shape) + masks).astype(np.float32),
        "head": random.random(len(labels)).astype(np.float32),
        "masks": masks,
        "mask_known": known,
        "labels": labels,
        "files": [f"{i}.png" for i in range(len(labels))],
    }


def test_metrics_of_a_class_equal_those_of_its_parts():
    found = predictions([0, 1, 1, 0, 1], [1, 1, 0, 1, 0])
    arrays = [found[key] for key in ("masks", "labels", "maps", "head")]
    row = class_metrics(*arrays, "Industrial", 1, found["mask_known"])
    masked = class_metrics(*(values[found["mask_known"]] for values in arrays), "Industrial", 1)
    everything = class_metrics(*arrays, "Industrial", 1)
    for key, value in row.items():
        assert value == (masked if key.startswith("pixel") else everything)[key]
    assert row["pixel_ap"] != everything["pixel_ap"]


def test_the_table_shows_a_dash_for_undefined_and_upstreams_function_its_zero():
    found = predictions([0, 1, 1], [1, 0, 0])
    arrays = [found[key] for key in ("masks", "labels", "maps", "head")]
    row = table_row(*arrays, "x", "Industrial", found["mask_known"])
    assert row["pixel AUC"] is row["pixel AP"] is None and row["image AUC"] is not None
    assert format_table([row]).splitlines()[1].split()[1:3] == ["–", "–"]
    assert metrics_eval(*arrays, "x", "Industrial")["pixel AUC"] == 0


def test_unlabelled_pictures_beside_labelled_ones_move_no_score_of_theirs():
    few, many = predictions([0, 1, 1], [1, 1, 1]), predictions([0, 1, 1], [1, 1, 1])
    many |= {
        "maps": np.concatenate([many["maps"], 50 + many["maps"][:1]]),
        "head": np.append(many["head"], np.float32(-9)),
        "labels": np.append(many["labels"], -1),
        "files": [*many["files"], "new.png"],
    }
    rows = picture_scores(many, "x", "Industrial", 1)
    assert [row.label for row in rows] == [0, 1, 1, None]
    assert rows[:3] == picture_scores(few, "x", "Industrial", 1)
    assert rows[3].own_score == pytest.approx(0.5 * many["maps"][3].max() / 100 - 4.5)
    assert fused_image_score(few["maps"], few["head"], "Industrial").tolist() == [
        row.score for row in rows[:3]
    ]


def test_a_resampled_test_set_always_holds_masked_defects():
    labels, known = np.array([0, 0, 1, 1, 1, 1]), np.array([1, 1, 1, 0, 0, 0], bool)
    weights = image_weights(labels, 200, np.random.default_rng(0), known)
    assert (weights[:, 2] == 1).all() and (weights[:, 3:].sum(1) == 3).all()
    same = image_weights(labels, 200, np.random.default_rng(0), np.ones(6, bool))
    assert np.array_equal(same, image_weights(labels, 200, np.random.default_rng(0)))


def test_stored_scores_of_label_only_pictures_hold_no_pixel(monkeypatch):
    monkeypatch.setattr("evaluation.scores.digest", lambda sample: "x")
    found = predictions([0, 1, 1, 0], [1, 1, 0, 1])
    scores = class_scores(found, [None] * 4, "Industrial", 1)
    assert scores.mask_known.tolist() == [True, True, False, True]
    arrays = [found[key] for key in ("masks", "labels", "maps", "head")]
    exact = class_metrics(*arrays, "Industrial", 1, found["mask_known"])
    binned = weighted_metrics(scores, np.ones((1, 4)))
    assert float(binned["pixel_auroc"][0]) == pytest.approx(exact["pixel_auroc"], abs=0.01)
    nothing = predictions([1, 1], [0, 0])
    assert not class_scores(nothing, [None] * 2, "Industrial", 1).positive.any()


def test_compare_reports_image_metrics_and_leaves_pixel_metrics_open(own, flags, tmp_path, capsys):
    dataset = own(*LABELS_ONLY)
    for name in ("one", "two"):
        test_script.main([*flags, *dataset, "--raw_clip", "--save_path", str(tmp_path / name)])
    compare.main(
        ["--baseline", str(tmp_path / "one"), "--runs", f"other={tmp_path / 'two'}", "--datasets", "Own"]
        + [*dataset[2:], "--replicates", "100", "--out", str(tmp_path / "out")]
    )
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open(encoding="utf-8")))
    for row in rows:
        assert (row["baseline"] == row["value"] == "") == row["metric"].startswith("pixel")
    markdown = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "pixel AP: undefined, no class has pixels of both kinds and masks" in markdown
    assert "| pixel AP | – | – | – | – | – | – | – |" in markdown
    assert "--" in (tmp_path / "out" / "comparison.tex").read_text(encoding="utf-8")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r">\s*[+-]?nan", page)


def test_the_image_grid_says_where_a_place_is_unknown(own):
    images = loaded(own(*MIXED))["ring"]
    for index, caption in ((2, "truth"), (4, "truth: defective, place unknown")):
        sample = images.samples[index]
        files, digests = np.array([sample.file_name]), np.array([digest(sample)])
        one, bins = np.zeros(1), np.zeros((1, 4))
        thumbnails = np.zeros((1, 8, 8), np.uint8)
        scores = ClassScores(files, digests, np.ones(1), one, one, bins, bins, bins, one, thumbnails)
        row = draw_row(Chosen("ring", 0, "why"), {"base": {"ring": scores}}, images)
        assert row["tiles"][1].caption == caption


def test_pictures_without_a_label_are_scored_and_every_evaluation_leaves_a_table_of_scores(
    own, flags, tmp_path
):
    test_script.main([*flags, *own(("ring", None, False), *MIXED, ("scan", None, False)), "--raw_clip"])
    rows = list(csv.DictReader((tmp_path / "run" / "scores" / "Own" / "raw_clip.csv").open(encoding="utf-8")))
    assert list(rows[0]) == ["file", "class", "label", "score", "own_score", "map_maximum"]
    assert [row["label"] for row in rows] == ["", "0", "0", "1", "1", "1", "1", ""]
    assert rows[0]["file"] == "own/ring/0.png" and rows[-1]["class"] == "scan"
    assert all(np.isfinite(float(row[key])) for row in rows for key in ("score", "own_score"))
    found = metrics_of(tmp_path / "run")["classes"]
    assert found["ring"]["images"] == 6 and found["scan"]["images"] == 0
    assert found["scan"]["image_auroc"] is None
    assert "2 of 8 images have no label" in (tmp_path / "run" / "test.log").read_text(encoding="utf-8")


def test_training_leaves_pictures_without_a_label_out_and_needs_one_with(own, train_flags, tmp_path):
    samples = loaded(own(("ring", None, False), *MIXED), "train")[0].samples
    assert [sample.label for sample in samples] == [0, 0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="none of 2 rows has a label.*test.py scores"):
        train.main([*train_flags, *own(("ring", None, False), ("ring", None, False))])


def test_triptychs_are_drawn_from_masked_defects_and_the_others_are_counted(own, tmp_path, capsys):
    dataset = own(*MIXED)
    with contextlib.nullcontext():
        make_triptychs([*dataset, "--shot", "0", "--out", str(tmp_path / "out"), "--size", "32"])
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    printed = capsys.readouterr().out
    assert "2 anomalous images have no mask" in printed
    with pytest.raises(ValueError, match="no anomalous image with a mask"):
        make_triptychs([*own(*LABELS_ONLY), "--shot", "0", "--out", str(tmp_path / "none")])
