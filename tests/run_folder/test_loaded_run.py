"""Trained runs of every kind come back from their folders: run_folder/loaded_run.py."""

import shutil

import pytest
import torch
from cross_attention_world import MODEL, write_world

import test
import train
import train_cross_attention
import train_cross_attention_feedback
from dataset import get_dataset
from evaluation.predictions import evaluate_dataset
from evaluation.run import GROUPS as TEST_GROUPS
from evaluation.scorer import scorer_of
from files.atomic import sha256
from forward_utils import get_adapted_text_embedding
from model.adapter import AdaptedCLIP
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from run_folder.flags import parse
from run_folder.kinds import BASELINE, CROSS_ATTENTION, FEEDBACK
from run_folder.loaded_run import load_run
from training import feedback


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("cross"))


@pytest.fixture(scope="module")
def trained(world, data_root, tmp_path_factory):
    """{name: folder} of one short run of each kind; tests copy what they change."""
    root = tmp_path_factory.mktemp("runs")
    common = [
        "--model_name",
        MODEL,
        "--clip_weights",
        str(world),
        "--img_size",
        "32",
        "--text_adapt_until",
        "2",
        "--image_adapt_until",
        "2",
        "--surgery_until_layer",
        "3",
        "--dataset",
        "MVTec",
        "--data_root",
        str(data_root),
        "--training_mode",
        "full_shot",
        "--text_epoch",
        "1",
        "--image_epoch",
        "2",
        "--text_batch_size",
        "6",
        "--image_batch_size",
        "6",
        "--text_lr",
        "1e-2",
        "--image_lr",
        "1e-2",
    ]
    attending = ["--cross_attn_heads", "4", "--text_context", "train_mean"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(feedback, "draw_curves", lambda path, loops: None)
        train.main([*common, "--save_path", str(root / "baseline")])
        train_cross_attention.main([*common, *attending, "--save_path", str(root / "crossed")])
        train_cross_attention_feedback.main(
            [
                *common,
                *attending,
                "--save_path",
                str(root / "looped"),
                "--num_feedback_loops",
                "2",
                "--cross_attn_start_loop",
                "2",
            ]
        )
    return {name: root / name for name in ("baseline", "crossed", "looped")}


@pytest.fixture
def copied(trained, tmp_path):
    """Function (name) -> a folder of this test's own."""
    return lambda name: shutil.copytree(trained[name], tmp_path / name)


def given(*argv):
    """Settings of test.py's command line."""
    return parse("a test", TEST_GROUPS, list(argv))


def content(folder, file):
    return torch.load(folder / file, weights_only=True)


def as_aa_clip(folder, *files):
    """Take out of checkpoints what AA-CLIP's do not hold."""
    for file in files:
        stored, stage = content(folder, file), file.partition("_")[0]
        kept = {key: stored[key] for key in ("epoch", f"{stage}_adapter", f"{stage}_optimizer")}
        torch.save(kept, folder / file)


def holds(module, state):
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.bit_equality
def test_a_baseline_comes_back_with_its_settings_weights_and_files(trained):
    folder = trained["baseline"]
    run = load_run(folder)
    assert run.kind is BASELINE and type(run.model) is AdaptedCLIP and not run.model.training
    assert run.checkpoint == folder / "image_adapter.pth" and (run.loop, run.adapted_text) == (1, True)
    assert run.files == {name: sha256(folder / name) for name in ("image_adapter.pth", "text_adapter.pth")}
    assert holds(run.model.text_adapter, content(folder, "text_adapter.pth")["text_adapter"])
    assert holds(run.model.image_adapter, content(folder, "image_adapter.pth")["image_adapter"])
    model = run.settings.model
    assert (model.model_name, model.img_size, model.text_adapt_until) == (MODEL, 32, 2)
    assert run.stored == content(folder, "image_adapter.pth")["settings"] and run.stored["text_lr"] == 1e-2
    anchors = get_adapted_text_embedding(run.model, "MVTec", "cpu")
    found = run.anchors("MVTec")({"class_name": ["screw", "bottle"]})
    assert torch.equal(found, torch.stack([anchors["screw"], anchors["bottle"]]))
    assert run.text_contexts("MVTec") == {} and run.mean_anchors == {}


@pytest.mark.bit_equality
def test_a_baseline_without_a_text_adapter_has_plain_clips_anchors(copied, lines, world):
    folder = copied("baseline")
    (folder / "text_adapter.pth").unlink()
    as_aa_clip(folder, "image_adapter.pth")  # files that say how they were trained are refused
    words = f"--model_name {MODEL} --clip_weights {world} --img_size 32 --text_adapt_until 2"
    flags = given(*f"{words} --image_adapt_until 2".split())
    run = load_run(folder, flags=flags, logger=lines[0])
    assert not run.adapted_text and list(run.files) == ["image_adapter.pth"]
    assert any(
        "no text_adapter.pth beside image_adapter.pth: anchors from plain CLIP" in line for line in lines[1]
    )
    plain = get_adapted_text_embedding(run.model.clipmodel, "MVTec", "cpu")["screw"]
    assert torch.equal(run.anchors("MVTec")({"class_name": ["screw"]})[0], plain)


@pytest.mark.bit_equality
def test_a_cross_attention_run_comes_back_with_its_contexts_and_mean_anchors(trained):
    folder = trained["crossed"]
    run = load_run(folder)
    names = ("image_adapter_cross_attn.pth", "text_adapter_cross_attn.pth", "text_context_dict.pth")
    assert run.kind is CROSS_ATTENTION and type(run.model) is AdaptedCLIPWithCrossAttention
    assert run.files == {name: sha256(folder / name) for name in names} and run.attends and run.loop == 1
    assert holds(run.model.text_cross_attn, content(folder, "text_adapter_cross_attn.pth")["text_cross_attn"])
    assert holds(
        run.model.image_cross_attn, content(folder, "image_adapter_cross_attn.pth")["image_cross_attn"]
    )
    stored = content(folder, "text_context_dict.pth")
    contexts = run.text_contexts("MVTec")
    assert sorted(contexts) == sorted(stored["text_context"]) and len(contexts) == 15
    assert torch.equal(contexts["screw"].tokens, stored["text_context"]["screw"]["tokens"])
    own = run.anchors("MVTec")({"class_name": ["screw", "carpet"]})
    assert sorted(run.mean_anchors) == ["bottle", "screw"] and torch.equal(
        own[0], stored["mean_anchors"]["screw"]
    )
    assert torch.equal(own[1], get_adapted_text_embedding(run.model, "MVTec", "cpu")["carpet"])


@pytest.mark.bit_equality
def test_the_ablation_is_the_run_without_contexts_and_the_run_stays_as_it_is(trained):
    run = load_run(trained["crossed"])
    without = run.without_cross_attention()
    assert without.text_contexts("MVTec") == {} and without.model is run.model and without.files == run.files
    plain = get_adapted_text_embedding(run.model, "MVTec", "cpu")["screw"]
    assert torch.equal(without.anchors("MVTec")({"class_name": ["screw"]})[0], plain)
    assert len(run.text_contexts("MVTec")) == 15
    assert torch.equal(run.anchors("MVTec")({"class_name": ["screw"]})[0], run.mean_anchors["screw"])


@pytest.mark.bit_equality
def test_a_feedback_run_comes_back_after_its_last_loop_or_the_one_named(trained):
    folder = trained["looped"]
    last, first = load_run(folder), load_run(folder, loop=1)
    assert (
        last.kind is FEEDBACK
        and (last.loop, first.loop) == (2, 1)
        and (last.attends, first.attends) == (True, False)
    )
    assert last.files == {"final_model.pth": sha256(folder / "final_model.pth")}
    assert first.files == {"loop_1_final.pth": sha256(folder / "loop_1_final.pth")}
    for run in (last, first):
        state = content(folder, run.checkpoint.name)
        assert all(
            holds(getattr(run.model, key), state[key]) for key in (*FEEDBACK.text_keys, *FEEDBACK.image_keys)
        )
        assert sorted(run.mean_anchors) == ["bottle", "screw"]
        assert torch.equal(run.mean_anchors["screw"], state["mean_anchors"]["screw"])
    assert first.text_contexts("MVTec") == {} and len(last.text_contexts("MVTec")) == 15
    with pytest.raises(FileNotFoundError, match=r"--loop 4: .* it has loops \[1, 2\]"):
        load_run(folder, loop=4)


@pytest.mark.bit_equality
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("baseline", "image_adapter_1.pth"),
        ("crossed", "image_adapter_cross_attn_1.pth"),
        ("looped", "loop_1_final.pth"),
    ],
)
def test_a_run_moves_to_another_of_its_checkpoints_as_if_loaded_there(trained, name, other):
    folder = trained[name]
    run = load_run(folder)
    last, model, files = run.checkpoint, run.model, run.files
    moved, wanted = run.at(folder / other), load_run(folder, folder / other)
    assert moved.model is model and moved.checkpoint == folder / other
    for attribute in ("files", "stored", "loop", "attends", "adapted_text", "kind"):
        assert getattr(moved, attribute) == getattr(wanted, attribute), attribute
    assert moved.files[other] == sha256(folder / other) and moved.files != files
    assert holds(moved.model, wanted.model.state_dict())
    assert not holds(load_run(folder).model, wanted.model.state_dict())
    back = moved.at(last)
    assert back.files == files and holds(back.model, load_run(folder).model.state_dict())


@pytest.mark.bit_equality
@pytest.mark.parametrize("name", ["baseline", "crossed", "looped"])
def test_a_loaded_run_scores_as_test_py_does(trained, copied, name, data_root, world):
    folder = copied(name)
    (wanted,) = test.main(
        [
            "--dataset",
            "MVTec",
            "--data_root",
            str(data_root),
            "--clip_weights",
            str(world),
            "--save_path",
            str(folder),
        ]
    )
    scorer = scorer_of(load_run(trained[name]), "MVTec")
    test_sets = get_dataset("MVTec", 32, "full_shot", 0, "test", data_root=data_root)
    assert evaluate_dataset(scorer, test_sets, batch_size=32, device="cpu") == wanted
    assert scorer.img_size == 32 and scorer.domain == "Industrial" and scorer.levels == 4


def test_a_flag_against_the_checkpoint_is_refused_and_one_that_may_change_is_taken_and_said(
    trained, lines, world
):
    with pytest.raises(
        RuntimeError, match="made with other adapter settings: --text_adapt_until was 2, is 1"
    ):
        load_run(trained["crossed"], flags=given("--text_adapt_until", "1"))
    flags = given("--text_context", "none", "--seed", "5", "--clip_weights", str(world))
    run = load_run(trained["crossed"], flags=flags, logger=lines[0])
    assert run.settings.contexts.text_context == "none" and run.mean_anchors == {}
    assert "text_context_dict.pth" not in run.files and run.stored["text_context"] == "train_mean"
    assert (
        run.settings.run.seed == 5 and run.settings.model.img_size == 32
    )  # the user's, and the checkpoint's
    (said,) = [line for line in lines[1] if "tested with" in line]
    assert said.startswith("trained with --text_context train_mean, tested with none")


def test_what_neither_flags_nor_checkpoint_say_has_its_default_and_aa_clips_files_say_nothing(copied, world):
    folder = copied("baseline")
    stored = content(folder, "image_adapter.pth")
    kept = {key: stored[key] for key in ("epoch", "image_adapter", "image_optimizer")}
    torch.save(kept, folder / "image_adapter.pth")
    with pytest.raises(ValueError, match="the tower has 4 blocks"):
        load_run(folder, flags=given("--model_name", MODEL, "--clip_weights", str(world), "--img_size", "32"))
    words = f"--model_name {MODEL} --clip_weights {world} --img_size 32 --text_adapt_until 2"
    words += " --image_adapt_until 2"
    run = load_run(folder, flags=given(*words.split()))
    assert (
        run.stored is None
        and run.settings.data.dataset == "VisA"
        and run.settings.network.quick_gelu is False
    )
    with pytest.raises(RuntimeError, match="made with other adapter settings: .*--text_adapt_until"):
        load_run(folder, flags=given(*words.replace("text_adapt_until 2", "text_adapt_until 1").split()))


def test_the_device_a_run_was_trained_on_need_not_be_here(copied):
    folder = copied("baseline")
    stored = content(folder, "image_adapter.pth")
    stored["settings"]["device"] = "cuda:31"
    del stored["digests"]  # of the settings before
    torch.save(stored, folder / "image_adapter.pth")
    assert load_run(folder, device="cpu").model.device.type == "cpu"
    assert load_run(folder).model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="--device toaster"):
        load_run(folder, flags=given("--device", "toaster"))


def test_a_folder_with_two_kinds_needs_a_checkpoint_and_an_empty_one_is_refused(copied, trained, tmp_path):
    folder = copied("baseline")
    for path in trained["crossed"].glob("*.pth"):
        shutil.copy(path, folder)
    with pytest.raises(ValueError, match="several kinds"):
        load_run(folder)
    assert load_run(folder, folder / "image_adapter_1.pth").kind is BASELINE
    assert load_run(folder, folder / "image_adapter_cross_attn.pth").kind is CROSS_ATTENTION
    with pytest.raises(FileNotFoundError, match="train with --save_path"):
        load_run(tmp_path / "nothing")


def test_a_cross_attention_run_without_its_text_side_is_refused(copied):
    folder = copied("crossed")
    (folder / "text_adapter_cross_attn.pth").unlink()
    with pytest.raises(FileNotFoundError, match="text_adapter_cross_attn.pth"):
        load_run(folder)
