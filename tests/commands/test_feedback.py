"""train_cross_attention_feedback.py and its evaluation, run as a user runs them; evaluation/loops.py."""

import hashlib
import json

import pytest
import torch
import torch.nn.functional as F
from cross_attention_world import MODEL, write_world

import forward_utils_cross_attention
import test
import test_stage2_gradients
import train_cross_attention
import train_cross_attention_feedback
from evaluation import loops as evaluated_loops
from evaluation.loops import loop_table
from forward_utils_cross_attention import (
    first_level,
    text_context_dictionary,
    text_context_groups,
    trained_image_features,
)
from metrics import with_old_names
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import create_model
from run_folder import loaded_run
from run_folder import state as run_state
from run_folder.checkpoints import load_modules
from run_folder.kinds import FEEDBACK
from run_folder.loaded_run import load_run
from training import feedback
from training import history as learning_curves
from training import stages as training_stages

KEYS = (*FEEDBACK.text_keys, *FEEDBACK.image_keys)
MINIATURE = [  # three loops of one epoch, two text stages have two
    "--loop1_text_epoch",
    "2",
    "--loop2_text_epoch",
    "2",
    "--loop3_text_epoch",
    "1",
    "--loop1_image_epoch",
    "1",
    "--loop2_image_epoch",
    "1",
    "--loop3_image_epoch",
    "1",
]
WRITES = (
    15  # checkpoint files a miniature writes: twice 2 + 1 + 1 + 1, then 1 + 1 + 1 + 1, and final_model.pth
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("feedback"))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """tests/test_feedback_recipes.py draws one."""
    monkeypatch.setattr(feedback, "draw_curves", lambda path, loops: None)


@pytest.fixture
def base_flags(world, data_root):
    return [
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
        "--text_batch_size",
        "6",
        "--image_batch_size",
        "6",
        "--text_lr",
        "1e-2",
        "--image_lr",
        "1e-2",
        "--cross_attn_heads",
        "4",
    ]


@pytest.fixture
def run(base_flags, tmp_path):
    """Function (name, extra flags) -> folder of a trained miniature."""

    def train(name, *extra, script=train_cross_attention_feedback):
        shape = MINIATURE if script is train_cross_attention_feedback else []
        script.main([*base_flags, *shape, "--save_path", str(tmp_path / name), *extra])
        return tmp_path / name

    return train


@pytest.fixture
def evaluate(data_root, world):
    """Function (folder, extra flags) -> test.main's results."""

    def run_test(folder, *extra):
        return test.main(
            [
                "--dataset",
                "MVTec",
                "--data_root",
                str(data_root),
                "--clip_weights",
                str(world),
                "--save_path",
                str(folder),
                *extra,
            ]
        )

    return run_test


@pytest.fixture
def model(world):
    torch.manual_seed(5)
    clip = create_model(MODEL, 32, "openai", clip_weights=world)
    return AdaptedCLIPWithCrossAttention(
        clip, text_adapt_until=2, image_adapt_until=2, relu=False, cross_attn_heads=4
    ).eval()


def state(folder, file):
    return torch.load(folder / file, weights_only=True)


def same(ours, theirs, keys=KEYS):
    return all(torch.equal(ours[key][name], value) for key in keys for name, value in theirs[key].items())


def digest(module):
    content = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        content.update(name.encode() + value.contiguous().numpy().tobytes())
    return content.hexdigest()


@pytest.mark.bit_equality
def test_a_run_leaves_every_loops_files_with_the_shared_keys(run):
    folder = run("run")
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
def test_one_loop_is_train_cross_attention_bit_for_bit(run, context):
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
    plain = run("plain", *shared, script=train_cross_attention)
    looped = run("looped", *shared, "--num_feedback_loops", "1", "--loop1_image_epoch", "2")
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
    wanted = F.normalize(model.clipmodel.encode_image(batch["image"])[0], dim=-1)
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
def test_loop_2s_prompts_attend_to_the_first_level_of_what_loop_1_trained(run, model, monkeypatch):
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
    folder = run("run", "--num_feedback_loops", "2")
    batch, patches, contexts = seen
    load_modules(folder / "loop_1_final.pth", model.text_modules | model.image_modules)
    groups = text_context_groups(text_context_dictionary(model, "MVTec"), batch["class_name"])
    with torch.no_grad():
        cls = F.normalize(model.clipmodel.encode_image(batch["image"])[0], dim=-1)
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
    run, stages
):
    run("run")
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
    run, stages
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
    folder = run("run", *flags)
    assert {type(entry["optimizer"]) for entry in stages} == {torch.optim.AdamW}
    assert {entry["clip"] for entry in stages} == {1.0}
    assert state(folder, "loop_1_text_adapter.pth")["epoch"] == 2
    wanted = state(folder, "final_model.pth")
    for file in ("final_model.pth", "loop_2_final.pth", "loop_1_final.pth", "loop_1_image_adapter.pth"):
        (folder / file).unlink()
    run("run", *flags)
    assert state(folder, "loop_1_text_adapter.pth")["epoch"] == 2 and same(
        state(folder, "final_model.pth"), wanted
    )


@pytest.mark.bit_equality
def test_cross_attention_can_start_in_a_later_loop(run, stages, evaluate):
    folder = run("late", "--cross_attn_start_loop", "2", "--num_feedback_loops", "2")
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
    off = run(
        "off", "--text_cross_attn_weight", "0", "--image_cross_attn_weight", "0", "--num_feedback_loops", "2"
    )
    assert same(first, state(off, "loop_1_final.pth"))
    assert evaluate(folder, "--loop", "1")[0]["mean"] == evaluate(off, "--loop", "1")[0]["mean"]
    without = evaluate(folder, "--loop", "2", "--no_cross_attention")[0]["mean"]
    assert evaluate(folder, "--loop", "2")[0]["mean"] != without
    assert (folder / "train.log").read_text(encoding="utf-8").count("hardly learns") == 0


@pytest.mark.parametrize("context", ["none", "image"])
def test_an_attention_that_starts_in_this_loop_is_not_yet_part_of_the_trained_path(run, stages, context):
    run("late", "--cross_attn_start_loop", "2", "--text_context", context)
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


def kill_after(monkeypatch, writes):
    """Stop the process, as it were, right after its n-th checkpoint file; None lets it live."""
    real, count = run_state.save_checkpoint, [0]

    def save_checkpoint(path, content):
        real(path, content)
        count[0] += 1
        if count[0] == writes:
            raise KeyboardInterrupt

    for module in (run_state, feedback):
        monkeypatch.setattr(module, "save_checkpoint", save_checkpoint)
    return count


def killed_and_started_again(run, monkeypatch, points, *flags):
    with monkeypatch.context() as patched:
        count = kill_after(patched, None)
        wanted = state(run("whole", *flags), "final_model.pth")
    assert count[0] == WRITES
    for writes in points:
        with monkeypatch.context() as patched:
            kill_after(patched, writes)
            with pytest.raises(KeyboardInterrupt):
                run(f"killed_{writes}", *flags)
        folder = run(f"killed_{writes}", *flags)
        assert same(state(folder, "final_model.pth"), wanted), f"killed after {writes} files"
        loops = json.loads((folder / "history.json").read_text(encoding="utf-8"))["loops"]
        assert [(len(loop["text"]), len(loop["image"])) for loop in loops] == [(2, 1), (2, 1), (1, 1)]


@pytest.mark.bit_equality
def test_a_run_killed_between_two_files_and_started_again_ends_with_the_same_model(run, monkeypatch):
    killed_and_started_again(run, monkeypatch, [1, 5, 6])


@pytest.mark.bit_equality
def test_a_loop_whose_file_is_damaged_is_made_again_from_its_stages_and_testing_refuses_it(run, evaluate):
    folder = run("run")
    wanted = state(folder, "final_model.pth")
    for name in ("loop_2_final.pth", "final_model.pth", "loop_2_text_adapter.pth"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    with pytest.raises(RuntimeError, match="final_model.pth .* is damaged"):
        evaluate(folder)
    assert run("run") == folder and same(state(folder, "final_model.pth"), wanted)
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert "Going on from loop 1: later loops are made again" in log
    assert "loop_2_text_adapter.pth is damaged" in log and evaluate(folder)


@pytest.mark.slow
@pytest.mark.bit_equality
@pytest.mark.parametrize("context", ["none", "train_mean", "image"])
def test_a_run_killed_after_any_of_its_files_ends_with_the_same_model(run, monkeypatch, context):
    killed_and_started_again(
        run,
        monkeypatch,
        range(1, WRITES + 1),
        "--text_context",
        context,
        "--recipe",
        "v2",
        "--cross_attn_start_loop",
        "2",
    )


@pytest.mark.bit_equality
def test_a_finished_run_continues_with_more_loops_and_refuses_fewer_or_other_settings(run):
    wanted = state(run("whole"), "final_model.pth")
    run("parts", "--num_feedback_loops", "2")
    folder = run("parts")
    assert (
        same(state(folder, "final_model.pth"), wanted)
        and state(folder, "final_model.pth")["total_loops"] == 3
    )
    with pytest.raises(ValueError, match="--num_feedback_loops 2: .* already has loop 3"):
        run("parts", "--num_feedback_loops", "2")
    with pytest.raises(RuntimeError, match="other settings: --lr_decay_per_loop was 0.5, is 0.9"):
        run("parts", "--lr_decay_per_loop", "0.9")
    (folder / "loop_2_final.pth").unlink()
    with pytest.raises(FileNotFoundError, match="but not loop_2_final.pth"):
        run("parts")


@pytest.mark.bit_equality
def test_a_baselines_adapters_start_the_first_loop(run, base_flags):
    start = run("start", "--text_epoch", "1", "--image_epoch", "1", script=train_cross_attention)
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
    folder = run("looped", *flags, "--num_feedback_loops", "2")
    final = state(folder, "final_model.pth")
    assert same(final, state(start, "text_adapter_cross_attn.pth"), ["text_adapter"])
    assert same(final, state(start, "image_adapter_cross_attn.pth"), ["image_adapter"])
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert (
        "text_adapter: loaded, trained 1 epochs" in log and "image_adapter: carried over from loop 1" in log
    )


def test_stages_that_do_not_learn_are_named_in_the_log(run, monkeypatch):
    monkeypatch.setattr(learning_curves, "FAINT", 1e9)
    log = (run("run", "--num_feedback_loops", "2") / "train.log").read_text(encoding="utf-8")
    for loop in (1, 2):
        for module in KEYS:
            stage = module.split("_")[0]
            assert f"WARNING loop {loop}, stage {stage}: {module} hardly learns" in log


@pytest.mark.bit_equality
@pytest.mark.parametrize("context", ["none", "train_mean", "image"])
def test_the_final_model_one_loop_and_all_loops_are_evaluated_and_set_side_by_side(run, evaluate, context):
    folder = run("run", "--text_context", context)
    every = [result["mean"] for result in evaluate(folder, "--all")]
    assert len(every) == 3 and every[0] != every[1]
    (final,), (second,) = evaluate(folder), evaluate(folder, "--loop", "2")
    assert final["mean"] == every[2] and second["mean"] == every[1]
    (named,) = evaluate(folder, "--checkpoint", str(folder / "loop_1_final.pth"))
    assert named["mean"] == every[0]
    entries = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["MVTec"]
    assert sorted(entries) == ["final_model.pth", "loop_1_final.pth", "loop_2_final.pth", "loop_3_final.pth"]
    assert entries["final_model.pth"]["kind"] == "feedback"
    table = (folder / "loops.md").read_text(encoding="utf-8")
    assert f"| 1 | {100 * every[0]['pixel_auroc']:.2f} |" in table.replace("**", "").replace(" (best)", "")
    assert "## MVTec\n" in table and table.count("(best)") == 1 and "looking at this test set" in table
    with pytest.raises(FileNotFoundError, match=r"--loop 4: .* it has loops \[1, 2, 3\]"):
        evaluate(folder, "--loop", "4")


def test_with_image_anchors_loop_2_is_evaluated_on_the_trained_path(run, evaluate, monkeypatch):
    folder, used = run("run", "--num_feedback_loops", "2", "--text_context", "image"), []

    def spied(name, real):
        return lambda *arguments: used.append(name) or real(*arguments)

    for name in ("trained_image_features", "frozen_image_features"):
        monkeypatch.setattr(loaded_run, name, spied(name, getattr(loaded_run, name)))
    one, two = evaluate(folder, "--all")
    assert used == ["frozen_image_features", "trained_image_features"]
    (again,) = evaluate(folder, "--loop", "2", "--batch_size", "1")
    assert again["mean"]["pixel_auroc"] == pytest.approx(two["mean"]["pixel_auroc"], abs=1e-4)


@pytest.mark.bit_equality
def test_a_loop_file_of_another_program_without_extra_keys_is_evaluated(run, evaluate):
    folder = run("run", "--num_feedback_loops", "2")
    (wanted,) = evaluate(folder, "--loop", "2")
    content = state(folder, "loop_2_final.pth")
    torch.save({key: content[key] for key in KEYS} | {"total_loops": 2}, folder / "final_model.pth")
    flags = [
        "--model_name",
        MODEL,
        "--img_size",
        "32",
        "--text_adapt_until",
        "2",
        "--image_adapt_until",
        "2",
        "--surgery_until_layer",
        "3",
        "--cross_attn_heads",
        "4",
    ]
    assert evaluate(folder, *flags)[0]["mean"] == wanted["mean"]


@pytest.mark.bit_equality
def test_evaluating_every_loop_gives_tests_numbers_and_changes_no_weight(run, evaluate):
    quiet = run("quiet")
    folder = run("evaluated", "--eval_every_loop", "MVTec", "--text_context", "none")
    assert same(state(folder, "final_model.pth"), state(quiet, "final_model.pth"))
    entries = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["MVTec"]
    assert (folder / "loops.md").is_file()
    wanted = [with_old_names(result["mean"]) for result in evaluate(quiet, "--all")]
    assert [entries[f"loop_{n}_final.pth"]["mean"] for n in (1, 2, 3)] == wanted
    run("evaluated")  # the flag may differ when a run is started again


def test_loops_of_a_bfloat16_run_are_evaluated_in_float32_and_trained_in_bfloat16(run, monkeypatch):
    seen = []

    def spy(module, name, model_of):
        whole = getattr(module, name)

        def noting(*args, **keywords):
            seen.append((name, model_of(args).clipmodel.visual.autocast))
            return whole(*args, **keywords)

        monkeypatch.setattr(module, name, noting)

    spy(evaluated_loops, "evaluate_dataset", lambda args: args[0].network)
    spy(feedback, "train_one_stage", lambda args: args[0].model)
    run("low", "--eval_every_loop", "MVTec", "--num_feedback_loops", "2", "--precision", "bf16")
    stages = [("train_one_stage", torch.bfloat16)] * 2
    assert seen == [*stages, ("evaluate_dataset", None)] * 2


def test_the_loop_table_marks_the_best_loop_and_the_change_against_the_first():
    def metrics(value, aupro=None):
        names = ("pixel_auroc", "pixel_ap", "image_auroc", "image_ap")
        return {name: value for name in names} | {"pixel_aupro": aupro}

    rows = loop_table({2: metrics(0.9, 0.9), 1: metrics(0.8), 10: metrics(0.85)}).splitlines()
    assert rows[0].startswith("| loop | pixel AUROC | pixel AP | pixel AUPRO |")
    assert rows[2] == "| 1 | 80.00 | 80.00 | – | 80.00 | 80.00 |"
    assert rows[4] == "| 10 | 85.00 (+5.00) | 85.00 (+5.00) | – | 85.00 (+5.00) | 85.00 (+5.00) |"
    assert rows[3].startswith("| **2 (best)** | **90.00 (+10.00)** |") and "**90.00**" in rows[3]
    assert "best" not in loop_table({1: metrics(0.8)})


def test_a_loop_trained_without_cross_attention_is_loaded_without(run):
    folder = run(
        "late",
        "--cross_attn_start_loop",
        "2",
        "--num_feedback_loops",
        "2",
        "--text_cross_attn_weight",
        "0.2",
        "--image_cross_attn_weight",
        "0.3",
    )
    first, last = load_run(folder, loop=1), load_run(folder)
    assert not first.attends and first.text_contexts("MVTec") == {}
    assert last.attends and len(last.text_contexts("MVTec")) == 15
    content = state(folder, "loop_1_final.pth")
    del content["cross_attention"]  # as other programs write it
    torch.save(content, folder / "loop_1_final.pth")
    again = load_run(folder, loop=1)
    assert again.attends and len(again.text_contexts("MVTec")) == 15
    attention = again.model.attention
    assert (attention.text_cross_attn_weight, attention.image_cross_attn_weight) == (0.2, 0.3)


def test_a_missing_evaluation_set_stops_the_run_before_it_trains(run, tmp_path):
    with pytest.raises(FileNotFoundError):
        run("run", "--eval_every_loop", "VisA")
    assert not list((tmp_path / "run").glob("*.pth"))


def test_pictures_of_attention_and_the_gradient_script_read_a_feedback_run(
    run, evaluate, data_root, world, capsys
):
    folder = run("run", "--num_feedback_loops", "2")
    evaluate(folder, "--attention_of", "mvtec_ad/bottle/test/broken/000.png")
    assert len(list((folder / "attention" / "MVTec").iterdir())) == 2
    test_stage2_gradients.main(
        [
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
            "--cross_attn_heads",
            "4",
            "--dataset",
            "MVTec",
            "--data_root",
            str(data_root),
            "--run",
            str(folder),
            "--batch_size",
            "4",
            "--batches",
            "1",
            "--image_cross_attn_weight",
            "0",
        ]
    )
    assert "[OK]" in capsys.readouterr().out
