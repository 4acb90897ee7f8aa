"""AA-CLIP's Python names, typed as its users type them: docs/drop-in.md."""

import ast
import re
import subprocess
from importlib import import_module
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import get_dataset
from dataset.constants import PROMPTS
from forward_utils import (
    class_prompts,
    class_tokens,
    get_adapted_single_class_text_embedding,
    prompt,
    prompt_abnormal,
    prompt_normal,
    prompt_state,
    prompt_templates,
    visualize,
)
from model.adapter import AdaptedCLIP
from model.adapter_modules import SimpleAdapter
from model.tokenizer import tokenize
from utils import cos_sim

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def names_and_calls():
    """Both tables of the document as text: (names by module, call forms)."""
    names, calls = (ROOT / "docs" / "drop-in.md").read_text(encoding="utf-8").split("\nCall forms:\n")
    return names.split("## Names")[1], calls.split("What cannot be kept:")[0]


def test_every_name_in_the_documents_table_can_be_imported(names_and_calls):
    rows = [line.split("|")[1:3] for line in names_and_calls[0].splitlines() if line.startswith("| `")]
    assert len(rows) >= 6
    for modules, names in rows:
        modules, groups = re.findall(r"`([\w.]+)`", modules), names.split(";")
        for module, group in zip(modules, groups, strict=True):
            for name in re.findall(r"`(\w+)[`(]", group):
                assert hasattr(import_module(module), name), f"{module}.{name}"


def test_the_documents_call_forms_are_the_functions_own(names_and_calls):
    found = {}
    for name, arguments in re.findall(r"^\| `(\w+)\(([^\")]*)\)`", names_and_calls[1], re.MULTILINE):
        modules = ("dataset", "forward_utils", "model.adapter", "model.adapter_modules", "utils")
        owner = next(module for module in map(import_module, modules) if hasattr(module, name))
        found[name] = [argument.strip("* ").split("=")[0] for argument in arguments.split(",")]
        own = list(signature(getattr(owner, name)).parameters)
        assert own[: len(found[name])] == found[name], name
        assert len(own) == len(found[name]) or name == "get_dataset"
    assert {"get_dataset", "AdaptedCLIP", "SimpleAdapter", "cos_sim", "visualize", "FocalLoss"} == set(found)


def test_get_dataset_takes_positions_and_aa_clips_keywords_for_training(data_root, lines, monkeypatch):
    monkeypatch.setenv("AACLIP_DATA", str(data_root))
    text_set, image_set = get_dataset("MVTec", 32, "few_shot", 2, "train", lines[0])
    assert len(text_set) == len(image_set) == 4 and any("2-shot" in line for line in lines[1])
    by_name = get_dataset(
        dataset_name="MVTec", img_size=32, training_mode="few_shot", shot=2, stage="train", logger=lines[0]
    )
    assert [len(one) for one in by_name] == [4, 4]


def test_get_dataset_needs_no_training_mode_at_test(data_root, lines, monkeypatch):
    monkeypatch.setenv("AACLIP_DATA", str(data_root))
    sets = get_dataset("MVTec", 32, None, 4, "test", logger=lines[0])
    assert {name: len(one) for name, one in sets.items()} == {"bottle": 6, "screw": 6}
    assert list(get_dataset("MVTec", 32, None, 4, stage="test")) == list(sets)
    assert list(get_dataset("MVTec", 32, None, 4, split="test")) == list(sets)


def test_get_dataset_refuses_training_without_a_mode_and_two_words_for_one_argument():
    with pytest.raises(ValueError, match="training_mode is None: expected few_shot or full_shot"):
        get_dataset("MVTec", 32, None, 4, stage="train")
    with pytest.raises(ValueError, match="split 'test' and stage 'train' are two names of one argument"):
        get_dataset("MVTec", 32, None, 4, "test", stage="train")
    with pytest.raises(ValueError, match="split is None: expected train or test"):
        get_dataset("MVTec", 32, "full_shot", 4)


@pytest.mark.bit_equality
def test_adapted_clip_takes_positions_names_and_arguments_nobody_reads(clip, images):
    def first_values(*positions, **names):
        torch.manual_seed(3)
        return AdaptedCLIP(*positions, **names)

    by_position = first_values(clip, 0.2, 0.3, 2, 1, [2, 4], True)
    names = {
        "text_adapt_weight": 0.2,
        "image_adapt_weight": 0.3,
        "text_adapt_until": 2,
        "image_adapt_until": 1,
    }
    with pytest.warns(UserWarning, match="reads no argument image_encoder"):
        by_name = first_values(clip_model=clip, **names, levels=[2, 4], relu=True, image_encoder=clip.visual)
    assert list(by_position.state_dict()) == list(by_name.state_dict())
    with torch.no_grad():
        assert torch.equal(by_position(images)[1], by_name(images)[1])


def test_a_slip_of_the_pen_is_no_argument_nobody_reads(clip):
    with pytest.raises(TypeError, match="no argument is called image_adapt_untill: write image_adapt_until"):
        AdaptedCLIP(clip, text_adapt_until=2, image_adapt_untill=2)


def test_a_simple_adapter_keeps_the_width_unless_told():
    assert SimpleAdapter(5)(torch.zeros(2, 5)).shape == (2, 5)
    assert SimpleAdapter(5, 3)(torch.zeros(2, 5)).shape == SimpleAdapter(5, c_out=3)(torch.zeros(2, 5)).shape
    assert SimpleAdapter(c_in=5, c_out=3).fc[0].weight.shape == (3, 5)


def test_cos_sim_is_every_row_against_every_row():
    a, b = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [-6.0, -8.0]])
    torch.testing.assert_close(cos_sim(a, b), torch.tensor([[0.6, 0.8, -1.0], [0.0, 0.0, 0.0]]))
    assert cos_sim(a[0][None] * 1e-4, b, eps=1.0)[0, 0] == pytest.approx(3e-4)
    batched = cos_sim(a.expand(2, -1, -1), b.expand(2, -1, -1))
    torch.testing.assert_close(batched[1], cos_sim(a, b))


def test_visualize_takes_save_dir(tmp_path):
    folder = visualize(
        pixel_label=np.zeros((1, 1, 8, 8)),
        pixel_preds=np.zeros((1, 8, 8)),
        file_names=["a.png"],
        save_dir=str(tmp_path),
        dataset_name="MVTec",
        class_name="bottle",
    )
    assert (folder / "a.png").is_file() and tmp_path in folder.parents


def test_the_prompts_parts_are_in_forward_utils_and_are_the_constants(monkeypatch):
    assert prompt is PROMPTS
    assert prompt_normal == ["{}", "a {}", "the {}"] and prompt_abnormal[0] == "a damaged {}"
    assert prompt_state == [prompt_normal, prompt_abnormal] and prompt_templates == ["{}.", "a photo of {}."]
    before = class_tokens("MVTec", "wood")[0]
    prompt_state[1].append("a rotten {}")
    try:
        assert class_prompts("wood surface")[1][-1] == "a photo of a rotten wood surface."
        assert (
            len(class_tokens("MVTec", "wood")[0]) == len(before) + 2
        )  # an edit counts after a first use too
    finally:
        prompt_state[1].pop()
    assert torch.equal(class_tokens("MVTec", "wood")[0], before)


@pytest.mark.parametrize("dataset", ["MVTec", "a dataset nobody declared"])
def test_the_class_object_has_prompts_that_name_no_product(adapted, dataset):
    tokens, normal = class_tokens(dataset, "object")
    assert normal == 6 and torch.equal(tokens[1], tokenize("a photo of object.")[0])
    anchors = get_adapted_single_class_text_embedding(adapted, dataset, "object", "cpu")
    assert anchors.shape == (16, 2)


def test_a_class_that_is_called_object_keeps_its_own_name(monkeypatch):
    monkeypatch.setitem(import_module("dataset.constants").REAL_NAMES, "Own", {"object": "brass disc"})
    assert torch.equal(class_tokens("Own", "object")[0][1], tokenize("a photo of brass disc.")[0])


def test_scikit_learn_is_a_requirement_of_the_detector():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("scikit-learn") for line in lines)


def test_nothing_needs_the_window_system_that_opencvs_headless_build_lacks():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    windows = {"imshow", "waitKey", "namedWindow", "destroyAllWindows", "destroyWindow", "selectROI"}
    used = {
        node.attr
        for name in listed
        if (ROOT / name).is_file()
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "cv2"
    }
    assert "imread" in used and not used & windows
