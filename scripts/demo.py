"""The main job end to end on the embedded default: render, score without training, train, evaluate, report.

    python -m scripts.demo --out runs/demo
    python -m scripts.demo --quick --out runs/quick

Shows heatmaps of CLIP without training first (first_heatmaps/). Leaves compare.py's report.html, the page to open,
report.md, a contact sheet per test set, and the runs with their logs, metrics and heatmaps. Rendering and training that
are done are not repeated, evaluation is; delete the folder to start again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from files.atomic import write_text
from files.command import run_main
from files.pictures import write_png
from forward_utils import class_names
from run_folder.flags import HelpFormatter
from scripts.commands import Command, SideBySide
from scripts.contact_sheet import contact_sheet

MODEL = "ViT-Tiny-8-demo"
TRAIN_SET, TEST_SETS = "DemoA", ("DemoB", "DemoPhoto", "DemoPhotoMed")
COLUMNS = ("pixel_auroc", "pixel_ap", "pixel_aupro", "image_auroc", "image_ap")
FIRST_LOOK = (
    "first_heatmaps"  # folder of raw CLIP's heatmaps of some pictures, made before anything is trained
)
OFF = ["--text_cross_attn_weight", "0", "--image_cross_attn_weight", "0"]  # what is left is the baseline
SAME_STEPS = "continued baseline"  # what the others are compared with
CONTINUED = {  # run: (script, flags); short, because each starts from the baseline's adapters
    SAME_STEPS: ("train_cross_attention.py", OFF),
    "cross-attention": ("train_cross_attention.py", []),
    "feedback": ("train_cross_attention_feedback.py", ["--num_feedback_loops", "2"]),
}
EPOCHS = {  # run: (text, image) epochs, None for the backbone's defaults; feedback's are those of its first loop
    "full": {"baseline": None, SAME_STEPS: (2, 3), "cross-attention": (2, 3), "feedback": (1, 2)},
    "quick": {"baseline": (2, 3), SAME_STEPS: (2, 2), "cross-attention": (2, 2), "feedback": (1, 1)},
}
RUNS = {
    title: title.lower().replace(" ", "_").replace("-", "_")
    for title in ("local contrast", "rarity alone", "raw CLIP", "baseline", *CONTINUED)
}
UNTRAINED = {  # what training has to beat
    "local contrast": "--local_contrast",
    "rarity alone": "--rarity_alone",
    "raw CLIP": "--raw_clip",
}
DECLARED = tuple(f"cross-attention:{metric}:DemoB" for metric in ("image_auroc", "pixel_ap"))
NOTE = (
    "Local contrast is a filter without any learning, rarity alone a patch's unlikeness to its own picture in frozen "
    "CLIP, without text or training; what does not beat both has learnt nothing that shows here. "
    "The continued baseline, cross-attention and feedback go on from the baseline's adapters for a few epochs, with "
    "equally many optimisation steps: the continued baseline is the plain method, and the other two are compared with "
    "it. The rows show that everything runs, not which method is better. report.html decides two hypotheses, declared "
    "in scripts/demo.py before any run: these runs of cross-attention and of the continued baseline differ in image "
    "AUROC, and in pixel AP, on DemoB. Its 8 classes could decide 6 at most; all else there is a second look without a "
    "verdict. One seed says nothing about other training seeds. Paired studies are in results/."
)
QUICK_NOTE = "This is the quick demo: the baseline trained 2 + 3 epochs and is far from done."


def pace_flags(data: Path) -> list[str]:
    """The faster library of matrix products, and caches that all runs share, below the rendered pictures.

    All runs have the same seed, so they train on the same augmented pictures, which the frozen backbone sees once.
    """
    cache = data / "cache"
    return [
        *("--matmul", "auto"),
        *("--feature_cache", str(cache / "features")),
        *("--image_cache", str(cache / "pictures")),
    ]


def evaluations(run: Path, data: Path, flags: Sequence[str] = ()) -> list[Command]:
    """The commands that evaluate a run on every test set."""
    common = ["--model_name", MODEL, "--data_root", str(data), "--save_path", str(run), "--visualize"]
    common += pace_flags(data)
    return [("test.py", [*flags, *common, "--dataset", name]) for name in TEST_SETS]


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", default="runs/demo", help="folder of the report, the data and the runs")
    parser.add_argument("--seed", type=int, default=111, help="seed of training")
    parser.add_argument("--data_seed", type=int, default=0, help="seed of the rendered images")
    parser.add_argument(
        "--quick", action="store_true", help="2 + 3 epochs: to see what there is, not how good"
    )
    args = parser.parse_args(argv)
    pace = "quick" if args.quick else "full"
    out, begin = Path(args.out), time.perf_counter()
    data, runs = out / "data", {title: out / folder for title, folder in RUNS.items()}
    seeds = {"seed": args.seed, "data_seed": args.data_seed}
    bind_folder_to_seeds(out, seeds | ({"quick": True} if args.quick else {}))
    print(f"[1/4] render {TRAIN_SET}, {', '.join(TEST_SETS)}")
    with SideBySide() as jobs:
        rendering = ["--out", str(data), "--seed", str(args.data_seed)]
        for name in (TRAIN_SET, *TEST_SETS):
            jobs.start(name, [("demo_world/render_sets.py", ["--name", name, *rendering])])
    page = first_look(data, out)
    print(f"{time.perf_counter() - begin:.0f} s: first heatmaps, of CLIP without training, are in {page}")
    train_and_evaluate(runs, data, args.seed, EPOCHS[pace])
    print("[4/4] compare")
    report = compare_runs(runs, data, out, args.seed, args.quick)
    print(f"\n{report}\n{time.perf_counter() - begin:.0f} s. Open {out / 'report.html'}")


def first_look(data: Path, out: Path) -> Path:
    """Score and draw the test pictures of one class with unadapted CLIP; the page of their heatmaps."""
    name = TEST_SETS[0]
    class_name = class_names(name)[0]
    pictures = Path(data) / name / class_name / "test"
    flags = ["--raw_clip", "--model_name", MODEL, "--class_name", class_name, "--dataset", name]
    flags += ["--input", str(pictures), "--out", str(out / FIRST_LOOK)]
    with SideBySide() as jobs:
        jobs.start("first look", [("predict.py", flags)])
    return out / FIRST_LOOK / "index.html"


def epoch_flags(epochs: tuple[int, int] | None) -> list[str]:
    """The flags of (text, image) epochs."""
    return [] if epochs is None else ["--text_epoch", str(epochs[0]), "--image_epoch", str(epochs[1])]


def train_and_evaluate(runs: dict[str, Path], data: Path, seed: int, epochs: dict) -> None:
    """Train and evaluate every run, side by side where none waits for another's adapters.

    Args:
        epochs: one of EPOCHS.

    Raises:
        RuntimeError: one of them failed; the others are stopped.
    """
    common = ["--model_name", MODEL, "--dataset", TRAIN_SET, "--data_root", str(data), "--seed", str(seed)]
    common += pace_flags(data)
    base = []
    for side in ("text", "image"):
        base += [f"--load_base_{side}_adapter", str(runs["baseline"] / f"{side}_adapter.pth")]
    with SideBySide() as jobs:
        print(
            f"[2/4] train the baseline on {TRAIN_SET}; unadapted CLIP on classes and defects it has not seen"
        )
        trained = jobs.start(
            "baseline",
            [("train.py", [*common, *epoch_flags(epochs["baseline"]), "--save_path", str(runs["baseline"])])],
        )
        for title, flag in UNTRAINED.items():
            jobs.start(title, evaluations(runs[title], data, [flag]))
        trained()
        print(f"[3/4] {' and '.join(CONTINUED)} from the baseline's adapters; evaluate all")
        for title, (script, flags) in CONTINUED.items():
            training = (
                script,
                [*common, *base, *flags, *epoch_flags(epochs[title]), "--save_path", str(runs[title])],
            )
            jobs.start(title, [training, *evaluations(runs[title], data)])
        jobs.start("baseline", evaluations(runs["baseline"], data))


def compare_runs(runs: dict[str, Path], data: Path, out: Path, seed: int, quick: bool) -> str:
    """Write report.html, report.md and the contact sheets of all runs; the table of report.md."""
    arms = [f"{title}={runs[title]}" for title in CONTINUED if title != SAME_STEPS]
    compared = ["--baseline", f"{SAME_STEPS}={runs[SAME_STEPS]}", "--runs", *arms, "--datasets", *TEST_SETS]
    compared += ["--hypotheses", *DECLARED]
    compared += ["--references", *(f"{title}={runs[title]}" for title in UNTRAINED)]
    with SideBySide() as jobs:
        jobs.start("compare", [("compare.py", [*compared, "--data_root", str(data), "--out", str(out)])])
    report = table(runs)
    for name in TEST_SETS:
        write_png(out / f"contact_sheet_{name}.png", contact_sheet(runs, name))
    note = f"{QUICK_NOTE} {NOTE}" if quick else NOTE
    write_text(
        out / "report.md", f"# Demo: trained on {TRAIN_SET}, seed {seed}, percent\n\n{report}\n{note}\n"
    )
    return report


if __name__ == "__main__":
    run_main(main)
