"""Every command's flags and defaults, --corrected, the backbones' own: run_folder/flags.py, settings.py."""

import argparse
import dataclasses
import json
import re

import pytest

import test as test_script
import train as train_script
import train_cross_attention
import train_cross_attention_feedback
import train_cross_attention_feedback_v2
from evaluation.run import GROUPS as TEST_GROUPS
from model.settings import MAY_CHANGE, MUST_AGREE, ModelSettings, SelfReferenceSettings, option
from run_folder import flags
from run_folder.settings import (
    BASELINE_GROUPS,
    CROSS_ATTENTION_GROUPS,
    DEVIATIONS,
    RunSettings,
    Settings,
    corrections_in,
)
from training.feedback_recipes import GROUPS as FEEDBACK_GROUPS

UPSTREAM_TRAIN = {
    "model_name": "ViT-L-14-336",
    "img_size": 518,
    "surgery_until_layer": 20,
    "relu": False,
    "dataset": "VisA",
    "training_mode": "few_shot",
    "shot": 32,
    "text_batch_size": 16,
    "image_batch_size": 2,
    "text_epoch": 5,
    "image_epoch": 20,
    "text_lr": 1e-5,
    "image_lr": 5e-4,
    "criterion": ["dice_loss", "focal_loss"],
    "seed": 111,
    "save_path": "ckpt/baseline",
    "text_norm_weight": 0.1,
    "text_adapt_weight": 0.1,
    "image_adapt_weight": 0.1,
    "text_adapt_until": 3,
    "image_adapt_until": 6,
}
UPSTREAM_TEST = {
    "model_name": "ViT-L-14-336",
    "img_size": 518,
    "relu": False,
    "dataset": "MVTec",
    "shot": 4,
    "batch_size": 32,
    "seed": 111,
    "save_path": "ckpt/baseline",
    "visualize": False,
    "text_norm_weight": 0.1,
    "text_adapt_weight": 0.1,
    "image_adapt_weight": 0.1,
    "text_adapt_until": 3,
    "image_adapt_until": 6,
}
KEPT = {
    "text_loss_levels": "last",
    "quick_gelu": False,
    "surgery_attention": "batch",
    "head_temperature": 1.0,
    "milestones": [16000, 32000],
    "text_cls_weight": 0.0,
}
CORRECTED = {
    "text_loss_levels": "all",
    "quick_gelu": True,
    "surgery_attention": "spatial",
    "head_temperature": 100.0,
    "milestones": [0.5, 0.8],
    "text_cls_weight": 1.0,
}

# All flags and defaults as the commands' parsers had them before the settings became dataclasses (5ca275b).
TRAIN = (
    UPSTREAM_TRAIN
    | KEPT
    | {
        "clip_weights": None,
        "data_root": None,
        "mask_reading": None,
        "dataset_config": None,
        "real_names": None,
        "text_augmentation": "per_epoch",
        "extra_meta": None,
        "extra_ratio": None,
        "precision": "fp32",
        "tf32": False,
        "activation_checkpointing": "none",
        "compile": False,
        "fused_adam": False,
        "log_every": 50,
        "watch": False,
        "save_every_steps": 0,
        "save_every_minutes": 10.0,
        "on_nan": "stop",
        "corrected": False,
        "device": None,
        "workers": 0,
        "fast": False,
        "matmul": "default",
        "tracker": None,
        "tracker_project": "aa-clip",
    }
)
CACHES = {"feature_cache": None, "feature_cache_gb": 50.0, "image_cache": None, "image_cache_gb": 50.0}
TRAIN |= CACHES
CROSS_ATTENTION_MODEL = {
    "cross_attn_heads": 8,
    "cross_attn_dropout": 0.1,
    "text_cross_attn_weight": 0.1,
    "image_cross_attn_weight": 0.1,
    "context_scope": "class",
    "text_context": "none",
    "context_control": "none",
    "cross_attn_gate": "fixed",
    "image_cross_attn_after": 0,
    "cross_attn_qk_norm": False,
    "cross_attn_temperature": 10.0,
    "cross_attn_lr": None,
    "split_text_context": False,
    "anchor_decoder": 0,
    "anchor_decoder_control": "none",
    "self_reference": 0.0,
    "self_reference_head": 1.0,
    "self_reference_neighbours": 0.08,
    "self_reference_control": "none",
    "anchor_attention": "none",
    "anchor_attention_control": "none",
    "attend_padding": False,
    "no_norm_match": False,
    "no_normalize_context": False,
}
TRAIN_CROSS_ATTENTION = (
    TRAIN
    | CROSS_ATTENTION_MODEL
    | {
        "load_base_text_adapter": None,
        "load_base_image_adapter": None,
        "check_shapes": False,
        "save_path": "ckpt/cross_attention",
    }
)
MIX = {"feedback_mix": 1.0, "feedback_maps": "both"}
TRAIN_FEEDBACK = TRAIN_CROSS_ATTENTION | {
    **MIX,
    "num_feedback_loops": 3,
    "recipe": "v1",
    "loop1_text_epoch": None,
    "loop1_image_epoch": None,
    "loop2_text_epoch": None,
    "loop2_image_epoch": None,
    "loop3_text_epoch": None,
    "loop3_image_epoch": None,
    "optimizer": None,
    "betas": None,
    "weight_decay": None,
    "schedule": None,
    "warmup_epochs": None,
    "clip_norm": None,
    "lr_decay_per_loop": None,
    "epoch_decay_per_loop": None,
    "cross_attn_start_loop": None,
    "plateau_threshold": None,
    "plateau_patience": None,
    "milestones": [0.5, 0.8],  # every recipe's
    "save_path": "ckpt/feedback",
    "eval_every_loop": None,
}
TEST = (
    UPSTREAM_TEST
    | CROSS_ATTENTION_MODEL
    | MIX
    | CACHES
    | {
        "clip_weights": None,
        "surgery_until_layer": 20,
        "quick_gelu": False,
        "surgery_attention": "batch",
        "data_root": None,
        "mask_reading": None,
        "dataset_config": None,
        "real_names": None,
        "device": None,
        "workers": 0,
        "fast": False,
        "matmul": "default",
        "exact_pixels": 64 * 518**2,
        "checkpoint": None,
        "all": False,
        "epoch": None,
        "loop": None,
        "raw_clip": False,
        "local_contrast": False,
        "normal_references": None,
        "reference_weight": None,
        "rarity_alone": False,
        "rarity_weight": 0.0,
        "rarity_control": "none",
        "no_cross_attention": False,
        "errors": 0,
        "attention_of": [],
        "attention_shows": None,
        "attention_word": "damaged",
        "tracker": None,
        "tracker_project": "aa-clip",
    }
)
TRAIN_FEEDBACK_V2 = TRAIN_FEEDBACK | {"recipe": "v2"}
COMMANDS = [
    (train_script, TRAIN),
    (train_cross_attention, TRAIN_CROSS_ATTENTION),
    (train_cross_attention_feedback, TRAIN_FEEDBACK),
    (train_cross_attention_feedback_v2, TRAIN_FEEDBACK_V2),
    (test_script, TEST),
]


class Parsed(Exception):
    """Ends a command as soon as its flags are read."""


@pytest.fixture
def parse_flags_of(monkeypatch):
    """Function (script, argv) -> what the script's main reads from its command line."""

    def parse_flags(script, argv):
        found, parse = [], flags.parse

        def stop(*arguments):
            found.append(parse(*arguments))
            raise Parsed

        with monkeypatch.context() as patched:
            patched.setattr(script, "parse", stop)
            with pytest.raises(Parsed):
                script.main(argv)
        return found[0]

    return parse_flags


def parse_train(*argv):
    return flags.parse("train", BASELINE_GROUPS, list(argv))


def picked(settings, keys):
    record = settings.record()
    return {key: record[key] for key in keys}


@pytest.mark.parametrize("script, upstream", [(train_script, UPSTREAM_TRAIN), (test_script, UPSTREAM_TEST)])
def test_every_flag_of_aa_clip_is_there_with_its_default(script, upstream, parse_flags_of):
    assert picked(parse_flags_of(script, []), upstream) == upstream


@pytest.mark.parametrize(("script", "defaults"), COMMANDS)
def test_every_command_has_the_flags_and_defaults_it_always_had(script, defaults, parse_flags_of):
    settings = parse_flags_of(script, [])
    assert settings.record() == defaults and settings.explicit == frozenset()


@pytest.mark.parametrize(("script", "defaults"), COMMANDS)
def test_every_flag_can_be_given_in_the_form_it_always_had(script, defaults, parse_flags_of):
    """`--flag` for what is off by default, several words for lists, one of the value's kind for all else."""
    texts = {
        "recipe": "v2",
        "optimizer": "adamw",
        "schedule": "cosine",
        "training_mode": "full_shot",
        "precision": "bf16",
        "matmul": "auto",
        "activation_checkpointing": "mlp",
        "on_nan": "skip",
        "context_scope": "batch",
        "text_context": "image",
        "cross_attn_gate": "zero",
        "self_reference_control": "shuffled",
        "rarity_control": "shuffled",
        "anchor_attention": "late",
        "anchor_attention_control": "swapped",
        "surgery_attention": "spatial",
        "text_loss_levels": "all",
        "mask_reading": "upstream",
        "feedback_maps": "trained",
        "anchor_decoder_control": "constant",
        "tracker": "wandb",
        "text_augmentation": "fixed",
    }
    numbers = {int: 7, float: 0.25}
    groups = (*FEEDBACK_GROUPS.values(), *TEST_GROUPS.values())
    fields = [field for group in groups for field in dataclasses.fields(group)]
    kinds = {field.name: flags.value_type(field.type) for field in fields}
    argv, wanted = (
        ["--self_reference", "0.5"],
        {"self_reference": 0.5} if "self_reference" in defaults else {},
    )
    argv = argv if wanted else []
    for flag, default in defaults.items():
        if flag in wanted or flag in ("context_control", "feedback_mix"):  # which go with no other context
            continue
        if default is False:
            words, value = [], True
        elif flag in ("milestones", "betas"):
            words, value = ["0.25", "0.5"], [0.25, 0.5]
        elif isinstance(default, list):
            words, value = ["one", "two"], ["one", "two"]
        else:
            value = texts.get(flag, numbers.get(kinds[flag], "words"))
            words = [str(value)]
        argv, wanted = [*argv, f"--{flag}", *words], wanted | {flag: value}
    settings = parse_flags_of(script, argv)
    assert picked(settings, wanted) == wanted and settings.explicit == wanted.keys()


@pytest.mark.parametrize(("mixed", "precision"), [("no", "fp32"), ("bf16", "bf16"), ("fp16", "fp16")])
def test_mixed_precision_is_another_name_of_precision_and_is_kept_once(mixed, precision, capsys):
    settings = parse_train("--mixed_precision", mixed)
    assert settings.training.precision == precision and settings.explicit == {"precision"}
    assert "mixed_precision" not in settings.record()
    both = parse_train("--precision", precision, "--mixed_precision", mixed)
    assert (both.record(), both.explicit) == (settings.record(), settings.explicit)
    other = "fp32" if precision == "bf16" else "bf16"
    with pytest.raises(SystemExit):
        parse_train("--precision", other, "--mixed_precision", mixed)
    assert f"--precision {other} and --mixed_precision {mixed} are one setting" in capsys.readouterr().err


def test_mixed_precision_typed_wins_over_the_precision_of_a_file(tmp_path):
    (tmp_path / "config.yaml").write_text("precision: fp32\n")
    settings = parse_train("--config", str(tmp_path / "config.yaml"), "--mixed_precision", "bf16")
    assert settings.training.precision == "bf16" and settings.explicit == {"precision"}


def test_a_command_line_of_aa_clip_is_understood():
    settings = parse_train(
        *"--model_name ViT-L-14-336 --img_size 240 --surgery_until_layer 10 --relu --dataset MVTec "
        "--training_mode full_shot --shot 2 --text_batch_size 8 --image_batch_size 4 --text_epoch 1 "
        "--image_epoch 2 --text_lr 1e-4 --image_lr 1e-3 --criterion dice_loss --seed 5 --save_path x "
        "--text_norm_weight 0.2 --text_adapt_weight 0.3 --image_adapt_weight 0.4 --text_adapt_until 1 "
        "--image_adapt_until 2".split()
    )
    model, training = settings.model, settings.training
    assert (model.img_size, model.relu, training.text_lr, training.criterion) == (
        240,
        True,
        1e-4,
        ["dice_loss"],
    )
    assert settings.explicit == set(UPSTREAM_TRAIN)


@pytest.mark.parametrize("script, upstream", [(train_script, UPSTREAM_TRAIN), (test_script, UPSTREAM_TEST)])
def test_help_ends_well_and_lists_every_flag_with_its_default(script, upstream, capsys):
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for flag, default in upstream.items():
        entry = re.search(rf"^  --{flag}\b.*?(?=^  -|^\S|\Z)", shown, re.MULTILINE | re.DOTALL)
        assert f"(default: {default})" in " ".join(entry[0].split()), flag


def test_aa_clips_behaviour_is_the_default_of_every_known_deviation():
    assert picked(parse_train(), KEPT) == KEPT
    assert {flag: kept for flag, (kept, _) in DEVIATIONS.items()} == KEPT


def test_corrected_turns_every_correction_on_and_a_given_flag_wins():
    assert picked(parse_train("--corrected"), CORRECTED) == CORRECTED
    settings = parse_train(
        "--head_temperature", "1", "--corrected", "--no-quick_gelu", "--milestones", "16000", "32000"
    )
    kept = {"head_temperature": 1.0, "quick_gelu": False, "milestones": [16000, 32000]}
    assert picked(settings, CORRECTED) == CORRECTED | kept


@pytest.mark.parametrize(
    ("flag", "value", "want"),
    [
        ("text_loss_levels", ["all"], "all"),
        ("quick_gelu", [], True),
        ("surgery_attention", ["spatial"], "spatial"),
        ("head_temperature", ["100"], 100.0),
        ("milestones", ["0.5", "0.8"], [0.5, 0.8]),
        ("text_cls_weight", ["1.0"], 1.0),
    ],
)
def test_each_correction_has_its_own_flag_and_leaves_the_others_alone(flag, value, want):
    settings = parse_train(f"--{flag}", *value)
    assert picked(settings, KEPT) == KEPT | {flag: want}
    assert corrections_in(settings.record()) == {flag: want}


def test_the_untouched_baseline_has_no_corrections():
    assert corrections_in(parse_train().record()) == {}
    assert corrections_in({"seed": 1}) == {}


def test_the_demo_backbone_brings_its_own_defaults_unless_given(parse_flags_of):
    own = json.loads(flags.MODEL_DEFAULTS.read_text(encoding="utf-8"))["ViT-Tiny-8-demo"]
    assert picked(parse_train("--model_name", "ViT-Tiny-8-demo"), own) == own
    settings = parse_train("--img_size", "64", "--model_name", "ViT-Tiny-8-demo")
    assert settings.model.img_size == 64 and settings.model.surgery_until_layer == own["surgery_until_layer"]
    given_default = parse_train("--img_size=518", "--model_name=ViT-Tiny-8-demo")
    assert given_default.model.img_size == 518  # given, although it is the default's value
    assert given_default.explicit == {"img_size", "model_name"}
    settings = parse_flags_of(test_script, ["--model_name", "ViT-Tiny-8-demo"])
    assert settings.model.img_size == own["img_size"]


def test_quick_gelu_has_nothing_to_correct_in_the_demo_backbone(capsys):
    assert parse_train("--model_name", "ViT-Tiny-8-demo", "--corrected").network.quick_gelu is False
    with pytest.raises(SystemExit) as end:
        parse_train("--model_name", "ViT-Tiny-8-demo", "--quick_gelu")
    assert end.value.code == 2 and "was trained with GELU" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["--text_loss_levels", "some"],
        ["--training_mode", "no_shot"],
        ["--img_size", "big"],
        ["--unheard_of", "1"],
    ],
)
def test_a_wrong_flag_or_value_ends_in_one_sentence(argv, capsys):
    with pytest.raises(SystemExit) as end:
        parse_train(*argv)
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1


def test_a_mistyped_flag_is_answered_with_those_that_may_be_meant(capsys):
    with pytest.raises(SystemExit):
        parse_train("--imgsize", "3")
    assert "unrecognized arguments: --imgsize 3 (do you mean --img_size" in capsys.readouterr().err


def test_given_flags_are_those_on_the_command_line():
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=3)
    parser.add_argument("--switch", action="store_true")
    parser.add_argument("--text", default="x")
    assert flags.flags_given(parser, []) == set()
    assert flags.flags_given(parser, ["--number", "3", "--switch"]) == {"number", "switch"}


def test_settings_are_plain_values_a_safe_load_accepts():
    stored = parse_train("--relu").record()
    assert stored["relu"] is True and "explicit" not in stored
    assert json.loads(json.dumps(stored)) == stored


def test_settings_change_by_the_names_of_their_flags_and_the_old_ones_stay():
    old = parse_train("--relu")
    new = old.change(relu=False, milestones=[0.5], seed=1)
    assert picked(new, ("relu", "milestones", "seed")) == {"relu": False, "milestones": [0.5], "seed": 1}
    assert picked(old, ("relu", "milestones", "seed")) == {
        "relu": True,
        "milestones": [16000.0, 32000.0],
        "seed": 111,
    }
    assert new.record() == old.record() | {"relu": False, "milestones": [0.5], "seed": 1}
    assert new.explicit == old.explicit == {"relu"} and new.data is old.data
    assert old.change() == old
    with pytest.raises(TypeError, match="no setting is called cross_attn_heads, relus"):
        old.change(relus=True, cross_attn_heads=2, seed=1)  # the baseline has no cross-attention
    with pytest.raises(dataclasses.FrozenInstanceError):
        old.model.relu = False


def test_settings_without_a_group_have_none_of_its_flags():
    settings = Settings(model=ModelSettings(), run=RunSettings(seed=5))
    assert list(settings.groups()) == ["model", "run"] and settings.training is None
    assert settings.record()["seed"] == 5 and "text_lr" not in settings.record()
    assert list(settings.record()) == [field.name for field in settings.options()]


def test_lists_of_defaults_are_not_shared():
    first, second = parse_train(), parse_train()
    assert first.corrections.milestones is not second.corrections.milestones
    assert flags.settings_of(BASELINE_GROUPS, {}) == flags.settings_of(BASELINE_GROUPS, TRAIN)


def test_a_flag_is_declared_with_one_field(capsys):
    @dataclasses.dataclass(frozen=True)
    class Own:
        """own"""

        sharpness: float | None = option(
            None, "how sharp", at_test=MUST_AGREE, moves_numbers=False, added_later=True
        )
        quick: bool = option(False, "hurry")
        sides: list = option([1, 2], "two sides", nargs=2, type=int)

    groups = {"model": ModelSettings, "own": Own}
    settings = flags.parse("words", groups, ["--sharpness", "0.5", "--sides", "3", "4"], {"img_size": 8})
    assert settings.own == Own(0.5, False, [3, 4]) and settings.model == ModelSettings(img_size=8)
    assert settings.explicit == {"sharpness", "sides"}
    assert settings.flags(moves_numbers=False, at_test=MUST_AGREE) == ["sharpness"]
    assert settings.defaults(added_later=True) == {"sharpness": None}
    with pytest.raises(SystemExit):
        flags.parse("words", groups, ["--help"])
    told = capsys.readouterr().out
    assert "how sharp\n" in told and "two sides (default: [1, 2])" in told


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 1), (6, 5), (64, 8)])
def test_auto_workers_leave_a_core_to_training_and_are_eight_at_most(monkeypatch, cores, workers):
    monkeypatch.setattr("run_folder.groups.cores", lambda: cores)
    assert parse_train("--workers", "auto").run.workers == workers
    assert parse_train("--workers", "3").run.workers == 3 and parse_train().run.workers == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two processes of torchrun share the cores
    assert parse_train("--workers", "auto").run.workers == {1: 0, 2: 0, 6: 2, 64: 8}[cores]


@pytest.mark.parametrize("word", ["-1", "many", "1.5"])
def test_workers_that_are_no_number_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        parse_train("--workers", word)
    assert f"--workers: invalid worker_count value: '{word}'" in capsys.readouterr().err


# What the flags' metadata say, pinned as the tables they replace said it (runs.py of 5ca275b).
MAY_DIFFER_ON_RESUME = {
    "save_path",
    "device",
    "workers",
    "fast",
    *CACHES,
    "activation_checkpointing",
    "log_every",
    "watch",
    "save_every_steps",
    "save_every_minutes",
    "on_nan",
    "data_root",
    "clip_weights",
    "dataset_config",
    "real_names",
    "criterion",
    "corrected",
    "eval_every_loop",
    "check_shapes",
    "tracker",
    "tracker_project",
}
ADDED_LATER = {
    "mask_reading": None,
    "precision": "fp32",
    "tf32": False,
    "activation_checkpointing": "none",
    "compile": False,
    "fused_adam": False,
    "fast": False,
    "matmul": "default",
    "text_augmentation": "per_epoch",
    **CACHES,
    "log_every": 50,
    "watch": False,
    "save_every_steps": 0,
    "save_every_minutes": 10.0,
    "on_nan": "stop",
    "tracker": None,
    "tracker_project": "aa-clip",
    "context_control": "none",
    "extra_meta": None,
    "extra_ratio": None,
    "feedback_mix": 1.0,
    "feedback_maps": "both",
    "cross_attn_gate": "fixed",
    "image_cross_attn_after": 0,
    "cross_attn_qk_norm": False,
    "cross_attn_temperature": 10.0,
    "cross_attn_lr": None,
    "split_text_context": False,
    "anchor_decoder": 0,
    "anchor_decoder_control": "none",
    "attend_padding": False,
    "self_reference": 0.0,
    "self_reference_head": 1.0,
    "self_reference_neighbours": 0.08,
    "self_reference_control": "none",
    "anchor_attention": "none",
    "anchor_attention_control": "none",
}
MODELS_OWN = {
    "model_name",
    "relu",
    "text_adapt_weight",
    "image_adapt_weight",
    "text_adapt_until",
    "image_adapt_until",
    "cross_attn_heads",
    "text_cross_attn_weight",
    "image_cross_attn_weight",
    "attend_padding",
    "no_norm_match",
    "no_normalize_context",
    "context_control",
    "cross_attn_gate",
    "image_cross_attn_after",
    "cross_attn_qk_norm",
    "cross_attn_temperature",
    "split_text_context",
    "anchor_decoder",
    "anchor_decoder_control",
    "self_reference",
    "self_reference_head",
    "self_reference_neighbours",
    "self_reference_control",
    "anchor_attention",
}
MAY_DIFFER_AT_TEST = {
    "img_size",
    "quick_gelu",
    "text_context",
    "surgery_until_layer",
    "surgery_attention",
    "anchor_attention_control",
}


def test_which_flags_a_resumed_run_may_have_otherwise_and_which_older_runs_lack():
    settings = flags.settings_of(FEEDBACK_GROUPS, {})
    assert set(settings.flags(moves_numbers=False)) == MAY_DIFFER_ON_RESUME
    assert settings.defaults(added_later=True) == ADDED_LATER


def test_which_flags_testing_takes_from_a_checkpoint_and_which_must_agree():
    for groups, mix in ((TEST_GROUPS, MIX), (CROSS_ATTENTION_GROUPS, {})):
        settings = flags.settings_of(groups, {})
        assert set(settings.flags(at_test=MUST_AGREE)) == MODELS_OWN | (mix.keys() & {"feedback_mix"})
        assert set(settings.flags(at_test=MAY_CHANGE)) == MAY_DIFFER_AT_TEST | (
            mix.keys() & {"feedback_maps"}
        )


@pytest.mark.parametrize("flag", [field.name for field in dataclasses.fields(SelfReferenceSettings)][1:])
def test_a_setting_of_no_reference_is_refused_unless_it_is_its_default(flag, capsys):
    default = CROSS_ATTENTION_MODEL[flag]
    other = "constant" if default == "none" else "0.5"
    flags.parse("x", CROSS_ATTENTION_GROUPS, [f"--{flag}", str(default)])
    flags.parse("x", CROSS_ATTENTION_GROUPS, [f"--{flag}", other, "--self_reference", "0.1"])
    with pytest.raises(SystemExit):
        flags.parse("x", CROSS_ATTENTION_GROUPS, [f"--{flag}", other])
    assert f"--{flag} {other}: does nothing without --self_reference" in capsys.readouterr().err


def test_importing_the_scripts_does_nothing_and_their_names_are_upstreams():
    assert callable(train_script.train_text_adapter) and callable(train_script.train_image_adapter)
    assert test_script.__doc__.startswith("Evaluate a run")


def test_cross_attention_without_a_text_side_of_its_own_is_refused(capsys):
    with pytest.raises(SystemExit):
        flags.parse("", train_cross_attention.GROUPS, ["--text_epoch", "0"])
    assert "needs 1 epoch or more; train.py takes plain CLIP" in capsys.readouterr().err
    assert flags.parse("", train_script.GROUPS, ["--text_epoch", "0"]).training.text_epoch == 0
