"""train_cross_attention_feedback.py run as a user runs it: what its loops train and carry over."""

import json

import pytest
import torch
import torch.nn.functional as F
from checkpoint_contents import digest, state
from cross_attention_world import MODEL
from feedback_miniature import KEYS, same

import forward_utils_cross_attention
import train_cross_attention
from forward_utils_cross_attention import (
    first_level,
    text_context_dictionary,
    text_context_groups,
    trained_image_features,
)
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import create_model
from run_folder.checkpoints import load_modules
from training import feedback
from training import history as learning_curves
from training import stages as training_stages


@pytest.fixture
def model(cross_weights):
    torch.manual_seed(5)
    clip = create_model(MODEL, 32, "openai", clip_weights=cross_weights)
    return AdaptedCLIPWithCrossAttention(
        clip, text_adapt_until=2, image_adapt_until=2, relu=False, cross_attn_heads=4
    ).eval()


@pytest.mark.bit_equality
def test_a_run_leaves_every_loops_files_with_the_shared_keys(train_loops):
    folder = train_loops("run")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"final_model.pth", "history.json", "train.log"} | {
        f"loop_{n}_{name}.pth"
        for n in (1, 2, 3)
        for name in ("text_adapter", "image_adapter", "text_context_dict", "final")
    }
    final, last = state(folder, "final_model.pth"), state(folder, "loop_3_final.pth")
    assert {"total_loops", *KEYS} <= set(final) and final["total_loops"] == 3
    assert {"loop", *KEYS} <= set(last) and last["loop"] == 3 and same(final, last)
    for stage in ("text", "image"):
        content = state(folder, f"loop_2_{stage}_adapter.pth")
        assert {"epoch", f"{stage}_adapter", f"{stage}_cross_attn", f"{stage}_optimizer"} <= set(content)
    assert state(folder, "loop_2_text_context_dict.pth")["text_context"]["bottle"]["tokens"].shape == (
        16 * 77,
        16,
    )
    loops = json.loads((folder / "history.json").read_text(encoding="utf-8"))["loops"]
    assert [(len(loop["text"]), len(loop["image"])) for loop in loops] == [(2, 1), (2, 1), (1, 1)]
    assert set(loops[1]["text"][0]["gradients"]) == {"text_adapter", "text_cross_attn"}
    log = (folder / "train.log").read_text(encoding="utf-8")
    for line in (
        "image_adapter: fresh",
        "text_adapter: carried over from loop 1",
        "mean gradient norm: text_adapter",
    ):
        assert line in log


@pytest.mark.bit_equality
@pytest.mark.parametrize("context", ["none", "train_mean", "image"])
def test_one_loop_is_train_cross_attention_bit_for_bit(train_loops, context):
    shared = [
        "--text_epoch",
        "2",
        "--image_epoch",
        "2",
        "--milestones",
        "0.5",
        "0.8",
        "--text_context",
        context,
    ]
    plain = train_loops("plain", *shared, script=train_cross_attention)
    looped = train_loops("looped", *shared, "--num_feedback_loops", "1", "--loop1_image_epoch", "2")
    final = state(looped, "final_model.pth")
    assert same(final, state(plain, "text_adapter_cross_attn.pth"), KEYS[:2])
    assert same(final, state(plain, "image_adapter_cross_attn.pth"), KEYS[2:])
    means = state(plain, "text_context_dict.pth")["mean_anchors"]
    assert (
        sorted(means)
        == sorted(final["mean_anchors"])
        == (["bottle", "screw"] if context == "train_mean" else [])
    )
    assert all(torch.equal(value, means[name]) for name, value in final["mean_anchors"].items())


@pytest.mark.bit_equality
def test_the_trained_path_is_the_models_own_evaluation_features_plus_cls(model, batch):
    contexts = text_context_dictionary(model, "MVTec")
    patches_of = trained_image_features(model, contexts)
    first_patches = first_level(patches_of, model)
    patches, cls = patches_of(batch)
    with torch.no_grad():  # with gradients torch attends by another kernel, and the last bit differs
        seg, _ = model(batch["image"], text_context_groups(contexts, batch["class_name"]))
    wanted = F.normalize(model.clipmodel.embed_image(batch["image"]), dim=-1)
    assert torch.equal(cls, wanted) and list(patches) == model.levels
    for level, own in zip(model.levels, seg, strict=True):
        assert torch.equal(patches[level], own + wanted[:, None]) and not patches[level].requires_grad
    assert torch.equal(first_patches(batch), patches[model.levels[0]])

    with torch.no_grad():
        model.image_adapter["layer_adapters"][0].fc[0].weight.neg_()
    changed = first_patches(batch)
    assert not torch.allclose(changed, patches[model.levels[0]], atol=1e-4)
    model.image_cross_attn.train()  # stage 2 with --text_context image: no dropout reaches the prompts
    assert torch.equal(first_patches(batch), changed) and model.image_cross_attn.training
    without = first_level(trained_image_features(model, {}), model)
    assert not torch.allclose(without(batch), changed, atol=1e-4)


def test_an_image_path_that_fails_leaves_its_attention_in_training_mode(model, batch):
    model.image_cross_attn.train()
    contexts = {"bottle": text_context_dictionary(model, "MVTec")["bottle"]}
    with pytest.raises(KeyError, match="screw"):
        trained_image_features(model, contexts)(batch)
    assert model.image_cross_attn.training


@pytest.mark.bit_equality
def test_loop_2s_prompts_attend_to_the_first_level_of_what_loop_1_trained(train_loops, model, monkeypatch):
    seen, stages = [], []
    real_text_loss, real_anchors = feedback.text_loss, forward_utils_cross_attention.encode_anchors

    def text_loss(run, features, attends):
        stages.append(features)

        def spied(batch):
            found = features(batch)
            if len(stages) == 2 and not seen:
                seen.extend([batch, found[0]])
            return found

        return real_text_loss(run, spied, attends)

    def encode_anchors(model, dataset_name, class_names, contexts=()):
        if len(seen) == 2:
            seen.append(dict(zip(class_names, contexts, strict=True)))
        return real_anchors(model, dataset_name, class_names, contexts)

    monkeypatch.setattr(feedback, "text_loss", text_loss)
    monkeypatch.setattr(forward_utils_cross_attention, "encode_anchors", encode_anchors)
    folder = train_loops("run", "--num_feedback_loops", "2")
    batch, patches, contexts = seen
    load_modules(folder / "loop_1_final.pth", model.text_modules | model.image_modules)
    groups = text_context_groups(text_context_dictionary(model, "MVTec"), batch["class_name"])
    with torch.no_grad():
        cls = F.normalize(model.clipmodel.embed_image(batch["image"]), dim=-1)
        first = model(batch["image"], groups)[0][0] + cls[:, None]
    assert torch.equal(patches[model.levels[0]], first)
    for name, own in contexts.items():
        rows = [row for row, of in enumerate(batch["class_name"]) if of == name]
        assert torch.equal(own, first[rows].flatten(0, 1))


@pytest.fixture
def stages(monkeypatch):
    """List of what every stage of a run began and ended with, filled while it runs."""
    seen, real_train, real_create = [], training_stages.train_stage, feedback.create_adapted_model
    attended = set()  # keys of the attentions that ran

    def create(*arguments):
        create.model = real_create(*arguments)
        for key in ("text_cross_attn", "image_cross_attn"):
            getattr(create.model, key).register_forward_hook(lambda *_, key=key: attended.add(key))
        return create.model

    def train_stage(state, step_loss, loader, plan, *rest):
        optimizer = state.optimizer
        entry = {
            "name": state.name,
            "lr": optimizer.param_groups[0]["lr"],
            "fresh": not optimizer.state,
            "optimizer": optimizer,
            "offset": plan.epoch_offset,
            "clip": plan.clip_norm,
            "watched": sorted(plan.log_gradient_norms_of),
            "before": {key: digest(getattr(create.model, key)) for key in KEYS},
        }
        attended.clear()
        real_train(state, step_loss, loader, plan, *rest)
        entry["after"] = {key: digest(getattr(create.model, key)) for key in KEYS}
        entry["attended"] = set(attended)
        seen.append(entry)
        return state

    monkeypatch.setattr(feedback, "create_adapted_model", create)
    monkeypatch.setattr(training_stages, "train_stage", train_stage)
    return seen


@pytest.mark.bit_equality
def test_everything_is_carried_over_each_stage_moves_its_own_modules_with_a_new_optimiser_and_decayed_rate(
    train_loops, stages
):
    train_loops("run")
    assert [entry["name"] for entry in stages] == ["text", "image"] * 3
    for entry, following in zip(stages, stages[1:], strict=False):
        assert following["before"] == entry["after"]
    for entry in stages:
        moved = {key for key in KEYS if entry["before"][key] != entry["after"][key]}
        assert moved == {f"{entry['name']}_adapter", f"{entry['name']}_cross_attn"}
    assert all(entry["fresh"] for entry in stages) and len({id(entry["optimizer"]) for entry in stages}) == 6
    assert [entry["lr"] for entry in stages] == [1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3]
    assert [entry["offset"] for entry in stages] == [0, 0, 2, 1, 4, 2]


@pytest.mark.bit_equality
def test_recipe_v2_runs_with_its_optimiser_clipping_and_plateau_and_stays_stopped_after_a_restart(
    train_loops, stages
):
    flags = [
        "--recipe",
        "v2",
        "--text_lr",
        "1e-9",
        "--num_feedback_loops",
        "2",
        "--plateau_threshold",
        "0.9",
        "--plateau_patience",
        "1",
        "--warmup_epochs",
        "0",
        "--loop1_text_epoch",
        "6",
    ]
    folder = train_loops("run", *flags)
    assert {type(entry["optimizer"]) for entry in stages} == {torch.optim.AdamW}
    assert {entry["clip"] for entry in stages} == {1.0}
    assert state(folder, "loop_1_text_adapter.pth")["epoch"] == 2
    wanted = state(folder, "final_model.pth")
    for file in ("final_model.pth", "loop_2_final.pth", "loop_1_final.pth", "loop_1_image_adapter.pth"):
        (folder / file).unlink()
    train_loops("run", *flags)
    assert state(folder, "loop_1_text_adapter.pth")["epoch"] == 2 and same(
        state(folder, "final_model.pth"), wanted
    )


@pytest.mark.bit_equality
def test_cross_attention_can_start_in_a_later_loop(train_loops, stages, evaluate):
    folder = train_loops("late", "--cross_attn_start_loop", "2", "--num_feedback_loops", "2")
    moved = [{key for key in KEYS if entry["before"][key] != entry["after"][key]} for entry in stages]
    assert moved == [
        {"text_adapter"},
        {"image_adapter"},
        {"text_adapter", "text_cross_attn"},
        {"image_adapter", "image_cross_attn"},
    ]
    assert [entry["watched"] for entry in stages[:2]] == [["text_adapter"], ["image_adapter"]]
    first = state(folder, "loop_1_final.pth")
    assert first["cross_attention"] is False and state(folder, "loop_2_final.pth")["cross_attention"] is True
    off = train_loops(
        "off", "--text_cross_attn_weight", "0", "--image_cross_attn_weight", "0", "--num_feedback_loops", "2"
    )
    assert same(first, state(off, "loop_1_final.pth"))
    assert evaluate(folder, "--loop", "1")[0]["mean"] == evaluate(off, "--loop", "1")[0]["mean"]
    without = evaluate(folder, "--loop", "2", "--no_cross_attention")[0]["mean"]
    assert evaluate(folder, "--loop", "2")[0]["mean"] != without
    assert (folder / "train.log").read_text(encoding="utf-8").count("hardly learns") == 0


@pytest.mark.parametrize("context", ["none", "image"])
def test_an_attention_that_starts_in_this_loop_is_not_yet_part_of_the_trained_path(
    train_loops, stages, context
):
    train_loops("late", "--cross_attn_start_loop", "2", "--text_context", context)
    text, image = {"text_cross_attn"}, {"image_cross_attn"}
    stage_2 = image | text if context == "image" else image  # whose anchors are made while it trains
    assert [(entry["name"], entry["attended"]) for entry in stages] == [
        ("text", set()),
        ("image", set()),
        ("text", text),
        ("image", stage_2),
        ("text", text | image),
        ("image", stage_2),
    ]


@pytest.mark.bit_equality
def test_a_baselines_adapters_start_the_first_loop(train_loops):
    start = train_loops("start", "--text_epoch", "1", "--image_epoch", "1", script=train_cross_attention)
    flags = [
        "--load_base_text_adapter",
        str(start / "text_adapter_cross_attn.pth"),
        "--load_base_image_adapter",
        str(start / "image_adapter_cross_attn.pth"),
        "--text_lr",
        "0",
        "--image_lr",
        "0",
    ]
    folder = train_loops("looped", *flags, "--num_feedback_loops", "2")
    final = state(folder, "final_model.pth")
    assert same(final, state(start, "text_adapter_cross_attn.pth"), ["text_adapter"])
    assert same(final, state(start, "image_adapter_cross_attn.pth"), ["image_adapter"])
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert (
        "text_adapter: loaded, trained 1 epochs" in log and "image_adapter: carried over from loop 1" in log
    )


def test_stages_that_do_not_learn_are_named_in_the_log(train_loops, monkeypatch):
    monkeypatch.setattr(learning_curves, "FAINT", 1e9)
    log = (train_loops("run", "--num_feedback_loops", "2") / "train.log").read_text(encoding="utf-8")
    for loop in (1, 2):
        for module in KEYS:
            stage = module.split("_")[0]
            assert f"WARNING loop {loop}, stage {stage}: {module} hardly learns" in log
