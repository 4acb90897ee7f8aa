"""train.py as a user runs it, on MVTec's layout with PNG, JPG and BMP of unequal sizes."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from checkpoint_contents import assert_equal, history, read, states
from safetensors.torch import load_file

import forward_utils
import test as test_script
import train as train_script
from files.atomic import sha256
from files.digests import state_digest
from model.adapter import AdaptedCLIP
from run_folder import session
from training import loaders

ROOT = Path(train_script.__file__).parent


def test_training_writes_upstreams_files_and_log_lines(trained):
    files = {path.name for path in trained.iterdir() if path.suffix in (".pth", ".log")}
    assert files == {
        "text_adapter.pth",
        "image_adapter_1.pth",
        "image_adapter_2.pth",
        "image_adapter.pth",
        "train.log",
    }
    lines = [line.split(" ", 3)[3] for line in read(trained, "train.log").splitlines()]
    kept = [line for line in lines if line.startswith(("training", "loss:"))]
    upstream = [re.sub(r"^loss: \d+\.\d+$", "loss: x", line) for line in kept]
    assert upstream == [
        "training text epoch 0:",
        "loss: x",
        "training image epoch 0:",
        "loss: x",
        "training image epoch 1:",
        "loss: x",
    ]
    assert sum(line.startswith("stage ") for line in lines) == 3
    assert any("none corrected, as in AA-CLIP" in line for line in lines)


@pytest.mark.bit_equality
def test_checkpoints_carry_epoch_flags_versions_scheduler_and_random_state(trained):
    content = torch.load(trained / "image_adapter.pth", weights_only=True)
    assert (
        content["epoch"] == 2
        and content["settings"]["img_size"] == 32
        and content["settings"]["text_lr"] == 1e-3
    )
    assert content["scheduler"]["last_epoch"] == 6 and dict(content["scheduler"]["milestones"]) == {
        16000: 1,
        32000: 1,
    }
    assert content["versions"]["torch"] == torch.__version__ and "torch" in content["rng"]
    assert [entry["epoch"] for entry in content["history"]] == [0, 1]
    last = states(trained, "image_adapter_2.pth")["image_adapter_2.pth"]
    assert_equal(states(trained, "image_adapter.pth"), {"image_adapter.pth": last})


def test_every_file_names_the_backbones_file_and_hash_and_the_log_says_it(trained, weights):
    backbone = {"file": weights.name, "sha256": sha256(weights)}
    for name in ("text_adapter.pth", "image_adapter_1.pth", "image_adapter.pth"):
        stored = torch.load(trained / name, weights_only=True)["backbone"]
        assert stored == backbone | {"tensors": state_digest(load_file(weights))}
    assert f"from {backbone['file']}, SHA-256 {backbone['sha256']}" in read(trained, "train.log")


def test_a_runs_history_holds_what_its_log_says_of_every_epoch(trained):
    text, image = history(trained)
    assert [entry["epoch"] for entry in text] == [0] and [entry["epoch"] for entry in image] == [0, 1]
    assert set(text[0]["terms"]) == {"segmentation", "orthogonality"} and text[0]["lr"] == 1e-3
    assert set(image[0]["terms"]) == {"segmentation", "classification"} and image[0]["lr"] == 5e-4
    logged = re.findall(r"loss: (\S+)", read(trained, "train.log"))
    assert [entry["loss"] for entry in (*text, *image)] == [float(loss) for loss in logged]
    for entry in (*text, *image):
        assert (
            entry["loss"] == pytest.approx(sum(entry["terms"].values()), rel=1e-5)
            and entry["gradients"] == {}
        )


def test_the_adapters_learn_something_visible_on_the_training_images(flags, train_flags, run):
    train_script.main([*train_flags, "--image_epoch", "12", "--image_lr", "3e-3"])
    (result,) = test_script.main(flags)
    assert result["mean"]["pixel_auroc"] > 0.75


def test_without_text_epochs_the_anchors_are_plain_clips_in_training_and_test(
    train_flags, flags, run, monkeypatch
):
    sources = []
    embed = forward_utils.get_adapted_text_embedding

    def remember(model, *rest):
        sources.append(type(model).__name__)
        return embed(model, *rest)

    monkeypatch.setattr(forward_utils, "get_adapted_text_embedding", remember)
    train_script.main([*train_flags, "--text_epoch", "0"])
    assert not (run / "text_adapter.pth").exists()
    test_script.main(flags)
    assert sources == ["CLIP", "CLIP"] and "anchors from plain CLIP" in read(run, "test.log")


@pytest.mark.bit_equality
def test_training_leaves_the_frozen_clip_untouched(train_flags, monkeypatch):
    models, build = [], session.create_model

    def remember(*args, **kwargs):
        models.append(build(*args, **kwargs))
        models.append({name: value.clone() for name, value in models[0].state_dict().items()})
        return models[0]

    monkeypatch.setattr(session, "create_model", remember)
    train_script.main(train_flags)
    clip, before = models
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert all(parameter.grad is None for parameter in clip.parameters())


def first_adapters(clip, seed):
    """AdaptedCLIP with the values a run with this seed starts from."""
    torch.manual_seed(seed)
    return AdaptedCLIP(clip, text_adapt_until=2, image_adapt_until=2)


@pytest.mark.bit_equality
def test_each_stage_changes_its_own_adapter_and_the_seed_decides_their_first_values(train_flags, run, clip):
    first = first_adapters(clip, 111)
    train_script.main([*train_flags, "--text_lr", "0", "--image_lr", "0"])
    found = states(run, "text_adapter.pth", "image_adapter.pth")
    assert_equal(
        found,
        {
            "text_adapter.pth": first.text_adapter.state_dict(),
            "image_adapter.pth": first.image_adapter.state_dict(),
        },
    )


@pytest.mark.bit_equality
def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(train_flags, trained, run, tmp_path):
    files = ("text_adapter.pth", "image_adapter_2.pth")
    train_script.main([*train_flags, "--image_epoch", "2"])
    assert_equal(states(run, *files), states(trained, *files))
    train_script.main(
        [*train_flags, "--image_epoch", "2", "--seed", "5", "--save_path", str(tmp_path / "other")]
    )
    other = states(tmp_path / "other", *files)
    assert not torch.equal(other[files[0]]["0.fc.0.weight"], states(run, *files)[files[0]]["0.fc.0.weight"])


def test_a_corrected_run_differs_records_its_choice_and_testing_says_so(
    train_flags, flags, trained, run, capsys
):
    train_script.main([*train_flags, "--image_epoch", "2", "--corrected"])
    content = torch.load(run / "image_adapter.pth", weights_only=True)
    settings = content["settings"]
    corrected = {
        "text_loss_levels": "all",
        "quick_gelu": True,
        "surgery_attention": "spatial",
        "head_temperature": 100.0,
        "milestones": [0.5, 0.8],
        "text_cls_weight": 1.0,
    }
    assert {key: settings[key] for key in corrected} == corrected
    assert dict(content["scheduler"]["milestones"]) == {3: 1, 5: 1}  # of six batches
    for file in ("text_adapter.pth", "image_adapter.pth"):
        one, other = states(run, file)[file], states(trained, file)[file]
        assert any(not torch.equal(one[name], other[name]) for name in one)
    capsys.readouterr()
    test_script.main(flags)
    assert capsys.readouterr().out.count("trained with corrections of AA-CLIP's known deviations") == 1
    entry = json.loads(read(run, "metrics.json"))["MVTec"]["image_adapter.pth"]
    assert entry["settings"]["surgery_attention"] == "spatial"


@pytest.mark.parametrize(
    "flag",
    [
        "--text_loss_levels=all",
        "--quick_gelu",
        "--surgery_attention=spatial",
        "--text_cls_weight=1",
        "--head_temperature=100",
        "--milestones=0.5",
    ],
)
def test_every_correction_reaches_the_training(train_flags, trained, run, flag):
    train_script.main([*train_flags, "--image_epoch", "2", flag])
    file = "image_adapter.pth" if flag.startswith(("--head", "--miles")) else "text_adapter.pth"
    one, other = states(run, file)[file], states(trained, file)[file]
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_few_shot_training_takes_half_normal_and_half_abnormal_images(train_flags, run, monkeypatch):
    sizes, build = [], loaders.EpochSampler
    monkeypatch.setattr(
        loaders, "EpochSampler", lambda length, seed: sizes.append(length) or build(length, seed)
    )
    train_script.main([*train_flags, "--training_mode", "few_shot", "--shot", "4"])
    assert sizes == [8, 8]


def test_a_shot_that_does_nothing_is_said_and_one_that_nobody_chose_is_not(train_flags, caplog):
    for shot, is_said in ((2, True), (0, False), (32, False)):
        caplog.clear()
        settings = train_script.parse(
            "", train_script.GROUPS, [*train_flags, "--training_mode", "full_shot", "--shot", str(shot)]
        )
        loaders.training_loaders(settings, logging.getLogger("shots"))
        said = f"--shot {shot}: does nothing with --training_mode full_shot" in caplog.text
        assert said == is_said


def test_shot_beyond_the_class_is_refused(train_flags):
    with pytest.raises(ValueError, match="--shot 8 needs 4 normal and 4 anomalous"):
        train_script.main([*train_flags, "--training_mode", "few_shot", "--shot", "8"])


def test_a_missing_data_root_or_weight_file_stops_with_a_remedy(train_flags, flags, tmp_path):
    with pytest.raises(FileNotFoundError, match="--data_root"):
        train_script.main([*train_flags, "--data_root", str(tmp_path / "nowhere")])
    with pytest.raises(FileNotFoundError, match="--clip_weights names .*nowhere.pt"):
        train_script.main(
            [*train_flags, "--clip_weights", "nowhere.pt", "--save_path", str(tmp_path / "second")]
        )


@pytest.mark.bit_equality
def test_workers_that_live_from_epoch_to_epoch_change_no_number(train_flags, run, tmp_path):
    train_flags = [*train_flags, "--image_epoch", "2", "--image_batch_size", "3"]
    train_script.main(train_flags)
    train_script.main([*train_flags, "--workers", "2", "--save_path", str(tmp_path / "other")])
    files = ("text_adapter.pth", "image_adapter.pth")
    assert_equal(states(run, *files), states(tmp_path / "other", *files))


def test_an_error_is_logged_in_the_runs_folder(train_flags, tmp_path):
    with pytest.raises(FileNotFoundError):
        train_script.main([*train_flags, "--data_root", str(tmp_path / "nowhere")])
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "stopped by FileNotFoundError" in log and "nowhere" in log


@pytest.mark.parametrize("command", ["train", "train_cross_attention", "train_cross_attention_feedback"])
def test_names_and_data_are_looked_at_before_any_weight(command, monkeypatch, tmp_path):
    monkeypatch.setattr(session, "create_model", lambda *args, **flags: pytest.fail("looked for weights"))
    main = __import__(command).main
    with pytest.raises(ValueError, match=r"unknown dataset 'visa' \(do you mean VisA\?\)"):
        main(["--dataset", "visa", "--save_path", str(tmp_path / "a")])
    with pytest.raises(FileNotFoundError, match="data root 'nowhere'"):
        main(["--dataset", "VisA", "--data_root", "nowhere", "--save_path", str(tmp_path / "b")])
