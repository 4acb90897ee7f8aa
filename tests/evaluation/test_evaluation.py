"""Scores, tables and metrics files: evaluation/."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cross_attention_world import MODEL, write_world
from torchvision.transforms.functional import gaussian_blur

from evaluation.predictions import evaluate_dataset, predict_class, shown_mean
from evaluation.results import format_table, write_metrics
from evaluation.scorer import AnomalyScorer, raw_clip_scorer
from files.atomic import write_text
from forward_utils import (
    calculate_similarity_map,
    encode_anchors,
    fixed_anchors,
    get_adapted_text_embedding,
    probability_map,
)
from forward_utils_cross_attention import (
    anchors_after_stage_1,
    text_context_dictionary,
    text_context_groups,
)
from metrics import class_metrics, metrics_eval, with_old_names
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import create_model


@pytest.fixture
def anchors(clip):
    return get_adapted_text_embedding(clip, "MVTec", "cpu")


def scorer_with(network, anchors, contexts=None, domain="Industrial"):
    """A scorer with these anchors, {class name: [E, 2]}."""

    def anchors_of(batch):
        return torch.stack([anchors[name] for name in batch["class_name"]])

    return AnomalyScorer(network, anchors_of, contexts or {}, 32, domain)


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    """A tiny model with cross-attention and self-reference."""
    clip = create_model(MODEL, 32, "openai", clip_weights=write_world(tmp_path_factory.mktemp("cross")))
    return model_with(clip)


def model_with(clip, **settings):
    torch.manual_seed(3)
    return AdaptedCLIPWithCrossAttention(
        clip,
        text_adapt_until=2,
        image_adapt_until=2,
        cross_attn_heads=4,
        image_cross_attn_weight=0.5,
        self_reference=0.3,
        **settings,
    ).eval()


@torch.no_grad()
def test_an_adapted_models_map_sums_the_levels_and_its_head_looks_at_the_abnormal_anchor(
    adapted, images, anchors
):
    maps, head = scorer_with(adapted, anchors).score(images, "screw")
    seg, det = adapted(images)
    want = sum(
        calculate_similarity_map(level, anchors["screw"], 32, test=True, domain="Industrial") for level in seg
    )
    torch.testing.assert_close(maps, want[:, 0])
    torch.testing.assert_close(head, ((det * anchors["screw"][:, 1]).sum(1) + 1) / 2)
    assert maps.shape == (4, 32, 32) and head.shape == (4,)


@torch.no_grad()
def test_a_map_is_the_sum_of_its_levels_maps_reference_included(images, crossed):
    anchors = F.normalize(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), dim=0)
    scorer = scorer_with(crossed, {})
    maps, head = scorer(images, anchors)
    logits, heads = crossed.compare(images, anchors.expand(4, -1, -1))
    grids = [(level[..., 1] + 1 - level[..., 0]).reshape(4, 1, 4, 4) / 2 for level in logits]
    blurred = [
        F.interpolate(gaussian_blur(grid, 7, 1.0), size=32, mode="bilinear", align_corners=True)
        for grid in grids
    ]
    assert scorer.levels == len(blurred) == 4
    torch.testing.assert_close(maps, sum(blurred)[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head, (heads[:, 1] + 1) / 2)


@torch.no_grad()
def test_one_anchor_pair_for_all_images_is_that_pair_for_each(crossed, images):
    scorer = scorer_with(crossed, {})
    pairs = F.normalize(torch.randn(4, 16, 2, generator=torch.Generator().manual_seed(0)), dim=1)
    maps, head = scorer(images, pairs)
    for row, pair in enumerate(pairs):
        one, alone = scorer(images[row : row + 1], pair)
        # another batch size, so another order of the sums
        torch.testing.assert_close(one[0], maps[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone[0], head[row], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_classs_anchors_and_context_are_what_its_images_are_scored_with(crossed, images):
    contexts = text_context_dictionary(crossed, "MVTec")
    scorer = AnomalyScorer(crossed, fixed_anchors(crossed, "MVTec"), contexts, 32, "Industrial")
    pair, context = scorer.class_anchors("screw"), scorer.class_context("screw")
    torch.testing.assert_close(pair, encode_anchors(crossed, "MVTec", ["screw"])[0], rtol=1e-4, atol=1e-5)
    assert pair.shape == (16, 2) and len(context) == int(contexts["screw"].real.sum())
    maps, head = scorer.score(images, "screw")
    wanted, heads = crossed.compare(
        images, pair.expand(4, -1, -1), text_context_groups(contexts, ["screw"] * 4)
    )
    torch.testing.assert_close(head, (heads[:, 1] + 1) / 2)
    torch.testing.assert_close(maps, scorer(images, pair, context)[0])
    assert not torch.allclose(maps, scorer(images, pair)[0], atol=1e-3)  # no context, another map
    assert scorer_with(crossed, {}).class_context("screw") is None


@torch.no_grad()
def test_with_image_anchors_every_image_has_a_pair_of_its_own(crossed, images):
    anchors_of = anchors_after_stage_1(
        crossed, "MVTec", "image", lambda batch: F.normalize(batch["image"][:, 0, :16, :16], dim=-1)
    )
    scorer = AnomalyScorer(crossed, anchors_of, {}, 32, "Industrial")
    maps, head = scorer.score(images, "screw")
    for row in range(4):
        one, alone = scorer.score(images[row : row + 1], "screw")
        torch.testing.assert_close(one[0], maps[row], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(alone[0], head[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("with_context", "head"), [(False, 1.0), (True, 1.0), (True, 0.0)])
@torch.no_grad()
def test_no_shape_depends_on_a_value_so_that_a_scorer_is_exported_for_batches_of_any_size(
    crossed, images, with_context, head
):
    network = model_with(crossed.clipmodel, self_reference_head=head)
    contexts = text_context_dictionary(network, "MVTec")
    scorer = AnomalyScorer(network, fixed_anchors(network, "MVTec"), contexts, 32, "Industrial")
    given = (
        images[:3],
        scorer.class_anchors("screw"),
        scorer.class_context("screw") if with_context else None,
    )
    size = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(scorer, given, dynamic_shapes=({0: size}, None, None)).module()
    for batch in (images, images[:2], images.repeat(3, 1, 1, 1) + 0.1):
        for found, wanted in zip(exported(batch, *given[1:]), scorer(batch, *given[1:]), strict=True):
            # an exported graph may order its sums otherwise
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_export_leaves_nothing_behind_that_a_later_call_would_stumble_over():
    class Map(torch.nn.Module):
        def forward(self, logits):
            return probability_map(logits, 33)  # a size no other test asks for

    logits = torch.randn(2, 16, 2)
    torch.export.export(Map(), (logits,))
    assert type(probability_map(logits, 33)) is torch.Tensor


def test_a_scorer_is_compiled_into_one_graph(crossed, images):
    scorer = AnomalyScorer(crossed, None, {}, 32, "Industrial")
    pair = F.normalize(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), dim=0)
    with torch.no_grad():
        compiled = torch.compile(scorer, backend="eager", fullgraph=True)
        for found, wanted in zip(compiled(images, pair), scorer(images, pair), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_unadapted_clip_scores_its_last_patches_and_its_cls(clip, open_clip_model, images, anchors):
    scorer = raw_clip_scorer(clip, "MVTec", 32)
    assert scorer.domain == "Industrial" and scorer.levels == 1
    maps, head = scorer.score(images, "bottle")
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
        dataset.append(
            {
                "image": torch.full((3, side, side), float(number)),
                "mask": mask,
                "label": label,
                "class_name": "x",
                "file_name": f"{number}.png",
            }
        )
    return dataset


class ByNumber:
    """A scorer: map and head from the image's number alone."""

    domain, levels = "Industrial", 4

    def score(self, image, class_name):
        number = image[:, 0, 0, 0]
        ramp = torch.linspace(1, 0, 36).reshape(6, 6)
        return number[:, None, None] * ramp, number / 10


by_number = ByNumber()


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
    result = evaluate_dataset(
        by_number,
        sets,
        batch_size=2,
        device="cpu",
        on_class=lambda name, found: seen.append((name, found["files"])),
    )
    found = predict_class(by_number, sets["a"], "a", batch_size=2, device="cpu")
    args = found["masks"], found["labels"], found["maps"], found["head"]
    assert result["classes"]["a"] == class_metrics(*args, "Industrial", 4)
    assert result["upstream"][0] == metrics_eval(*args, "a", "Industrial")
    assert [row["class name"] for row in result["upstream"]] == ["a", "b", "Average"]
    assert result["upstream"][1]["pixel AUC"] is None
    assert result["upstream"][2]["pixel AUC"] == result["upstream"][0]["pixel AUC"]  # b is left out
    assert result["mean"]["pixel_auroc"] == result["classes"]["a"]["pixel_auroc"]  # b is left out
    assert result["classes"]["b"]["image_auroc"] is None
    assert seen == [("a", ["0.png", "1.png", "2.png"]), ("b", ["0.png", "1.png"])]


def test_evaluation_tracks_no_gradients(adapted, anchors):
    class Watched(ByNumber):
        def score(self, image, class_name):
            assert not torch.is_grad_enabled()
            return super().score(image, class_name)

    predict_class(Watched(), items([0, 1]), "x", batch_size=2, device="cpu")
    maps, head = scorer_with(adapted, anchors).score(torch.randn(2, 3, 32, 32), "screw")
    assert not maps.requires_grad and not head.requires_grad


def test_the_defined_means_are_shown_in_one_line():
    assert shown_mean({"mean": {"a": 0.5, "b": None, "images": 3, "c": 0.25}}) == "a 0.5000, c 0.2500"


def test_the_table_is_aligned_in_percent_with_two_decimals():
    text = format_table(
        [{"class name": "a", "pixel AUC": 91.875}, {"class name": "Average", "pixel AUC": 100.0}]
    )
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
    assert found["MVTec"]["image_adapter_2.pth"]["mean"] == {
        "pixel_auroc": 0.75,
        "image_auroc": None,
        "images": 3,
    }
    assert found["VisA"]["image_adapter_2.pth"]["img_size"] == 64
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(encoding="utf-8")))
    assert [(row["dataset"], row["checkpoint"], row["class"]) for row in rows] == [
        (name, f"image_adapter_{n}.pth", row)
        for name, n in (("MVTec", 1), ("MVTec", 2), ("VisA", 2))
        for row in ("a", "mean")
    ]
    assert float(rows[0]["pixel_auroc"]) == third and rows[0]["image_auroc"] == ""
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == [
        "metrics.csv",
        "metrics.json",
    ]


def test_metrics_files_name_the_unnormalised_metrics_as_today_and_as_before(tmp_path):
    row = {"image_auroc_unnormalised": 0.5, "images": 3}
    write_metrics(tmp_path, "MVTec", "a.pth", {"classes": {"a": row}, "mean": row}, {})
    file = tmp_path / "metrics.json"
    everything = json.loads(file.read_text(encoding="utf-8"))
    assert everything["MVTec"]["a.pth"]["mean"] == with_old_names(row) == row | {"own_image_auroc": 0.5}
    for part in (everything["MVTec"]["a.pth"]["mean"], everything["MVTec"]["a.pth"]["classes"]["a"]):
        del part["image_auroc_unnormalised"]  # as an older version left it
    file.write_text(json.dumps(everything), encoding="utf-8")
    write_metrics(tmp_path, "MVTec", "b.pth", {"classes": {"a": row}, "mean": row}, {})
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(encoding="utf-8")))
    assert [one["image_auroc_unnormalised"] for one in rows] == ["0.5"] * 4


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
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
