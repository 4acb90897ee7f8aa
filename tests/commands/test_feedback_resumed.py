"""Feedback runs that were killed, damaged or continued: train_cross_attention_feedback.py started again."""

import json

import pytest
from checkpoint_contents import state
from feedback_miniature import WRITES, same

from run_folder import state as run_state
from training import feedback


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


def killed_and_started_again(train_loops, monkeypatch, points, *flags):
    with monkeypatch.context() as patched:
        count = kill_after(patched, None)
        wanted = state(train_loops("whole", *flags), "final_model.pth")
    assert count[0] == WRITES
    for writes in points:
        with monkeypatch.context() as patched:
            kill_after(patched, writes)
            with pytest.raises(KeyboardInterrupt):
                train_loops(f"killed_{writes}", *flags)
        folder = train_loops(f"killed_{writes}", *flags)
        assert same(state(folder, "final_model.pth"), wanted), f"killed after {writes} files"
        loops = json.loads((folder / "history.json").read_text(encoding="utf-8"))["loops"]
        assert [(len(loop["text"]), len(loop["image"])) for loop in loops] == [(2, 1), (2, 1), (1, 1)]


@pytest.mark.bit_equality
def test_a_run_killed_between_two_files_and_started_again_ends_with_the_same_model(train_loops, monkeypatch):
    killed_and_started_again(train_loops, monkeypatch, [1, 5, 6])


@pytest.mark.bit_equality
def test_a_loop_whose_file_is_damaged_is_made_again_from_its_stages_and_testing_refuses_it(
    train_loops, evaluate
):
    folder = train_loops("run")
    wanted = state(folder, "final_model.pth")
    for name in ("loop_2_final.pth", "final_model.pth", "loop_2_text_adapter.pth"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    with pytest.raises(RuntimeError, match="final_model.pth .* is damaged"):
        evaluate(folder)
    assert train_loops("run") == folder and same(state(folder, "final_model.pth"), wanted)
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert "Going on from loop 1: later loops are made again" in log
    assert "loop_2_text_adapter.pth is damaged" in log and evaluate(folder)


@pytest.mark.slow
@pytest.mark.bit_equality
@pytest.mark.parametrize("context", ["none", "train_mean", "image"])
def test_a_run_killed_after_any_of_its_files_ends_with_the_same_model(train_loops, monkeypatch, context):
    killed_and_started_again(
        train_loops,
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
def test_a_finished_run_continues_with_more_loops_and_refuses_fewer_or_other_settings(train_loops):
    wanted = state(train_loops("whole"), "final_model.pth")
    train_loops("parts", "--num_feedback_loops", "2")
    folder = train_loops("parts")
    assert (
        same(state(folder, "final_model.pth"), wanted)
        and state(folder, "final_model.pth")["total_loops"] == 3
    )
    with pytest.raises(ValueError, match="--num_feedback_loops 2: .* already has loop 3"):
        train_loops("parts", "--num_feedback_loops", "2")
    with pytest.raises(RuntimeError, match="other settings: --lr_decay_per_loop was 0.5, is 0.9"):
        train_loops("parts", "--lr_decay_per_loop", "0.9")
    (folder / "loop_2_final.pth").unlink()
    with pytest.raises(FileNotFoundError, match="but not loop_2_final.pth"):
        train_loops("parts")
