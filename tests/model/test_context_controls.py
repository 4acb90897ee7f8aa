"""Contexts without information: the controls in forward_utils_cross_attention.py, and a run with them."""

import pytest
import torch
from cross_attention_world import MODEL, write_world

import test
import train_cross_attention
from forward_utils_cross_attention import (
    TextContext,
    batch_scope,
    class_scope,
    controlled_scope,
    controlled_text_contexts,
    scope_named,
    text_context_groups,
)

NAMES = ["bottle", "screw", "bottle", "zipper"]
PATCHES = torch.arange(4.0)[:, None, None].expand(4, 2, 3)  # every image's patches hold its row


@pytest.fixture
def contexts():
    return {
        name: TextContext(torch.full((5, 4), float(row)), torch.tensor([True] * 3 + [False] * 2))
        for row, name in enumerate(("bottle", "screw"))
    }


def test_without_control_scope_and_contexts_are_what_they_were(contexts):
    assert controlled_scope(class_scope, "none") is class_scope
    assert controlled_text_contexts(contexts, "none") is contexts
    assert scope_named("class") is class_scope and scope_named("batch", "none") is batch_scope


def test_other_class_shows_prompts_the_images_of_the_next_class_in_the_batch():
    seen = controlled_scope(class_scope, "other_class")(PATCHES, NAMES)
    assert {name: sorted(set(patches.flatten().tolist())) for name, patches in seen.items()} == {
        "bottle": [1.0],
        "screw": [3.0],
        "zipper": [0.0, 2.0],
    }


def test_other_class_shows_nothing_in_a_batch_of_one_class():
    assert controlled_scope(class_scope, "other_class")(PATCHES[:2], ["screw", "screw"]) == {"screw": None}


@pytest.mark.bit_equality
@pytest.mark.parametrize("scope", [class_scope, batch_scope])
def test_a_constant_image_context_does_not_depend_on_the_images(scope):
    first, second = (controlled_scope(scope, "constant")(images, NAMES) for images in (PATCHES, PATCHES + 7))
    assert set(first) == set(NAMES)
    for name in first:
        assert first[name].shape == (1, 3)
        assert torch.equal(first[name], second[name])
        assert float(first[name].norm()) == pytest.approx(1)


def test_other_class_shows_images_the_prompts_of_the_datasets_next_class(contexts):
    found = controlled_text_contexts(contexts, "other_class")
    assert [float(found[name].tokens[0, 0]) for name in ("bottle", "screw")] == [1.0, 0.0]
    with pytest.raises(ValueError, match="one class alone, 'bottle'"):
        controlled_text_contexts({"bottle": contexts["bottle"]}, "other_class")


@pytest.mark.bit_equality
def test_a_constant_text_context_is_one_token_for_all_classes(contexts):
    groups = text_context_groups(controlled_text_contexts(contexts, "constant"), ["screw", "bottle"])
    assert [rows for rows, _ in groups] == [[0], [1]]
    assert all(torch.equal(tokens, torch.full((1, 4), 0.5)) for _, tokens in groups)


def test_a_run_with_a_control_is_tested_with_it(tmp_path, data_root, tmp_path_factory):
    weights = write_world(tmp_path_factory.mktemp("cross"))
    common = [
        "--model_name",
        MODEL,
        "--clip_weights",
        str(weights),
        "--dataset",
        "MVTec",
        "--data_root",
        str(data_root),
        "--save_path",
        str(tmp_path / "run"),
    ]
    train_cross_attention.main(
        [
            *common,
            "--img_size",
            "32",
            "--text_adapt_until",
            "2",
            "--image_adapt_until",
            "2",
            "--surgery_until_layer",
            "3",
            "--training_mode",
            "full_shot",
            "--text_epoch",
            "1",
            "--image_epoch",
            "1",
            "--image_lr",
            "1e-2",
            "--cross_attn_heads",
            "4",
            "--context_control",
            "constant",
        ]
    )
    stored = torch.load(tmp_path / "run" / "text_context_dict.pth", weights_only=True)["text_context"]
    assert {len(context["tokens"]) for context in stored.values()} == {1}
    (result,) = test.main(common)
    assert result["mean"]["pixel_auroc"] is not None
    with pytest.raises(RuntimeError, match="--context_control was 'constant', is 'none'"):
        test.main([*common, "--context_control", "none"])
    with pytest.raises(RuntimeError, match="whose anchors see no image: leave --text_context image away"):
        test.main([*common, "--text_context", "image"])


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["constant", "--text_context", "image"], "needs --text_context none"),
        (["other_class", "--context_scope", "batch"], "all classes share one context already"),
    ],
)
def test_a_control_that_would_be_none_is_refused(capsys, flags, why):
    with pytest.raises(SystemExit):
        train_cross_attention.main(["--context_control", *flags])
    assert why in capsys.readouterr().err
