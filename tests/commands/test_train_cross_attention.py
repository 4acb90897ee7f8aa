"""train_cross_attention.py and its evaluation, as a user runs them; base weights; the gradient script."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from checkpoint_contents import digest, state
from cross_attention_world import MODEL

import test_stage2_gradients
import train
import train_cross_attention
from app.page import words_of_side
from app.scoring import Side
from evaluation import load_scorer
from evaluation.photographs.scorer import opened_photograph
from evaluation.photographs.subject import subject_of_text
from evaluation.photographs.word_attention import attention_of_words
from forward_utils import (
    calculate_seg_loss,
    calculate_similarity_map,
    encode_anchors,
    frozen_patches,
    get_adapted_text_embedding,
    probability_map,
)
from forward_utils_cross_attention import class_scope, text_context_dictionary, text_context_groups
from metrics import with_old_names
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention, CrossAttentionModule
from model.clip import create_model, surgery_copy
from run_folder.flags import settings_of
from run_folder.settings import BASELINE_GROUPS
from training import stages
from training.base_weights import load_base, looks_untrained, summarise
from training.optimisation import only_training
from training.stages import orthogonality_loss

FILES = {
    "text_adapter_cross_attn.pth",
    "image_adapter_cross_attn.pth",
    "image_adapter_cross_attn_1.pth",
    "text_context_dict.pth",
    "train.log",
    "history.json",
}


@pytest.fixture
def run(cross_flags, evaluate, tmp_path):
    """Function (name, extra training flags) -> (folder, mean metrics of the trained run)."""

    def train_and_test(name, *extra, script=train_cross_attention, tested=True):
        folder = tmp_path / name
        heads = [] if script is train else ["--cross_attn_heads", "4"]
        script.main([*cross_flags, *heads, "--save_path", str(folder), *extra])
        return folder, evaluate(folder)[0]["mean"] if tested else None

    return train_and_test


def test_a_run_leaves_its_files_with_the_shared_keys(run):
    folder, mean = run("run")
    assert FILES <= {path.name for path in folder.iterdir()}
    text, image = (
        state(folder, "text_adapter_cross_attn.pth"),
        state(folder, "image_adapter_cross_attn_1.pth"),
    )
    assert {"epoch", "text_adapter", "text_cross_attn", "text_optimizer"} <= set(text)
    assert {"epoch", "image_adapter", "image_cross_attn", "image_optimizer"} <= set(image)
    assert sorted(text["text_cross_attn"]) == sorted(
        f"{name}_proj.{part}" for name in ("q", "k", "v", "out") for part in ("weight", "bias")
    )
    contexts = state(folder, "text_context_dict.pth")["text_context"]
    assert contexts["bottle"]["tokens"].shape == (16 * 77, 16) and len(contexts) == 15
    assert 0 <= mean["pixel_auroc"] <= 1
    log = (folder / "train.log").read_text(encoding="utf-8")
    for line in (
        "training text epoch 0:",
        "training image epoch 0:",
        "text_cross_attn: fresh",
        "image_adapter: fresh",
    ):
        assert line in log


def test_a_runs_history_holds_every_epoch_of_both_stages_also_of_a_continued_one(run):
    run("run", "--image_epoch", "0", tested=False)
    folder, _ = run("run", "--image_epoch", "2", tested=False)
    (loop,) = json.loads((folder / "history.json").read_text(encoding="utf-8"))["loops"]
    assert loop["loop"] == 1 and [len(loop[stage]) for stage in ("text", "image")] == [1, 2]
    assert [entry["epoch"] for entry in loop["image"]] == [0, 1]
    assert set(loop["text"][0]) == {"epoch", "loss", "terms", "lr", "seconds", "gradients"}
    logged = re.findall(r"loss: (\S+)", (folder / "train.log").read_text(encoding="utf-8"))
    assert [entry["loss"] for stage in ("text", "image") for entry in loop[stage]] == [
        float(loss) for loss in logged
    ]


@pytest.fixture
def model(cross_weights):
    torch.manual_seed(3)
    clip = create_model(MODEL, 32, "openai", clip_weights=cross_weights)
    return AdaptedCLIPWithCrossAttention(
        clip, text_adapt_until=2, image_adapt_until=2, cross_attn_heads=4, cross_attn_dropout=0.0
    )


def moved(model, before):
    """Names of the model's parts whose weights differ from a state dict."""
    return {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }


def test_stage_1_by_itself_has_aa_clips_arguments_and_prompts_that_see_their_classs_images(
    model, batch, tmp_path, lines
):
    surgery, names = surgery_copy(model.clipmodel, 3), batch["class_name"]
    with torch.no_grad():
        patches, _ = frozen_patches(model.clipmodel, surgery, batch["image"], [1, 4])
        contexts = class_scope(patches[1], names)
        pairs = encode_anchors(model, "MVTec", list(contexts), list(contexts.values()))
        anchors = torch.stack([dict(zip(contexts, pairs, strict=True))[name] for name in names])
        wanted = calculate_seg_loss(calculate_similarity_map(patches[4], anchors, 32), batch["mask"])
        wanted = float(wanted + 0.5 * orthogonality_loss(anchors))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(
        [*model.text_adapter.parameters(), *model.text_cross_attn.parameters()], lr=1e-2
    )
    trained = train_cross_attention.train_text_adapter_with_cross_attention(
        adapted_model=model,
        clip_surgery=surgery,
        text_norm_weight=0.5,
        train_loader=[batch],
        optimizer=optimizer,
        device="cpu",
        start_epoch=1,
        save_path=str(tmp_path),
        text_epoch=3,
        dataset_name="MVTec",
        img_size=32,
        logger=lines[0],
    )
    assert trained is model and moved(model, before) == {"text_adapter", "text_cross_attn"}
    losses = [float(line.removeprefix("loss: ")) for line in lines[1] if line.startswith("loss: ")]
    assert losses[0] == pytest.approx(wanted, rel=1e-5) and losses[1] < losses[0]
    content = state(tmp_path, "text_adapter_cross_attn.pth")
    assert content["epoch"] == 3 and "settings" not in content and len(content["history"]) == 2
    assert {"text_adapter", "text_cross_attn", "text_optimizer"} <= set(content)
    assert [path.name for path in tmp_path.iterdir()] == ["text_adapter_cross_attn.pth"]


def test_stage_2_by_itself_has_aa_clips_arguments_and_images_that_see_their_classs_prompts(
    model, batch, tmp_path, lines
):
    anchors, contexts = (
        get_adapted_text_embedding(model, "MVTec", "cpu"),
        text_context_dictionary(model, "MVTec"),
    )
    anchors = {name: pair.detach() for name, pair in anchors.items()}
    pairs = torch.stack([anchors[name] for name in batch["class_name"]])
    with torch.no_grad():
        logits, head = model.compare(
            batch["image"], pairs, text_context_groups(contexts, batch["class_name"])
        )
        wanted = sum(calculate_seg_loss(probability_map(level, 32), batch["mask"]) for level in logits)
        wanted = float(wanted + F.cross_entropy(head, batch["label"]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(
        [*model.image_adapter.parameters(), *model.image_cross_attn.parameters()], lr=1e-3
    )
    trained = train_cross_attention.train_image_adapter_with_cross_attention(
        model=model,
        text_embeddings=anchors,
        train_loader=[batch],
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], gamma=0.5),
        device="cpu",
        start_epoch=0,
        save_path=str(tmp_path),
        image_epoch=2,
        img_size=32,
        logger=lines[0],
        contexts=contexts,
    )
    assert trained is model and moved(model, before) == {"image_adapter", "image_cross_attn"}
    losses = [float(line.removeprefix("loss: ")) for line in lines[1] if line.startswith("loss: ")]
    assert losses[0] == pytest.approx(wanted, rel=1e-5) and losses[1] < losses[0]
    content = state(tmp_path, "image_adapter_cross_attn.pth")
    assert content["epoch"] == 2 and "settings" not in content and content["history"][-1]["lr"] == 5e-4
    assert {"image_adapter", "image_cross_attn", "image_optimizer", "scheduler"} <= set(content)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "image_adapter_cross_attn.pth",
        "image_adapter_cross_attn_1.pth",
        "image_adapter_cross_attn_2.pth",
    ]


@pytest.mark.bit_equality
def test_both_weights_0_train_and_evaluate_to_the_baselines_numbers_bit_for_bit(run):
    baseline, wanted = run("baseline", script=train)
    crossed, mean = run("crossed", "--text_cross_attn_weight", "0", "--image_cross_attn_weight", "0")
    for file, key in (("text_adapter", "text_adapter"), ("image_adapter", "image_adapter")):
        ours, theirs = state(crossed, f"{file}_cross_attn.pth")[key], state(baseline, f"{file}.pth")[key]
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert mean == wanted
    assert run("alive")[1] != wanted


def test_every_parameter_learns_in_its_stage_and_only_there(cross_flags, tmp_path, monkeypatch):
    """k_proj.bias aside, whose gradient is zero because softmax does not see a shift of all its logits."""
    gradients, frozen = {}, {}
    real = stages.train_stage

    def spy(state, *rest):
        model = spy.model
        trained = real(state, *rest)
        gradients[state.name] = {
            key: value.grad for key, value in model.named_parameters() if value.grad is not None
        }
        model.zero_grad(set_to_none=True)
        return trained

    def create(*arguments):
        spy.model = model = real_create(*arguments)
        frozen["before"] = digest(model.clipmodel)
        return model

    real_create = train_cross_attention.create_adapted_model
    monkeypatch.setattr(stages, "train_stage", spy)
    monkeypatch.setattr(train_cross_attention, "create_adapted_model", create)
    train_cross_attention.main(
        [*cross_flags, "--cross_attn_heads", "4", "--save_path", str(tmp_path / "run")]
    )
    assert digest(spy.model.clipmodel) == frozen["before"]
    for stage in ("text", "image"):
        prefixes = (f"{stage}_adapter", f"{stage}_cross")
        own = {name for name, _ in spy.model.named_parameters() if name.startswith(prefixes)}
        assert set(gradients[stage]) == own
        for name, gradient in gradients[stage].items():
            if name.endswith("k_proj.bias"):
                assert gradient.abs().max() < 1e-6
            else:
                assert gradient.abs().max() > 1e-8, name


def test_only_the_trained_modules_are_in_training_mode(cross_weights):
    clip = create_model(MODEL, 32, "openai", clip_weights=cross_weights)
    model = AdaptedCLIPWithCrossAttention(
        clip, text_adapt_until=2, image_adapt_until=2, cross_attn_heads=4, relu=False
    )
    with only_training(model, {"text_cross_attn": model.text_cross_attn}):
        assert model.text_cross_attn.training and not model.image_cross_attn.training
        assert model.text_cross_attn.q_proj.weight.requires_grad
        assert not model.image_adapter["det_proj"].fc.weight.requires_grad
    assert not model.text_cross_attn.training


@pytest.mark.parametrize("mode", ["none", "train_mean", "image"])
def test_text_context_modes_train_and_evaluate(run, mode):
    folder, mean = run(mode, "--text_context", mode, "--context_scope", "batch")
    means = state(folder, "text_context_dict.pth")["mean_anchors"]
    assert sorted(means) == (["bottle", "screw"] if mode == "train_mean" else [])
    entry = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["MVTec"][
        "image_adapter_cross_attn.pth"
    ]
    assert entry["mean"] == with_old_names(mean) and entry["settings"]["text_context"] == mode


def test_image_anchors_at_test_do_not_depend_on_the_batch(run, evaluate):
    folder, mean = run("run", "--text_context", "image")
    (again,) = evaluate(folder, "--batch_size", "1")
    assert again["mean"]["pixel_auroc"] == pytest.approx(mean["pixel_auroc"], abs=1e-4)


def test_cross_attention_is_active_at_test_and_its_ablation_is_explicit(run, evaluate):
    folder, mean = run("run", "--image_cross_attn_weight", "0.5")
    (without,) = evaluate(folder, "--no_cross_attention")
    assert without["mean"] != mean
    entries = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["MVTec"]
    assert set(entries) == {
        "image_adapter_cross_attn.pth",
        "image_adapter_cross_attn.pth without cross-attention",
    }


@pytest.mark.bit_equality
def test_resumed_runs_equal_uninterrupted_ones_dropout_included(run):
    whole, wanted = run("whole", "--text_epoch", "2", "--image_epoch", "2")
    run("parts", "--text_epoch", "1", "--image_epoch", "0", tested=False)
    run("parts", "--text_epoch", "2", "--image_epoch", "1", tested=False)
    parts, mean = run("parts", "--text_epoch", "2", "--image_epoch", "2")
    for file, keys in (
        ("text_adapter_cross_attn.pth", ("text_adapter", "text_cross_attn")),
        ("image_adapter_cross_attn.pth", ("image_adapter", "image_cross_attn")),
    ):
        for key in keys:
            ours, theirs = state(parts, file)[key], state(whole, file)[key]
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert mean == wanted


@pytest.mark.bit_equality
def test_a_baselines_adapters_are_loaded_strictly_and_said(run, tmp_path):
    baseline, _ = run("baseline", script=train)
    loaded = [
        "--load_base_text_adapter",
        str(baseline / "text_adapter.pth"),
        "--load_base_image_adapter",
        str(baseline / "image_adapter.pth"),
    ]
    folder, _ = run("crossed", *loaded, "--text_lr", "0", "--image_lr", "0")
    ours, theirs = state(folder, "image_adapter_cross_attn.pth"), state(baseline, "image_adapter.pth")
    assert all(
        torch.equal(ours["image_adapter"][name], value) for name, value in theirs["image_adapter"].items()
    )
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert "text_adapter: loaded, trained 1 epochs" in log and "text_cross_attn: fresh" in log
    assert "cannot be told" not in log
    with pytest.raises(RuntimeError, match="lacks .*text_adapter"):
        run("wrong", "--load_base_text_adapter", str(baseline / "image_adapter.pth"))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run("missing", "--load_base_image_adapter", str(tmp_path / "nothing.pth"))


def test_a_command_without_flags_for_a_base_starts_afresh(model, lines):
    assert load_base(model, settings_of(BASELINE_GROUPS, {}), lines[0]) == ({}, {})


def test_a_trained_file_that_looks_untrained_is_named(lines):
    logger, messages = lines
    torch.manual_seed(0)
    module = CrossAttentionModule(64, 8)
    assert looks_untrained(module)
    summarise({"text_cross_attn": ("base.pth", 5)}, {"text_cross_attn": module}, "own.pth", 0, logger)
    assert any("cannot be told from their random initialisation" in message for message in messages)
    with torch.no_grad():
        module.v_proj.weight.mul_(0.5)  # inside the interval, another distribution
    assert not looks_untrained(module)
    module = CrossAttentionModule(64, 8)
    with torch.no_grad():
        module.q_proj.weight[0, 0] = 1.0  # one entry outside the interval
    assert not looks_untrained(module)


def test_two_kinds_of_run_in_one_folder_need_a_checkpoint_named(run, cross_flags, evaluate):
    folder, _ = run("both", script=train)
    train_cross_attention.main([*cross_flags, "--cross_attn_heads", "4", "--save_path", str(folder)])
    with pytest.raises(ValueError, match="several kinds"):
        evaluate(folder)
    assert len(evaluate(folder, "--checkpoint", str(folder / "image_adapter_cross_attn_1.pth"))) == 1


def test_attention_pictures_are_written_for_a_chosen_image(run, evaluate):
    folder, _ = run("run")
    name = "mvtec_ad/bottle/test/broken/000.png"
    evaluate(folder, "--attention_of", name)
    written = {path.name for path in (folder / "attention" / "MVTec").glob("*.png")}
    base = "mvtec_ad__bottle__test__broken__000"
    assert written == {f"{base}_text_to_image.png", f"{base}_image_to_text.png"}
    with pytest.raises(ValueError, match="stands in no prompt"):
        evaluate(folder, "--attention_of", name, "--attention_word", "purple")
    with pytest.raises(ValueError, match="not in the dataset's test images, and no such file"):
        evaluate(folder, "--attention_of", "nothing.png")


def test_attention_of_any_photograph_is_drawn_for_a_class_or_for_own_words(
    run, evaluate, data_root, tmp_path, monkeypatch
):
    folder, _ = run("run", tested=False)
    row = "mvtec_ad/bottle/test/broken/000.png"
    (tmp_path / "mine.png").write_bytes((data_root / row).read_bytes())
    monkeypatch.chdir(tmp_path)

    def drawn(name, *more):
        evaluate(folder, "--attention_of", name, *more)
        base = (folder / "attention" / "MVTec" / name.replace("/", "__")).with_suffix("")
        return [base.with_name(f"{base.name}_{end}.png").read_bytes() for end in ENDS]

    of_row, of_file = drawn(row), drawn("mine.png", "--attention_shows", "bottle")
    assert of_file == of_row
    words_of_file = drawn("mine.png", "--attention_shows", "steel bolt")
    assert words_of_file[1] != of_file[1]  # a word that stands before the class looks where it looked
    with pytest.raises(ValueError, match="say what it shows with --attention_shows, one of bottle, screw"):
        evaluate(folder, "--attention_of", "mine.png")


def test_the_words_a_photograph_attends_to_are_told_beside_even_attention(run, data_root):
    folder, _ = run("run", tested=False)
    scorer, subject = load_scorer(folder), subject_of_text("steel bolt")
    picture = data_root / "mvtec_ad/bottle/test/broken/000.png"
    found = attention_of_words(scorer, picture, subject)
    assert {"steel", "bolt", "damaged"} <= {one.word for one in found}
    excess = [one.share - one.even for one in found]
    assert excess == sorted(excess, reverse=True)
    assert sum(one.share for one in found) == pytest.approx(1, abs=1e-4)
    assert sum(one.even for one in found) == pytest.approx(1, abs=1e-6)
    assert excess[0] > 1e-4
    side = Side("run", scorer, None)
    assert "share of attention" in words_of_side(side, opened_photograph(picture), subject)
    for weight in scorer.of(subject).network.image_cross_attn.q_proj.parameters():
        weight.data.zero_()
    assert all(
        one.share == pytest.approx(one.even, abs=1e-5) for one in attention_of_words(scorer, picture, subject)
    )


ENDS = ("text_to_image", "image_to_text")


def test_the_gradient_script_measures_a_run_on_its_data(run, gradient_flags, capsys, monkeypatch):
    folder, _ = run("run")
    flags = [*gradient_flags, "--run", str(folder), "--batches", "2"]
    capsys.readouterr()  # what training printed
    assert test_stage2_gradients.main([*flags, "--image_cross_attn_weight", "0"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Image adapter gradient norm:"
    assert re.fullmatch(r"Without cross-attention: \d+\.\d{6}", printed[1])
    assert printed[2] == printed[1].replace("Without", "With") and printed[3] == "Ratio: 1.0000x"
    assert printed[4] == "[OK] Cross-attention doesn't harm gradient flow significantly"
    assert any(line.startswith("layer adapter 1") and line.endswith("1.000") for line in printed[5:])
    # Both variants train alike from one start; other modules, alike.
    for more in (["--steps", "3"], ["--text_only"]):
        assert test_stage2_gradients.main([*flags, "--image_cross_attn_weight", "0", *more]) == 0
        other = capsys.readouterr().out.splitlines()
        assert other[3:5] == printed[3:5] and other[1] != printed[1]
    monkeypatch.setattr(test_stage2_gradients, "HEALTHY", 1.001)
    assert test_stage2_gradients.main([*flags, "--image_cross_attn_weight", "0"]) == 1
    assert capsys.readouterr().out.splitlines()[4] == (
        "[CAUTION] Cross-attention reduces image adapter gradients significantly"
    )


def test_what_a_run_cannot_give_is_refused_and_not_replaced_by_something_else(run, evaluate):
    baseline, _ = run("baseline", script=train)
    with pytest.raises(ValueError, match="a baseline run do not have"):
        evaluate(baseline, "--attention_of", "mvtec_ad/bottle/test/broken/000.png")
    means, _ = run("means", "--text_context", "train_mean", tested=False)
    (means / "text_context_dict.pth").unlink()
    with pytest.raises(FileNotFoundError, match="text_context_dict.pth"):
        evaluate(means)
