"""Configuration files: what `--config` reads and refuses, what a run keeps, and those that come along in configs/."""

import dataclasses
from pathlib import Path

import pytest
import yaml

import test as test_script
import train as train_script
import train_cross_attention
import train_cross_attention_feedback as feedback_script
from files.command import run_main
from run_folder import flags
from run_folder.config_file import CONFIG_FILE, read_config, write_config
from run_folder.settings import BASELINE_GROUPS, CROSS_ATTENTION_GROUPS
from training.feedback_recipes import GROUPS as FEEDBACK_GROUPS
from training.feedback_recipes import fill_in

ROOT = Path(train_script.__file__).parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SCRIPTS = {  # script: (groups, defaults) of its command line
    "train.py": (train_script.GROUPS, {"save_path": train_script.KIND.save_path}),
    "train_cross_attention.py": (
        train_cross_attention.GROUPS,
        {"save_path": train_cross_attention.KIND.save_path},
    ),
    "train_cross_attention_feedback.py": (FEEDBACK_GROUPS, feedback_script.DEFAULTS),
    "test.py": (test_script.GROUPS, test_script.DEFAULTS),
}


@pytest.fixture
def parse_with(tmp_path):
    """Function (text of a file, *flags) -> settings."""

    def parse(text, *argv, groups=BASELINE_GROUPS):
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return flags.parse("", groups, ["--config", str(path), *argv])

    return parse


def test_a_file_counts_as_typed_and_a_typed_flag_wins(parse_with):
    text = "img_size: 240\nrelu: true\ntext_lr: 1e-4\nimage_lr: 1\nmilestones: [0.5, 1]\nworkers: 2\ndata_root: null\n"
    settings = parse_with(text, "--img_size", "480")
    assert settings.model.img_size == 480 and settings.model.relu is True
    assert settings.training.text_lr == 1e-4  # which YAML reads as text
    assert settings.training.image_lr == 1.0 and type(settings.training.image_lr) is float
    assert settings.corrections.milestones == [0.5, 1.0] and settings.run.workers == 2
    assert settings.explicit == {
        "img_size",
        "relu",
        "text_lr",
        "image_lr",
        "milestones",
        "workers",
        "data_root",
    }
    assert "config" not in settings.record()


def test_a_file_beats_the_backbones_own_defaults_and_may_name_the_backbone(parse_with):
    settings = parse_with("model_name: ViT-Tiny-8-demo\ntext_batch_size: 3\n")
    assert (settings.training.text_batch_size, settings.training.image_batch_size) == (3, 8)
    assert settings.model.img_size == 128


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text_lrr: 1", "'text_lrr' is no flag of this command (do you mean text_lr"),
        ("zzz: 1", "'zzz' is no flag of this command; --help"),
        ("img_size: big", "img_size is 'big': expected a whole number"),
        ("img_size: 3.5", "img_size is 3.5: expected a whole number"),
        ("img_size: true", "img_size is True: expected a whole number"),
        ("img_size: null", "img_size is None: expected a whole number"),
        ("relu: 1", "relu is 1: expected true or false"),
        ("text_lr: fast", "text_lr is 'fast': expected a number"),
        ("dataset: 12", "dataset is 12: expected text"),
        ("shot: [4]", "shot is [4]: expected a whole number"),
        ("training_mode: no_shot", "training_mode is 'no_shot': expected one of few_shot, full_shot"),
        ("milestones: 0.5", "milestones is 0.5: expected a list"),
        ("milestones: []", "milestones is []: expected a list"),
        ("milestones: [half]", "milestones is 'half': expected a number"),
        ("workers: many", "--workers many: expected 0 or more processes"),
        ("- seed", "expected a mapping"),
        ("seed: 1\nseed: 2", "stands twice"),
        ("mixed_precision: fp8", "mixed_precision is 'fp8': expected one of no, bf16, fp16"),
        ("mixed_precision: [bf16]", "mixed_precision is ['bf16']: expected one of"),
        (
            "precision: fp32\nmixed_precision: bf16",
            "precision 'fp32' and mixed_precision bf16 are one setting",
        ),
    ],
)
def test_what_a_flag_cannot_be_is_refused_with_key_value_and_expectation(parse_with, text, said, tmp_path):
    with pytest.raises(ValueError) as refused:
        parse_with(text)
    assert said in str(refused.value) and str(tmp_path / "settings.yaml") in str(refused.value)


@pytest.mark.parametrize(("word", "precision"), [("no", "fp32"), ("bf16", "bf16"), ("'no'", "fp32")])
def test_mixed_precision_is_another_name_of_precision_in_a_file_too(parse_with, word, precision):
    settings = parse_with(f"mixed_precision: {word}\n")  # a bare no is False in YAML 1.1
    assert settings.training.precision == precision and settings.explicit == {"precision"}
    assert parse_with(f"mixed_precision: {word}\n", "--precision", "fp16").training.precision == "fp16"


def test_a_list_of_a_fixed_number_of_values_is_held_to_it(parse_with):
    assert parse_with("betas: [0.5, 0.9]", groups=FEEDBACK_GROUPS).feedback.betas == [0.5, 0.9]
    with pytest.raises(ValueError, match=r"betas is \[0.5\]: expected a list of 2 values"):
        parse_with("betas: [0.5]", groups=FEEDBACK_GROUPS)


def test_a_missing_file_ends_a_command_in_one_sentence(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(tmp_path / "none.yaml")])
    with pytest.raises(SystemExit) as end:
        run_main(train_script.main)
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: no file '")


def test_a_typed_flag_that_stands_for_others_beats_the_files_values_of_them(parse_with, tmp_path):
    plain = flags.parse("", BASELINE_GROUPS, ["--seed", "5"])
    write_config(tmp_path, plain.groups().values(), "train.py")
    corrected = flags.parse("", BASELINE_GROUPS, ["--config", str(tmp_path / CONFIG_FILE), "--corrected"])
    assert corrected.corrections.head_temperature == 100 and corrected.run.seed == 5
    kept = parse_with("head_temperature: 1\n", "--corrected")  # which says nothing of --corrected
    assert kept.corrections.head_temperature == 1 and kept.corrections.text_cls_weight == 1

    v1 = fill_in(flags.parse("", FEEDBACK_GROUPS, []))
    write_config(tmp_path, v1.groups().values(), "train.py")
    v2 = flags.parse("", FEEDBACK_GROUPS, ["--config", str(tmp_path / CONFIG_FILE), "--recipe", "v2"])
    assert fill_in(v2).feedback == fill_in(flags.parse("", FEEDBACK_GROUPS, ["--recipe", "v2"])).feedback


@pytest.mark.parametrize("groups", [BASELINE_GROUPS, CROSS_ATTENTION_GROUPS, FEEDBACK_GROUPS])
def test_what_a_run_keeps_is_read_back_as_the_same_settings(groups, tmp_path):
    argv = "--text_lr 3e-7 --milestones 0.25 --corrected --workers auto --data_root x:y --seed 7".split()
    settings = flags.parse("", groups, argv)
    if settings.feedback is not None:
        settings = fill_in(settings)
    write_config(tmp_path, settings.groups().values(), "train.py")
    again = flags.parse("", groups, ["--config", str(tmp_path / CONFIG_FILE)])
    assert again.record() == settings.record()
    assert (fill_in(again) if again.feedback is not None else again).record() == settings.record()


def test_the_kept_file_is_plain_yaml_by_groups_and_says_its_command(tmp_path):
    write_config(tmp_path, flags.parse("", BASELINE_GROUPS, []).groups().values(), "train.py")
    text = (tmp_path / CONFIG_FILE).read_text(encoding="utf-8")
    assert text.startswith("# Every flag of this run") and "python train.py --config config.yaml" in text
    assert "\n# data\ndataset: VisA\n" in text
    assert yaml.safe_load(text)["milestones"] == [16000.0, 32000.0]


def test_semantic_fill_takes_what_it_requires_from_a_file(tmp_path):
    settings = pytest.importorskip("synthesis.settings")
    path = tmp_path / "fill.yaml"
    path.write_text("data: triptychs\nout: run\nsteps: 5\nlr: null\n", encoding="utf-8")
    found = settings.parse_flags("", ["--config", str(path), "--steps", "6"])
    assert (found.run.data, found.run.out, found.training.steps) == ("triptychs", "run", 6)
    path.write_text("data: triptychs\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        settings.parse_flags("", ["--config", str(path)])  # --out is still missing


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_every_configuration_that_comes_along_is_one_of_the_command_it_names(path):
    command = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# python ").split()
    groups, defaults = SCRIPTS[command[0]]
    assert command[1:] == ["--config", path.relative_to(ROOT).as_posix()]
    settings = flags.parse("", groups, ["--config", str(path)], defaults)
    fields = [one for group in groups.values() for one in dataclasses.fields(group)]
    assert settings.explicit == read_config(path, fields).keys()
    if settings.feedback is not None:
        fill_in(settings)
    if path.parent.name == "aa_clip":  # AA-CLIP's settings are its defaults, the data and the folder aside
        usual = flags.parse("", groups, [], defaults).record()
        moved = {key for key, value in settings.record().items() if value != usual[key]}
        assert moved <= {"dataset", "training_mode", "shot", "save_path"}


def test_there_is_a_configuration_of_every_pair_and_shot_of_aa_clips_tables():
    names = {path.stem for path in CONFIGS}
    shots = {f"{data}_{shot}_shot" for data in ("visa", "mvtec") for shot in ("full", 2, 16, 64)}
    assert names >= shots | {"visa_to_mvtec", "mvtec_to_visa", "visa_to_btad", "visa_to_mpdd"}
    assert names >= {"cross_attention", "feedback_v1", "feedback_v2", "self_reference", "baseline_corrected"}


def test_a_test_configuration_leads_to_the_folder_its_training_writes():
    for path in CONFIGS:
        if path.parent.name == "test":
            trained = path.parent.parent / f"{path.stem.partition('_to_')[0]}_full_shot.yaml"
            folders = [
                yaml.safe_load(one.read_text(encoding="utf-8"))["save_path"] for one in (path, trained)
            ]
            assert folders[0] == folders[1]
