"""Every flag of AA-CLIP with its default, --corrected, and the backbones' own defaults: options.py."""

import argparse
import json
import re

import pytest

import options
import test as test_script
import train as train_script

UPSTREAM_TRAIN = {
    "model_name": "ViT-L-14-336", "img_size": 518, "surgery_until_layer": 20, "relu": False, "dataset": "VisA",
    "training_mode": "few_shot", "shot": 32, "text_batch_size": 16, "image_batch_size": 2, "text_epoch": 5,
    "image_epoch": 20, "text_lr": 1e-5, "image_lr": 5e-4, "criterion": ["dice_loss", "focal_loss"], "seed": 111,
    "save_path": "ckpt/baseline", "text_norm_weight": 0.1, "text_adapt_weight": 0.1, "image_adapt_weight": 0.1,
    "text_adapt_until": 3, "image_adapt_until": 6,
}  # fmt: skip
UPSTREAM_TEST = {
    "model_name": "ViT-L-14-336", "img_size": 518, "relu": False, "dataset": "MVTec", "shot": 4, "batch_size": 32,
    "seed": 111, "save_path": "ckpt/baseline", "visualize": False, "text_adapt_weight": 0.1,
    "image_adapt_weight": 0.1, "text_adapt_until": 3, "image_adapt_until": 6,
}  # fmt: skip
KEPT = {"text_loss_levels": "last", "quick_gelu": False, "surgery_attention": "batch", "head_temperature": 1.0,
        "milestones": [16000, 32000], "text_cls_weight": 0.0}  # fmt: skip
CORRECTED = {"text_loss_levels": "all", "quick_gelu": True, "surgery_attention": "spatial", "head_temperature": 100.0,
             "milestones": [0.5, 0.8], "text_cls_weight": 1.0}  # fmt: skip


def parse_train(*argv):
    return options.parse(train_script.build_parser(), list(argv))


def picked(args, keys):
    return {key: getattr(args, key) for key in keys}


@pytest.mark.parametrize("script, upstream", [(train_script, UPSTREAM_TRAIN), (test_script, UPSTREAM_TEST)])
def test_every_flag_of_aa_clip_is_there_with_its_default(script, upstream):
    assert picked(options.parse(script.build_parser(), []), upstream) == upstream


def test_a_command_line_of_aa_clip_is_understood():
    args = parse_train(
        *"--model_name ViT-L-14-336 --img_size 240 --surgery_until_layer 10 --relu --dataset MVTec --training_mode "
        "full_shot --shot 2 --text_batch_size 8 --image_batch_size 4 --text_epoch 1 --image_epoch 2 --text_lr 1e-4 "
        "--image_lr 1e-3 --criterion dice_loss --seed 5 --save_path x --text_norm_weight 0.2 --text_adapt_weight 0.3 "
        "--image_adapt_weight 0.4 --text_adapt_until 1 --image_adapt_until 2".split()
    )
    assert (args.img_size, args.relu, args.text_lr, args.criterion) == (240, True, 1e-4, ["dice_loss"])
    assert set(args.typed) == set(UPSTREAM_TRAIN)


@pytest.mark.parametrize("script, upstream", [(train_script, UPSTREAM_TRAIN), (test_script, UPSTREAM_TEST)])
def test_help_ends_well_and_lists_every_flag_with_its_default(script, upstream, capsys):
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for flag, default in upstream.items():
        entry = re.search(rf"^  --{flag}\b.*?(?=^  -|^\S|\Z)", shown, re.MULTILINE | re.DOTALL)
        assert f"(default: {default})" in " ".join(entry[0].split()), flag


def test_aa_clips_behaviour_is_the_default_of_every_oddity():
    assert picked(parse_train(), KEPT) == KEPT
    assert {flag: kept for flag, (kept, _) in options.ODDITIES.items()} == KEPT


def test_corrected_turns_every_correction_on_and_a_typed_flag_wins():
    assert picked(parse_train("--corrected"), CORRECTED) == CORRECTED
    args = parse_train("--head_temperature", "1", "--corrected", "--no-quick_gelu", "--milestones", "16000", "32000")
    kept = {"head_temperature": 1.0, "quick_gelu": False, "milestones": [16000, 32000]}
    assert picked(args, CORRECTED) == CORRECTED | kept


@pytest.mark.parametrize(("flag", "value", "want"), [
    ("text_loss_levels", ["all"], "all"), ("quick_gelu", [], True), ("surgery_attention", ["spatial"], "spatial"),
    ("head_temperature", ["100"], 100.0), ("milestones", ["0.5", "0.8"], [0.5, 0.8]), ("text_cls_weight", ["1.0"], 1.0),
])  # fmt: skip
def test_each_correction_has_its_own_flag_and_leaves_the_others_alone(flag, value, want):
    args = parse_train(f"--{flag}", *value)
    assert picked(args, KEPT) == KEPT | {flag: want}
    assert options.changed_oddities(options.settings(args)) == {flag: want}


def test_changed_oddities_of_the_untouched_baseline_are_none():
    assert options.changed_oddities(options.settings(parse_train())) == {}
    assert options.changed_oddities({"seed": 1}) == {}


def test_the_demo_backbone_brings_its_own_defaults_unless_typed():
    own = json.loads(options.MODEL_DEFAULTS.read_text(encoding="utf-8"))["ViT-Tiny-8-demo"]
    assert picked(parse_train("--model_name", "ViT-Tiny-8-demo"), own) == own
    args = parse_train("--img_size", "64", "--model_name", "ViT-Tiny-8-demo")
    assert args.img_size == 64 and args.surgery_until_layer == own["surgery_until_layer"]
    typed_default = parse_train("--img_size=518", "--model_name=ViT-Tiny-8-demo")
    assert typed_default.img_size == 518  # typed, although it is the default's value
    assert typed_default.typed == ["img_size", "model_name"]
    args = options.parse(test_script.build_parser(), ["--model_name", "ViT-Tiny-8-demo"])
    assert args.img_size == own["img_size"]


def test_quick_gelu_has_nothing_to_correct_in_the_demo_backbone(capsys):
    assert parse_train("--model_name", "ViT-Tiny-8-demo", "--corrected").quick_gelu is False
    with pytest.raises(SystemExit) as end:
        parse_train("--model_name", "ViT-Tiny-8-demo", "--quick_gelu")
    assert end.value.code == 2 and "was trained with GELU" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--text_loss_levels", "some"], ["--training_mode", "no_shot"], ["--img_size", "big"],
                                  ["--unheard_of", "1"]])  # fmt: skip
def test_a_wrong_flag_or_value_ends_with_the_usage(argv, capsys):
    with pytest.raises(SystemExit) as end:
        parse_train(*argv)
    assert end.value.code == 2 and "usage:" in capsys.readouterr().err


def test_typed_flags_are_those_on_the_command_line():
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=3)
    parser.add_argument("--switch", action="store_true")
    parser.add_argument("--text", default="x")
    assert options.typed_flags(parser, []) == []
    assert options.typed_flags(parser, ["--number", "3", "--switch"]) == ["number", "switch"]


def test_settings_are_plain_values_a_safe_load_accepts():
    stored = options.settings(parse_train("--relu"))
    assert stored["relu"] is True and "typed" not in stored
    assert json.loads(json.dumps(stored)) == stored


def test_importing_the_scripts_does_nothing_and_their_names_are_upstreams():
    assert callable(train_script.train_text_adapter) and callable(train_script.train_image_adapter)
    assert test_script.__doc__.startswith("Evaluate a run")
