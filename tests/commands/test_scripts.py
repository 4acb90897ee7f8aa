"""train.py and test.py as a user runs them, on MVTec's layout with PNG, JPG and BMP of unequal sizes."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import forward_utils
import test as test_script
import train as train_script
from files.atomic import sha256
from files.digests import state_digest
from metrics import with_old_names
from model.adapter import AdaptedCLIP
from run_folder import session, state
from training import loaders

ROOT = Path(train_script.__file__).parent
UPSTREAM_ROW = ("pixel AUC", "pixel AP", "image AUC", "image AP")


@pytest.fixture
def run(tmp_path):
    """The folder the flags name."""
    return tmp_path / "run"


def states(folder, *names):
    """Adapter weights of checkpoint files: {file: {tensor name: tensor}}."""
    found = {}
    for name in names:
        content = torch.load(folder / name, weights_only=True)
        found[name] = content["image_adapter" if name.startswith("image") else "text_adapter"]
    return found


def assert_equal(one, other):
    for file, tensors in one.items():
        for name, value in tensors.items():
            assert torch.equal(value, other[file][name]), f"{file}: {name}"


def read(run, name):
    return (run / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_name, weights, data_root):
    """A run of one text and two image epochs, trained once; tests copy what they change."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_script.main(
        [
            "--model_name",
            model_name,
            "--clip_weights",
            str(weights),
            "--img_size",
            "32",
            "--surgery_until_layer",
            "3",
            "--text_adapt_until",
            "2",
            "--image_adapt_until",
            "2",
            "--dataset",
            "MVTec",
            "--data_root",
            str(data_root),
            "--save_path",
            str(folder),
            "--training_mode",
            "full_shot",
            "--text_epoch",
            "1",
            "--image_epoch",
            "2",
            "--text_batch_size",
            "4",
            "--image_batch_size",
            "4",
            "--text_lr",
            "1e-3",
        ]
    )
    return folder


@pytest.fixture
def trained_copy(trained, run):
    shutil.copytree(trained, run)
    return run


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


def history(run):
    (loop,) = json.loads(read(run, "history.json"))["loops"]
    assert loop["loop"] == 1 and set(loop) == {"loop", "text", "image"}
    return loop["text"], loop["image"]


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


@pytest.mark.bit_equality
def test_a_continued_runs_history_holds_every_epoch_once(train_flags, trained, run):
    train_script.main(train_flags)
    train_script.main([*train_flags, "--image_epoch", "2"])

    def without_times(entries):
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]

    assert [without_times(stage) for stage in history(run)] == [
        without_times(stage) for stage in history(trained)
    ]
    train_script.main([*train_flags, "--image_epoch", "2"])  # nothing left to do
    assert [len(stage) for stage in history(run)] == [1, 2]


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


def test_the_adapters_learn_something_visible_on_the_training_images(flags, train_flags, run):
    train_script.main([*train_flags, "--image_epoch", "12", "--image_lr", "3e-3"])
    (result,) = test_script.main(flags)
    assert result["mean"]["pixel_auroc"] > 0.75


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


@pytest.mark.bit_equality
def test_an_image_stage_in_two_calls_equals_one_in_a_single_call(train_flags, trained, run):
    train_script.main(train_flags)
    train_script.main([*train_flags, "--image_epoch", "2"])
    assert_equal(
        states(run, "image_adapter.pth", "image_adapter_1.pth"),
        states(trained, "image_adapter.pth", "image_adapter_1.pth"),
    )
    assert read(run, "train.log").count("training text epoch") == 1


@pytest.mark.bit_equality
def test_a_text_stage_in_two_calls_equals_one_and_its_last_epoch_is_not_skipped(train_flags, run, tmp_path):
    no_images = [*train_flags, "--image_epoch", "0"]
    train_script.main([*no_images, "--text_epoch", "2"])
    train_script.main([*no_images, "--text_epoch", "3"])
    train_script.main([*no_images, "--text_epoch", "3", "--save_path", str(tmp_path / "whole")])
    assert_equal(states(run, "text_adapter.pth"), states(tmp_path / "whole", "text_adapter.pth"))
    assert torch.load(run / "text_adapter.pth", weights_only=True)["epoch"] == 3
    assert re.findall(r"training text epoch (\d):", read(run, "train.log")) == ["0", "1", "2"]


class Killed(Exception):
    """Stands for a process that ends in the middle."""


@pytest.mark.bit_equality
@pytest.mark.parametrize("file", ["text_adapter", "image_adapter_1", "image_adapter", "image_adapter_2"])
def test_a_run_killed_before_any_checkpoint_ends_as_if_never_stopped(
    train_flags, trained, run, monkeypatch, file
):
    save = state.save_checkpoint

    def die(path, content):
        if Path(path).stem == file:
            raise Killed
        save(path, content)

    monkeypatch.setattr(state, "save_checkpoint", die)
    with pytest.raises(Killed):
        train_script.main([*train_flags, "--image_epoch", "2"])
    monkeypatch.undo()
    (run / ".lock").unlink()  # this process lives on and still holds the killed one's lock
    train_script.main([*train_flags, "--image_epoch", "2"])
    files = ("text_adapter.pth", "image_adapter_1.pth", "image_adapter_2.pth", "image_adapter.pth")
    assert_equal(states(run, *files), states(trained, *files))


def test_a_finished_run_started_again_changes_nothing(train_flags, trained_copy):
    before = (trained_copy / "image_adapter.pth").read_bytes()
    train_script.main([*train_flags, "--image_epoch", "2"])
    assert (trained_copy / "image_adapter.pth").read_bytes() == before


def test_continuing_with_other_flags_is_refused(train_flags, trained_copy):
    with pytest.raises(RuntimeError, match="other settings: --text_lr was 0.001, is 0.5"):
        train_script.main([*train_flags, "--text_lr", "0.5"])


def test_a_run_stopped_after_its_text_stage_continues_with_its_own_flags_only(train_flags, trained_copy):
    for path in trained_copy.glob("image_adapter*.pth"):
        path.unlink()
    with pytest.raises(RuntimeError, match="text_adapter.pth belongs to .* --seed was 111, is 5"):
        train_script.main([*train_flags, "--seed", "5"])


def test_files_of_aa_clip_resume_and_test(train_flags, flags, trained_copy):
    for name in ("text_adapter", "image_adapter", "image_adapter_2"):
        content = torch.load(trained_copy / f"{name}.pth", weights_only=True)
        stage = name.split("_")[0]
        torch.save(
            {key: content[key] for key in ("epoch", f"{stage}_adapter", f"{stage}_optimizer")},
            trained_copy / f"{name}.pth",
        )
    (result,) = test_script.main(flags)
    assert result["mean"]["images"] == 12
    train_script.main([*train_flags, "--image_epoch", "3"])
    assert (trained_copy / "image_adapter_3.pth").is_file()
    assert "no RNG state" in read(trained_copy, "train.log")


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


def test_testing_a_folder_without_a_run_says_what_to_do(flags, run):
    with pytest.raises(FileNotFoundError, match="train with --save_path .*--raw_clip"):
        test_script.main(flags)


@pytest.mark.bit_equality
@pytest.mark.parametrize(
    "damaged", [("image_adapter",), ("image_adapter", "image_adapter_2"), ("text_adapter",)]
)
def test_a_damaged_checkpoint_stops_testing_and_training_goes_on_from_the_one_before(
    train_flags, flags, tmp_path, damaged
):
    longer = [*train_flags, "--text_epoch", "2", "--image_epoch", "3"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    train_script.main([*longer[:-1], "2"])
    train_script.main([*longer, "--save_path", str(whole)])
    for name in damaged:
        file = run / f"{name}.pth"
        file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(RuntimeError, match=f"{damaged[0]}.pth .* is damaged"):
        test_script.main(flags)
    train_script.main(longer)
    files = ("text_adapter.pth", "image_adapter_3.pth", "image_adapter.pth")
    assert_equal(states(run, *files), states(whole, *files))
    assert re.search(rf"WARNING {damaged[0]}.pth is damaged: going on from ", read(run, "train.log"))
    test_script.main(flags)


def test_a_finished_run_whose_last_file_is_damaged_is_whole_after_another_start(
    train_flags, flags, trained_copy
):
    path = trained_copy / "image_adapter.pth"
    path.write_bytes(path.read_bytes()[:-300])
    train_script.main([*train_flags, "--image_epoch", "2"])
    assert path.read_bytes() == (trained_copy / "image_adapter_2.pth").read_bytes()
    test_script.main(flags)


def test_with_every_checkpoint_damaged_training_stops_and_says_what_to_delete(train_flags, trained_copy):
    for path in trained_copy.glob("image_adapter*.pth"):
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="No intact checkpoint is left before image_adapter.pth: delete it"):
        train_script.main([*train_flags, "--image_epoch", "3"])


def test_training_and_testing_delete_what_killed_processes_left(train_flags, flags, trained_copy):
    left = [trained_copy / f".{name}.ab_cd123.tmp" for name in ("image_adapter.pth", "metrics.json")]
    (trained_copy / "scores" / "MVTec").mkdir(parents=True)
    left.append(trained_copy / "scores" / "MVTec" / ".image_adapter.npz.ab_cd123.tmp")
    for main, argv in ((train_script.main, [*train_flags, "--image_epoch", "2"]), (test_script.main, flags)):
        for path in left:
            path.touch()
        main(argv)
        assert not any(path.exists() for path in left)
    assert "left unfinished: .image_adapter.pth.ab_cd123.tmp" in read(trained_copy, "train.log")


def test_another_backbone_of_the_same_shapes_is_refused_by_testing_and_resuming(
    train_flags, flags, trained_copy, weights, tmp_path
):
    state = load_file(weights)
    save_file(state | {"logit_scale": state["logit_scale"] + 1}, tmp_path / "other.safetensors")
    other = ["--clip_weights", str(tmp_path / "other.safetensors")]
    told = rf"backbone tiny.safetensors \(SHA-256 {sha256(weights)}\), this one is other.safetensors .*--clip_weights"
    with pytest.raises(RuntimeError, match=told):
        test_script.main([*flags, *other])
    with pytest.raises(RuntimeError, match=told):
        train_script.main([*train_flags, *other, "--image_epoch", "3"])


def test_the_same_backbone_in_another_kind_of_file_is_accepted(flags, trained_copy, weights, tmp_path):
    torch.save(load_file(weights), tmp_path / "same.pt")
    test_script.main([*flags, "--clip_weights", str(tmp_path / "same.pt")])


def test_a_second_process_in_the_same_folder_is_refused(train_flags, run):
    code = f"from utils import lock_run; lock = lock_run({str(run)!r}); print('locked', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(RuntimeError, match="another process is working in"):
            train_script.main(train_flags)
    finally:
        other.communicate(b"\n")
    train_script.main(train_flags)


@pytest.mark.bit_equality
def test_workers_that_live_from_epoch_to_epoch_change_no_number(train_flags, run, tmp_path):
    train_flags = [*train_flags, "--image_epoch", "2", "--image_batch_size", "3"]
    train_script.main(train_flags)
    train_script.main([*train_flags, "--workers", "2", "--save_path", str(tmp_path / "other")])
    files = ("text_adapter.pth", "image_adapter.pth")
    assert_equal(states(run, *files), states(tmp_path / "other", *files))


def test_the_parity_kit_and_its_golden_values_are_there_and_a_changed_value_is_found():
    sys.path.insert(0, str(ROOT / "tests" / "parity"))
    try:
        import parity
    finally:
        sys.path.pop(0)
    golden = dict(np.load(ROOT / "tests" / "parity" / "golden_seed7.npz"))
    assert {key.split(".")[0] for key in golden} >= {
        "tokens",
        "clip",
        "surgery",
        "adapted",
        "stage1",
        "stage2",
    }
    values = {key: value for key, value in golden.items() if key not in ("seed", "dataset", "classes")}
    assert parity.compare(values, values)[1] == []
    changed = values | {"stage1.losses": values["stage1.losses"] * 1.01}
    del changed["tokens"]
    assert [line.split(":")[0] for line in parity.compare(changed, values)[1]] == ["tokens", "stage1.losses"]


@pytest.mark.parametrize(
    "changed, told",
    [
        (["--text_epoch", "2"], "--text_epoch was 1, is 2"),  # stage 2 was trained on the old anchors
        (["--text_epoch", "0"], "holds a text_adapter.pth"),
        (["--image_epoch", "2", "--milestones", "0.5", "0.8"], "--milestones was"),
    ],
)
def test_a_stage_is_not_extended_under_what_was_built_on_it(train_flags, changed, told):
    train_script.main(train_flags)
    with pytest.raises((RuntimeError, ValueError), match=told):
        train_script.main([*train_flags, *changed])


def test_a_run_with_fractional_milestones_is_not_extended(train_flags):
    corrected = [*train_flags, "--milestones", "0.5", "0.8"]
    train_script.main(corrected)
    with pytest.raises(RuntimeError, match="--image_epoch was 1, is 2"):
        train_script.main([*corrected, "--image_epoch", "2"])


def test_an_error_is_logged_in_the_runs_folder(train_flags, tmp_path):
    with pytest.raises(FileNotFoundError):
        train_script.main([*train_flags, "--data_root", str(tmp_path / "nowhere")])
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "stopped by FileNotFoundError" in log and "nowhere" in log
