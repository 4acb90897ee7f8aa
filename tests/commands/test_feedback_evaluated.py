"""Feedback runs evaluated as a user does it, loop by loop: test.py, evaluation/loops.py."""

import json

import pytest
import torch
from checkpoint_contents import state
from cross_attention_world import MODEL
from feedback_miniature import KEYS, same
from flag_words import words

import test_stage2_gradients
from evaluation import loops as evaluated_loops
from evaluation.loops import loop_table
from metrics import with_old_names
from run_folder import loaded_run
from run_folder.loaded_run import load_run
from training import feedback


@pytest.mark.bit_equality
@pytest.mark.parametrize("context", ["none", "train_mean", "image"])
def test_the_final_model_one_loop_and_all_loops_are_evaluated_and_set_side_by_side(
    train_loops, evaluate, context
):
    folder = train_loops("run", "--text_context", context)
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


def test_with_image_anchors_loop_2_is_evaluated_on_the_trained_path(train_loops, evaluate, monkeypatch):
    folder, used = train_loops("run", "--num_feedback_loops", "2", "--text_context", "image"), []

    def spied(name, real):
        return lambda *arguments: used.append(name) or real(*arguments)

    for name in ("trained_image_features", "frozen_image_features"):
        monkeypatch.setattr(loaded_run, name, spied(name, getattr(loaded_run, name)))
    one, two = evaluate(folder, "--all")
    assert used == ["frozen_image_features", "trained_image_features"]
    (again,) = evaluate(folder, "--loop", "2", "--batch_size", "1")
    assert again["mean"]["pixel_auroc"] == pytest.approx(two["mean"]["pixel_auroc"], abs=1e-4)


@pytest.mark.bit_equality
def test_a_loop_file_of_another_program_without_extra_keys_is_evaluated(train_loops, evaluate):
    folder = train_loops("run", "--num_feedback_loops", "2")
    (wanted,) = evaluate(folder, "--loop", "2")
    content = state(folder, "loop_2_final.pth")
    torch.save({key: content[key] for key in KEYS} | {"total_loops": 2}, folder / "final_model.pth")
    flags = words(
        model_name=MODEL,
        img_size=32,
        text_adapt_until=2,
        image_adapt_until=2,
        surgery_until_layer=3,
        cross_attn_heads=4,
    )
    assert evaluate(folder, *flags)[0]["mean"] == wanted["mean"]


@pytest.mark.bit_equality
def test_evaluating_every_loop_gives_tests_numbers_and_changes_no_weight(train_loops, evaluate):
    quiet = train_loops("quiet")
    folder = train_loops("evaluated", "--eval_every_loop", "MVTec", "--text_context", "none")
    assert same(state(folder, "final_model.pth"), state(quiet, "final_model.pth"))
    entries = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["MVTec"]
    assert (folder / "loops.md").is_file()
    wanted = [with_old_names(result["mean"]) for result in evaluate(quiet, "--all")]
    assert [entries[f"loop_{n}_final.pth"]["mean"] for n in (1, 2, 3)] == wanted
    train_loops("evaluated")  # the flag may differ when a run is started again


def test_loops_of_a_bfloat16_run_are_evaluated_in_float32_and_trained_in_bfloat16(train_loops, monkeypatch):
    seen = []

    def spy(module, name, model_of):
        whole = getattr(module, name)

        def noting(*args, **keywords):
            seen.append((name, model_of(args).clipmodel.visual.autocast))
            return whole(*args, **keywords)

        monkeypatch.setattr(module, name, noting)

    spy(evaluated_loops, "evaluate_dataset", lambda args: args[0].network)
    spy(feedback, "train_one_stage", lambda args: args[0].model)
    train_loops("low", "--eval_every_loop", "MVTec", "--num_feedback_loops", "2", "--precision", "bf16")
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


def test_a_loop_trained_without_cross_attention_is_loaded_without(train_loops):
    folder = train_loops(
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


def test_a_missing_evaluation_set_stops_the_run_before_it_trains(train_loops, tmp_path):
    with pytest.raises(FileNotFoundError):
        train_loops("run", "--eval_every_loop", "VisA")
    assert not list((tmp_path / "run").glob("*.pth"))


def test_pictures_of_attention_and_the_gradient_script_read_a_feedback_run(
    train_loops, evaluate, gradient_flags, capsys
):
    folder = train_loops("run", "--num_feedback_loops", "2")
    evaluate(folder, "--attention_of", "mvtec_ad/bottle/test/broken/000.png")
    assert len(list((folder / "attention" / "MVTec").iterdir())) == 2
    test_stage2_gradients.main(
        [*gradient_flags, "--run", str(folder), "--batches", "1", "--image_cross_attn_weight", "0"]
    )
    assert "[OK]" in capsys.readouterr().out
