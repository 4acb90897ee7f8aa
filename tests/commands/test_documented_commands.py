"""What the fork's documents tell a user to type: the v2 command, its log lines, `--check_shapes`."""

import inspect
import re

import pytest
import torch
from cross_attention_world import MODEL, WIDTH, write_world

import train
import train_cross_attention
import train_cross_attention_feedback
import train_cross_attention_feedback_v2
from training import feedback
from training.engine import mean_total_norm
from training.history import loop_lines
from training.shapes import Row, is_documented, line_of

LENGTHS = "--text_epoch 2 --image_epoch 2 --warmup_epochs 0 --plateau_patience 0".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("documented"))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """tests/training/test_feedback_recipes.py draws one."""
    monkeypatch.setattr(feedback, "draw_curves", lambda path, loops: None)


@pytest.fixture
def tiny_flags(world, data_root):
    """The tiny CLIP and its data; a user of ViT-L at 518 px types --dataset alone."""
    tower = "--img_size 32 --text_adapt_until 2 --image_adapt_until 2 --surgery_until_layer 3".split()
    batches = "--training_mode full_shot --text_batch_size 6 --image_batch_size 3".split()
    data = ["--dataset", "MVTec", "--data_root", str(data_root)]
    return ["--model_name", MODEL, "--clip_weights", str(world), *tower, *data, *batches]


@pytest.fixture
def base(tiny_flags, tmp_path):
    """Folder of a trained baseline."""
    train.main(
        [*tiny_flags, "--text_epoch", "1", "--image_epoch", "1", "--save_path", str(tmp_path / "base")]
    )
    return tmp_path / "base"


def documented(base, save_path):
    """The documented command line; two loops in place of five."""
    return [
        "--save_path",
        str(save_path),
        "--num_feedback_loops",
        "2",
        "--image_lr",
        "0.002",
        "--load_base_text_adapter",
        str(base / "text_adapter.pth"),
        "--load_base_image_adapter",
        str(base / "image_adapter.pth"),
        "--cross_attn_heads",
        "4",
    ]


@pytest.mark.bit_equality
def test_the_v2_command_is_the_feedback_command_with_recipe_v2(tiny_flags, base, tmp_path):
    flags = [*tiny_flags, *LENGTHS]
    train_cross_attention_feedback_v2.main([*flags, *documented(base, tmp_path / "v2")])
    train_cross_attention_feedback.main([*flags, *documented(base, tmp_path / "named"), "--recipe", "v2"])
    ours, theirs = (
        torch.load(tmp_path / name / "final_model.pth", weights_only=True) for name in ("v2", "named")
    )
    assert ours["total_loops"] == 2 and ours["settings"]["recipe"] == "v2"
    assert (ours["settings"]["optimizer"], ours["settings"]["image_lr"]) == ("adamw", 0.002)
    moved = {flag for flag, value in ours["settings"].items() if value != theirs["settings"][flag]}
    assert moved == {"save_path"}
    for key in ("text_adapter", "text_cross_attn", "image_adapter", "image_cross_attn"):
        assert all(torch.equal(value, theirs[key][name]) for name, value in ours[key].items())
    log = (tmp_path / "v2" / "train.log").read_text(encoding="utf-8")
    for name in ("text_adapter", "image_adapter"):
        assert f"{name}: loaded, trained 1 epochs ({base / name}.pth)" in log
    check_log_lines(log)


def check_log_lines(log):
    """Every loop's losses and every epoch's gradient norm are said, beside AA-CLIP's lines."""
    lines = [line.split(" INFO ", 1)[-1] for line in log.splitlines()]
    losses = [float(line.removeprefix("loss: ")) for line in lines if line.startswith("loss: ")]
    epochs = [line for line in lines if re.fullmatch(r"Average Grad Norm: \d+\.\d{6}", line)]
    assert len(losses) == len(epochs) == 8 and all(float(line.split(": ")[1]) > 0 for line in epochs)
    first_and_last = zip(losses[::2], losses[1::2], strict=True)
    stages = [(loop, stage) for loop in (1, 2) for stage in ("text", "image")]
    for (loop, stage), (first, last) in zip(stages, first_and_last, strict=True):
        assert f"Loop {loop} - {stage} loss: {first:.4f} → {last:.4f}" in lines
        assert any(
            re.fullmatch(rf"Loop {loop} - {stage} Average Grad Norm: \d+\.\d{{6}}", line) for line in lines
        )
    assert "training text epoch 0:" in lines and "training image epoch 1:" in lines


def test_a_loops_lines_say_first_and_last_loss_and_the_mean_gradient_norm():
    epochs = [{"loss": 2.0, "gradient_norm": 1.0}, {"loss": 1.75}, {"loss": 1.5, "gradient_norm": 3.0}]
    assert loop_lines(2, "image", epochs) == [
        "Loop 2 - image loss: 2.0000 → 1.5000",
        "Loop 2 - image Average Grad Norm: 2.000000",
    ]
    assert loop_lines(1, "text", [{"loss": 1.0}]) == ["Loop 1 - text loss: 1.0000 → 1.0000"]
    assert loop_lines(1, "text", []) == []


def test_an_epochs_gradient_norm_is_the_mean_over_the_steps_of_the_norm_over_all_modules():
    norms = {"text_adapter": torch.tensor([3.0, 0.0]), "text_cross_attn": torch.tensor([4.0, 2.0])}
    assert mean_total_norm({key: list(values) for key, values in norms.items()}) == 3.5


@pytest.mark.parametrize(
    "script",
    [train_cross_attention, train_cross_attention_feedback, train_cross_attention_feedback_v2],
    ids=lambda script: script.__name__,
)
def test_check_shapes_prints_every_documented_shape_and_gradient_norm_and_writes_nothing(
    script, tiny_flags, base, tmp_path, capsys
):
    capsys.readouterr()
    flags = [
        *tiny_flags,
        "--load_base_text_adapter",
        str(base / "text_adapter.pth"),
        "--cross_attn_heads",
        "4",
    ]
    script.main([*flags, "--save_path", str(tmp_path / "none"), "--check_shapes"])
    assert not (tmp_path / "none").exists()
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    text, image = ({line.split(": [")[0]: line for line in part} for part in split(printed))
    assert text["image context (patches of level 1)"].endswith(f"[B, L, E] = [6, 16, {WIDTH}]")
    assert re.search(rf"\[P, T, W\] = \[16, \d+, {WIDTH}\]$", text["prompts that attend"])
    assert text["anchors"].endswith(f"[B, E, 2] = [6, {WIDTH}, 2]")
    assert text["similarity map"].endswith("[B, 2, H, H] = [6, 2, 32, 32]")
    assert image["text context of a class"].endswith(f"[P*T, W] = [1232, {WIDTH}]")
    assert re.search(r"\[n, 1\+L, C\] = \[\d, 17, 32\]$", image["image tokens that attend"])
    for level in (1, 2, 3, 4):
        assert image[f"patches of level {level}"].endswith(f"[B, L, E] = [3, 16, {WIDTH}]")
        assert image[f"patch logits of level {level}"].endswith("[B, L, 2] = [3, 16, 2]")
    assert image["head"].endswith("[B, 2] = [3, 2]")
    norms = dict(
        re.fullmatch(r"gradient norm of (\S+): (\S+)", line).groups() for line in printed if "norm of" in line
    )
    parts = [
        f"{part}.{kind}" for part in ("q_proj", "k_proj", "v_proj", "out_proj") for kind in ("weight", "bias")
    ]
    assert norms.keys() == {
        f"{key}.{part}" for key in ("text_cross_attn", "image_cross_attn") for part in parts
    }
    assert all(float(norm) > 1e-8 for name, norm in norms.items() if not name.endswith("k_proj.bias"))


def split(printed):
    """The lines of stage 1 and of stage 2."""
    begin = printed.index(next(line for line in printed if line.startswith("stage image: ")))
    return printed[:begin], printed[begin:]


def test_check_shapes_names_an_attention_that_is_off_and_its_parameters_without_gradient(
    tiny_flags, tmp_path, capsys
):
    off = "--text_cross_attn_weight 0 --cross_attn_gate learned --cross_attn_heads 4 --self_reference 0.3".split()
    train_cross_attention.main([*tiny_flags, *off, "--save_path", str(tmp_path / "none"), "--check_shapes"])
    printed = capsys.readouterr().out
    assert "prompts that attend" not in printed and "image tokens that attend" in printed
    assert "gradient norm of text_cross_attn.q_proj.weight: none" in printed
    assert re.search(r"gradient norm of image_cross_attn.gate: \d", printed)
    assert "gradient norm of self_reference." in printed


def test_a_shape_that_is_not_as_documented_is_marked():
    sizes = {"B": 2, "L": 16}
    right, wrong = Row("patches", ("B", "L", "S"), (2, 16, 9)), Row("patches", ("B", "L", "2"), (2, 16, 9))
    assert is_documented(right, sizes) and line_of(right, sizes) == "  patches: [B, L, S] = [2, 16, 9]"
    assert not is_documented(wrong, sizes) and line_of(wrong, sizes).endswith(
        "[2, 16, 9]  <- not as documented"
    )
    assert not is_documented(Row("patches", ("B", "L"), (2, 16, 9)), sizes)


def test_stage_1_takes_the_documented_arguments_in_the_baselines_order():
    names = (
        "adapted_model clip_surgery text_norm_weight train_loader optimizer device start_epoch save_path text_epoch "
        "dataset_name img_size logger"
    )
    for function in (
        train_cross_attention.train_text_adapter_with_cross_attention,
        train.train_text_adapter,
    ):
        assert list(inspect.signature(function).parameters) == names.split()
