"""What a feedback run's epochs say: warnings about a stage, history.json and its picture."""

import json
from collections.abc import Callable
from pathlib import Path

from files.atomic import replacing, write_text

FAINT = 1e-3  # mean gradient norm of an epoch below which a module hardly learns
PANELS = (  # (title, logarithmic, entry of an epoch -> {curve: value})
    ("loss (epoch mean)", False, lambda entry: {"sum": entry["loss"]} | entry["terms"]),
    ("gradient norm (epoch mean)", True, lambda entry: entry["gradients"]),
    ("learning rate (after the epoch)", False, lambda entry: {"rate": entry["lr"]}),
)


def training_warnings(loop: int, stage: str, history: list[dict]) -> list[str]:
    """What is wrong with a stage's epochs, as sentences with the numbers and a remedy.

    Args:
        loop: its number.  stage: "text" or "image".
        history: its epochs, from training.engine.train_one_epoch.
    """
    warnings, losses = [], [entry["loss"] for entry in history]
    if len(losses) > 1 and not losses[-1] < losses[0]:
        warnings.append(
            f"loop {loop}, stage {stage}: the loss did not fall ({losses[0]:.4f} in the first epoch, {losses[-1]:.4f} "
            f"in the last, {len(losses)} epochs): try another --{stage}_lr or --lr_decay_per_loop, or fewer loops "
            "(--num_feedback_loops)"
        )
    for module in history[0]["gradients"] if history else ():
        norms = [entry["gradients"][module] for entry in history]
        if min(norms) < FAINT:
            warnings.append(
                f"loop {loop}, stage {stage}: {module} hardly learns, its mean gradient norm is {min(norms):.2e} in "
                f"epoch {norms.index(min(norms)) + 1} of {len(norms)} (below {FAINT}): test_stage2_gradients.py shows "
                f"where the gradient goes; a larger --{stage}_lr, or another weight of the module, may help"
            )
    return warnings


def loop_lines(loop: int, stage: str, history: list[dict]) -> list[str]:
    """What a stage's epochs in one loop come to, in the reference fork's words; [] for a stage of no epoch.

    Args:
        loop: its number.  stage: "text" or "image".
        history: its epochs, from training.engine.train_one_epoch.
    """
    if not history:
        return []
    lines = [f"Loop {loop} - {stage} loss: {history[0]['loss']:.4f} → {history[-1]['loss']:.4f}"]
    # Epochs that an older version trained lack the norm.
    norms = [entry["gradient_norm"] for entry in history if "gradient_norm" in entry]
    if norms:
        lines.append(f"Loop {loop} - {stage} Average Grad Norm: {sum(norms) / len(norms):.6f}")
    return lines


def write_history(save_path: Path | str, loops: list[dict]) -> None:
    """Write history.json into a run's folder, what compare.py draws learning curves from.

    Args:
        loops: per loop, in order: {"loop": n, "text": [epochs], "image": [epochs]}, epochs from
            training.engine.train_one_epoch; a run without feedback is one loop.
    """
    write_text(Path(save_path) / "history.json", json.dumps({"loops": loops}, indent=1) + "\n")


def curves(
    loops: list[dict], stage: str, values_of: Callable[[dict], dict[str, float]]
) -> tuple[dict[str, tuple[list, list]], list[float]]:
    """Curves of one panel over the epochs of all loops.

    Returns:
        ({curve: ([x], [value])}, [x of the borders between loops]); x counts the stage's epochs from 1, a border lies
        half an epoch behind a loop's last.
    """
    values_by_curve, borders, done = {}, [], 0
    for loop in loops:
        for entry in loop[stage]:
            done += 1
            for curve, value in values_of(entry).items():
                xs, values = values_by_curve.setdefault(curve, ([], []))
                xs.append(done)
                values.append(value)
        borders.append(done + 0.5)
    return values_by_curve, borders[:-1]


def draw_curves(path: Path, loops: list[dict]) -> None:
    """Write the picture: losses, gradient norms and learning rates of both stages, loop borders dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, because importing it takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    FigureCanvasAgg(figure)
    for row, panels in enumerate(figure.subplots(len(PANELS), 2)):
        title, logarithmic, values_of = PANELS[row]
        for axes, stage in zip(panels, ("text", "image"), strict=True):
            values_by_curve, borders = curves(loops, stage, values_of)
            for curve, (xs, values) in values_by_curve.items():
                axes.plot(xs, values, marker=".", label=curve)
            for border in borders:
                axes.axvline(border, color="grey", linestyle="--", linewidth=0.8)
            if logarithmic and any(min(values) > 0 for _, values in values_by_curve.values()):
                axes.set_yscale("log")
            if values_by_curve:
                axes.legend(fontsize="small")
            axes.set_title(f"{stage} stage: {title}", fontsize="medium")
            axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels:
        axes.set_xlabel("epoch, all loops in a row (dashed: a new loop)")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
