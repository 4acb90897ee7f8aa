"""The main job end to end on the embedded default: render, score without training, train, evaluate, report.

    python -m scripts.demo --out runs/demo

Leaves report.md, compare.py's report.html, a contact sheet per test set, and the runs with their logs, metrics and
heatmaps. Rendering and training that are done are not repeated, evaluation is; delete the folder to start again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from demo_world import render_sets
from files.atomic import write_text
from files.pictures import safe_name, sheet, write_png
from scripts.commands import run_command

MODEL = "ViT-Tiny-8-demo"
TRAIN_SET, TEST_SETS = "DemoA", ("DemoB", "DemoPhoto", "DemoPhotoMed")
COLUMNS = ("pixel_auroc", "pixel_ap", "pixel_aupro", "image_auroc", "image_ap")
PICTURED = 2  # defective images per class on the contact sheet
CONTINUED = {  # run: (script, flags); short, because each starts from the baseline's adapters
    "cross-attention": ("train_cross_attention.py", ["--text_epoch", "1", "--image_epoch", "3"]),
    "feedback": (
        "train_cross_attention_feedback.py",
        [
            "--num_feedback_loops",
            "2",
            "--text_epoch",
            "1",
            "--image_epoch",
            "2",
        ],
    ),
}
UNTRAINED = {"local contrast": "--local_contrast", "raw CLIP": "--raw_clip"}  # what training has to beat
NOTE = (
    "Local contrast is a filter without any learning; what does not beat it has learnt nothing that shows here. "
    "Cross-attention and feedback go on from the baseline's adapters for a few epochs: the rows show that everything "
    "runs, not which method is better; they took more steps than the baseline. Paired studies are in results/."
)


def evaluate(run: Path, data: Path, flags: Sequence[str]) -> None:
    """Evaluate a run on every test set."""
    for name in TEST_SETS:
        run_command(
            "test.py",
            [
                *flags,
                "--model_name",
                MODEL,
                "--dataset",
                name,
                "--data_root",
                str(data),
                "--save_path",
                str(run),
                "--visualize",
            ],
        )


def bind_folder_to_seeds(out: Path, seeds: dict[str, int]) -> None:
    """Tie a demo folder to its seeds, so that a model of other data is never evaluated as if it were this one's.

    Raises:
        ValueError: the folder belongs to other seeds.
    """
    stamp = out / "demo.json"
    before = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else seeds
    if before != seeds:
        raise ValueError(
            f"{out} was made with {before}, not {seeds}: choose another --out or delete the folder"
        )
    write_text(stamp, json.dumps(seeds) + "\n")


def table(runs: dict[str, Path]) -> str:
    """Markdown table: one line per test set and run, percent."""
    lines = ["| test set | run | " + " | ".join(COLUMNS) + " |", "|--|--|" + "--|" * len(COLUMNS)]
    for name in TEST_SETS:
        for title, run in runs.items():
            (entry,) = json.loads((run / "metrics.json").read_text(encoding="utf-8"))[name].values()
            values = [entry["mean"][key] for key in COLUMNS]
            cells = " | ".join("–" if value is None else f"{100 * value:.1f}" for value in values)
            lines.append(f"| {name} | {title} | {cells} |")
    return "\n".join(lines) + "\n"


def contact_sheet(runs: dict[str, Path], dataset_name: str) -> np.ndarray:
    """Original, truth and each run's heatmap for some defective images of every class."""
    first, *others = runs.values()
    folder = Path("visualization") / safe_name(dataset_name)
    rows = []
    for class_folder in sorted((first / folder).iterdir()):
        defective = [path.name for path in sorted(class_folder.glob("*.png")) if "__good__" not in path.name]
        for name in defective[:: max(1, len(defective) // PICTURED)][:PICTURED]:
            strips = [
                cv2.imread(str(run / folder / class_folder.name / name))[..., ::-1]
                for run in (first, *others)
            ]
            side = strips[0].shape[1] // 3
            rows.append([strips[0][:, : 3 * side], *(strip[:, 2 * side : 3 * side] for strip in strips[1:])])
    half = (len(rows) + 1) // 2
    return sheet(
        [[sheet([row]) for row in pair] for pair in zip(rows[:half], rows[half:] + rows[-1:], strict=False)]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/demo", help="folder of the report, the data and the runs")
    parser.add_argument("--seed", type=int, default=111, help="seed of training")
    parser.add_argument("--data_seed", type=int, default=0, help="seed of the rendered images")
    args = parser.parse_args(argv)
    out, begin = Path(args.out), time.perf_counter()
    data = out / "data"
    runs = {title: out / flag.lstrip("-") for title, flag in UNTRAINED.items()}
    runs["baseline"] = out / "baseline"
    common = [
        "--model_name",
        MODEL,
        "--dataset",
        TRAIN_SET,
        "--data_root",
        str(data),
        "--seed",
        str(args.seed),
    ]

    bind_folder_to_seeds(out, {"seed": args.seed, "data_seed": args.data_seed})
    print(f"[1/6] render {TRAIN_SET}, {', '.join(TEST_SETS)}")
    render_sets.main(["--out", str(data), "--seed", str(args.data_seed)])
    print("[2/6] without training: a contrast filter, and unadapted CLIP")
    for title, flag in UNTRAINED.items():
        evaluate(runs[title], data, [flag])
    print(f"[3/6] train the baseline on {TRAIN_SET}, evaluate it on classes and defects it has not seen")
    run_command("train.py", [*common, "--save_path", str(runs["baseline"])])
    evaluate(runs["baseline"], data, [])
    base = [
        "--load_base_text_adapter",
        str(runs["baseline"] / "text_adapter.pth"),
        "--load_base_image_adapter",
        str(runs["baseline"] / "image_adapter.pth"),
    ]
    for number, (title, (script, flags)) in enumerate(CONTINUED.items(), start=4):
        print(f"[{number}/6] {title} from the baseline's checkpoints")
        runs[title] = out / title.replace("-", "_")
        run_command(script, [*common, *base, *flags, "--save_path", str(runs[title])])
        evaluate(runs[title], data, [])

    print("[6/6] compare")
    report = compare_runs(runs, data, out, args.seed)
    print(
        f"\n{report}\n{time.perf_counter() - begin:.0f} s. Report, heatmaps and contact sheets are in {out}"
    )


def compare_runs(runs: dict[str, Path], data: Path, out: Path, seed: int) -> str:
    """Write report.html, report.md and the contact sheets of all runs; the table of report.md."""
    arms = [f"{title}={runs[title]}" for title in CONTINUED]
    run_command(
        "compare.py",
        [
            "--baseline",
            f"baseline={runs['baseline']}",
            "--runs",
            *arms,
            "--datasets",
            *TEST_SETS,
            "--data_root",
            str(data),
            "--out",
            str(out),
        ],
    )
    report = table(runs)
    for name in TEST_SETS:
        write_png(out / f"contact_sheet_{name}.png", contact_sheet(runs, name))
    write_text(
        out / "report.md", f"# Demo: trained on {TRAIN_SET}, seed {seed}, percent\n\n{report}\n{NOTE}\n"
    )
    return report


if __name__ == "__main__":
    main()
