"""Both recipes of the feedback loop: training/feedback_recipes.py; what training/history.py says of epochs."""

import json
from dataclasses import fields

import pytest
import torch
from torch import nn

from run_folder import flags as command_line
from run_folder.flags import parse
from training import feedback_recipes as recipes
from training.feedback import write_loops
from training.history import curves, draw_curves, training_warnings, write_history


def flags(*argv):
    return recipes.fill_in(parse("a test", recipes.GROUPS, list(argv)))


def epochs(*argv):
    return [(loop.text_epochs, loop.image_epochs) for loop in recipes.plan(flags(*argv))]


def test_recipe_v1_shortens_the_loops_and_halves_the_rates():
    plan = recipes.plan(flags())
    assert [(loop.loop, loop.text_epochs, loop.image_epochs) for loop in plan] == [
        (1, 5, 20),
        (2, 3, 10),
        (3, 2, 5),
    ]
    assert [(loop.text_lr, loop.image_lr) for loop in plan] == [
        (1e-5, 5e-4),
        (5e-6, 2.5e-4),
        (2.5e-6, 1.25e-4),
    ]
    assert all(loop.cross_attention for loop in plan)


def test_recipe_v2_decays_epochs_and_rates_by_0_8():
    plan = recipes.plan(flags("--recipe", "v2", "--num_feedback_loops", "5"))
    assert [(loop.text_epochs, loop.image_epochs) for loop in plan] == [
        (5, 15),
        (4, 12),
        (3, 10),
        (3, 8),
        (2, 6),
    ]
    assert [loop.text_lr for loop in plan] == pytest.approx([2e-5 * 0.8**n for n in range(5)])
    assert [loop.image_lr for loop in plan] == pytest.approx([5e-3 * 0.8**n for n in range(5)])
    own = flags("--recipe", "v2").feedback
    assert (own.optimizer, own.betas, own.weight_decay, own.schedule, own.warmup_epochs, own.clip_norm) == (
        "adamw",
        [0.9, 0.999],
        0.01,
        "cosine",
        2,
        1.0,
    )
    assert (own.plateau_threshold, own.plateau_patience) == (0.01, 2)


def test_any_number_of_loops_the_third_loops_epochs_hold_for_later_ones():
    assert epochs("--num_feedback_loops", "5")[2:] == [(2, 5)] * 3
    assert epochs("--num_feedback_loops", "5", "--loop3_text_epoch", "7", "--loop3_image_epoch", "1")[1:] == [
        (3, 10),
        (7, 1),
        (7, 1),
        (7, 1),
    ]


def test_given_flags_win_over_either_recipe():
    assert epochs("--loop1_text_epoch", "1", "--loop2_image_epoch", "4") == [(1, 20), (3, 4), (2, 5)]
    assert epochs("--text_epoch", "9", "--image_epoch", "8") == [(9, 8), (5, 4), (4, 2)]
    assert epochs("--text_epoch", "1", "--image_epoch", "1") == [(1, 1)] * 3
    assert epochs("--text_epoch", "0") == [(0, 20), (0, 10), (0, 5)]
    assert epochs("--epoch_decay_per_loop", "0.5")[1:] == [(2, 10), (1, 5)]
    assert epochs("--recipe", "v2", "--text_epoch", "10", "--loop2_image_epoch", "0")[:2] == [
        (10, 15),
        (8, 0),
    ]
    settings = flags(
        *"--recipe v2 --optimizer adam --betas 0.1 0.2 --text_lr 1 --clip_norm 0 --milestones 16000".split()
    )
    own, training = settings.feedback, settings.training
    assert (own.optimizer, own.betas, training.text_lr, own.clip_norm) == ("adam", [0.1, 0.2], 1.0, 0.0)
    assert settings.corrections.milestones == [16000.0] and training.image_lr == 5e-3
    assert flags().corrections.milestones == [0.5, 0.8]
    help_of_recipe = next(one for one in fields(recipes.FeedbackSettings) if one.name == "recipe").metadata[
        "help"
    ]
    assert "v2 also --text_lr 2e-05, --image_lr 0.005, --text_epoch 5, --image_epoch 15" in help_of_recipe


def test_a_backbones_own_rates_win_over_recipe_v1_and_given_ones_over_all(tmp_path, monkeypatch):
    file = tmp_path / "run_defaults.json"
    file.write_text(
        json.dumps({"Own": {"text_lr": 0.25, "image_lr": 0.125, "text_epoch": 4}}), encoding="utf-8"
    )
    monkeypatch.setattr(command_line, "MODEL_DEFAULTS", file)

    def rates_of(*argv):
        training = flags("--model_name", "Own", *argv).training
        return training.text_lr, training.image_lr

    assert rates_of() == (0.25, 0.125) and recipes.plan(flags("--model_name", "Own"))[0].text_epochs == 4
    assert rates_of("--text_lr", "0.5") == (0.5, 0.125)
    assert rates_of("--recipe", "v2", "--text_lr", "0.5") == (0.5, 5e-3)


def test_cross_attention_starts_at_its_loop():
    plan = recipes.plan(flags("--num_feedback_loops", "4", "--cross_attn_start_loop", "3"))
    assert [loop.cross_attention for loop in plan] == [False, False, True, True]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("num_feedback_loops", "0"),
        ("cross_attn_start_loop", "0"),
        ("clip_norm", "-1"),
        ("lr_decay_per_loop", "0"),
        ("epoch_decay_per_loop", "-0.8"),
        ("loop2_text_epoch", "-1"),
        ("warmup_epochs", "-1"),
        ("lr_decay_per_loop", "nan"),
    ],
)
def test_values_that_make_no_schedule_are_refused_by_name(flag, value):
    with pytest.raises(ValueError, match=f"--{flag} .*expected"):
        flags(f"--{flag}", value)


def rates(settings, stage, epochs, steps):
    """The learning rate of every step of a stage, as parts of the optimiser's."""
    own = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, seen = recipes.scheduler(settings, own, stage, epochs, steps), []
    for _ in range(epochs * steps):
        seen.append(own.param_groups[0]["lr"])
        own.step()
        scheduler.step()
    return seen


def schedule(kind, warmup=0, milestones=(0.5, 0.8)):
    return flags().change(schedule=kind, warmup_epochs=warmup, milestones=list(milestones))


def test_milestones_halve_the_image_rate_at_half_and_four_fifths_of_the_loop_and_leave_the_texts():
    assert rates(schedule("milestones"), "image", 5, 2) == [1.0] * 5 + [0.5] * 3 + [0.25] * 2
    assert rates(schedule("milestones"), "text", 5, 2) == [1.0] * 10
    assert rates(schedule("milestones", 1, [3.0]), "image", 2, 2) == [0.5, 1.0, 1.0, 0.5]


def test_warm_up_rises_linearly_and_a_cosine_falls_to_zero():
    seen = rates(schedule("cosine", 2), "text", 6, 2)
    assert seen[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert seen[8] == pytest.approx(0.5) and seen == sorted(seen[:5]) + sorted(seen[5:], reverse=True)
    assert 0 < seen[-1] < 0.05
    assert rates(schedule("cosine", 2), "image", 1, 2) == pytest.approx([1.0, 0.5])  # no room to warm up
    assert rates(schedule("cosine", 2), "image", 2, 1) == pytest.approx(
        [1.0, 1.0]
    )  # half of the stage at most
    assert rates(schedule("cosine", 2), "image", 0, 2) == []


def test_the_optimiser_has_the_recipes_class_and_values():
    modules = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 1)}
    adam = recipes.optimizer(flags().feedback, modules, 1e-3)
    assert type(adam) is torch.optim.Adam and len(adam.param_groups[0]["params"]) == 4
    assert (adam.defaults["lr"], adam.defaults["betas"], adam.defaults["weight_decay"]) == (
        1e-3,
        (0.5, 0.999),
        0,
    )
    adamw = recipes.optimizer(flags("--recipe", "v2").feedback, modules, 1e-3)
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["betas"], adamw.defaults["weight_decay"]) == ((0.9, 0.999), 0.01)


def flat(losses, patience=2, threshold=0.01, warmup=0):
    own = dict(plateau_patience=patience, plateau_threshold=threshold, warmup_epochs=warmup)
    return recipes.plateau(recipes.FeedbackSettings(**own), 10)([{"loss": loss} for loss in losses])


def test_a_plateau_is_enough_flat_epochs_in_a_row():
    assert flat([2.0, 1.995, 1.99])
    assert flat([3.0, 2.0, 2.5, 2.49])  # rising is flat
    assert (
        not flat([2.0, 1.995, 1.9])
        and not flat([2.0, 1.9, 1.895])
        and not flat([2.0, 1.995])
        and not flat([])
    )
    assert flat([0.0, 0.0, 0.0]) and flat([-1.0, -1.001, -1.002]) and not flat([-1.0, -1.1, -1.2])
    assert recipes.plateau(flags().feedback, 10) is None
    assert recipes.plateau(flags("--plateau_patience", "1").feedback, 10)([{"loss": 2.0}, {"loss": 1.99}])


def test_warm_up_epochs_are_no_plateau():
    assert not flat([2.0, 2.0, 2.0], warmup=2) and flat([2.0, 2.0, 2.0, 2.0], warmup=2)


def history(losses, **norms):
    return [
        {
            "epoch": n,
            "loss": loss,
            "terms": {"segmentation": loss},
            "lr": 0.1,
            "gradients": {key: values[n] for key, values in norms.items()},
        }
        for n, loss in enumerate(losses)
    ]


def test_a_loss_that_does_not_fall_and_a_faint_gradient_are_named_with_numbers_and_remedy():
    (told,) = training_warnings(2, "image", history([3.16, 3.2, 3.16]))
    for part in ("loop 2, stage image: the loss did not fall", "3.1600", "--image_lr"):
        assert part in told
    faint = history([2, 1], text_adapter=[1.0, 1.0], text_cross_attn=[1.0, 9e-4])
    (told,) = training_warnings(3, "text", faint)
    for part in (
        "loop 3, stage text: text_cross_attn hardly learns",
        "9.00e-04",
        "epoch 2 of 2",
        "test_stage2",
    ):
        assert part in told
    assert training_warnings(1, "text", history([2, 1], text_adapter=[1.0, 1e-3])) == []
    assert training_warnings(1, "text", history([2.0])) == [] and training_warnings(1, "text", []) == []


def test_curves_run_through_the_loops_and_the_picture_marks_their_borders(tmp_path):
    loops = [
        {"loop": 1, "text": history([3, 2], a=[1, 2]), "image": []},
        {"loop": 2, "text": history([1], a=[0], b=[4]), "image": history([5])},
    ]
    found, borders = curves(loops, "text", lambda entry: entry["gradients"])
    assert found == {"a": ([1, 2, 3], [1, 2, 0]), "b": ([3], [4])} and borders == [2.5]
    write_loops(tmp_path, loops)
    assert json.loads((tmp_path / "history.json").read_text(encoding="utf-8"))["loops"] == loops
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "learning_curves.png"]


def test_a_run_without_feedback_writes_its_history_and_no_picture(tmp_path):
    write_history(tmp_path, [{"loop": 1, "text": [], "image": history([2, 1])}])
    assert [path.name for path in tmp_path.iterdir()] == ["history.json"]


def test_a_picture_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "learning_curves.png"
    path.write_bytes(b"before")

    def crash(self, file, **options):
        file.write(b"half a picture")
        raise OSError("no space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", crash)
    with pytest.raises(OSError, match="no space left"):
        draw_curves(path, [{"loop": 1, "text": history([1]), "image": []}])
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_the_help_of_a_recipes_flag_has_the_value_of_every_recipe():
    help_of = {one.name: one.metadata["help"] for one in fields(recipes.FeedbackSettings)}
    assert help_of["betas"] == "of the optimiser; v1 0.5 0.999, v2 0.9 0.999"
    assert help_of["epoch_decay_per_loop"].endswith("; v1 none, v2 0.8")
    assert help_of["optimizer"] == "v1 adam, v2 adamw"
