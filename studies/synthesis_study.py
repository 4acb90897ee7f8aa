"""Do synthetic anomalies help the detector? Few-shot training on DemoA with and without them, tested on DemoB.

    python -m studies.synthesis_study --seeds 111 112 113

Arms: the k shots alone (real), and with as many extra images as there are shots: textures in Perlin noise (perlin),
semantic fill trained on the same k shots (generated), and half of these sham normal images (sham). All see the same
number of updates. One process per training; a run whose JSON lies in --out is not repeated, so the study can be
stopped, continued, extended, and split over processes by seed. The table is --out/table.md.
"""

import argparse
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import cv2

from files.atomic import write_text
from files.command import run_main
from run_folder.flags import HelpFormatter
from studies import arm_runs, paired_report
from studies.arm_runs import MODEL, ROOT
from studies.references import REFERENCES, for_every_seed
from studies.synthesis_arms import ARMS, FILL_MODEL, SIZE, TEST_SET, TRAIN_SET, python, run, settings_of

# arm: those held against it
PAIRS = {"real": ["perlin", "generated", "sham"], "perlin": ["generated", "sham"], "generated": ["sham"]}
Results = dict[tuple[str, int, int], dict]  # {(arm, shot, seed): a run's JSON}


def build_parser() -> argparse.ArgumentParser:
    """The study's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[111, 112, 113], help="training seeds")
    parser.add_argument("--shots", type=int, nargs="+", default=[2, 16], help="numbers k of shots per class")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="some of the arms")
    parser.add_argument("--ratio", type=float, default=0.5, help="extra images' share of the training set")
    parser.add_argument("--text_steps", type=int, default=128, help="updates of stage 1 in every arm")
    parser.add_argument("--image_steps", type=int, default=256, help="updates of stage 2 in every arm")
    parser.add_argument("--fill_steps", type=int, default=600, help="updates of semantic fill")
    parser.add_argument("--fill_size", type=int, default=128, help="side of a panel")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="of the detector's training"
    )
    parser.add_argument("--data", default="runs/study/data", help="the rendered demo sets; made if missing")
    parser.add_argument(
        "--work", default="runs/synthesis_study", help="triptychs, generated images, unfinished runs"
    )
    parser.add_argument(
        "--out", default=str(ROOT / "results/synthesis"), help="folder of JSON files and table"
    )
    parser.add_argument(
        "--tables_only",
        action="store_true",
        help="remake the table from the runs that are there; train nothing",
    )
    return parser


def read_results(out: Path, args: Namespace) -> Results:
    """{(arm, shot, seed): result} of the JSON files in a folder.

    Raises:
        ValueError: one was made with other settings.
    """
    results = {}
    for file in sorted(out.glob("*shot_seed*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["settings"] != settings_of(args):
            raise ValueError(f"{file} has {result['settings']}, not {settings_of(args)}: give another --out")
        results[result["arm"], result["shot"], result["seed"]] = result
    return results


def tables(results: Results, references: dict[tuple[str, int], dict]) -> str:
    """Markdown, for each number of shots: what the arms change against the one PAIRS holds them against.

    Args:
        results: {(arm, shot, seed): result}.
        references: {(reference, seed): its evaluation on the test set}, beside the arms that train on real shots.
    """
    parts = []
    for shot in sorted({shot for _, shot, _ in results}):
        runs = {(arm, seed): result for (arm, k, seed), result in results.items() if k == shot}
        for base, arms in PAIRS.items():
            if any(arm == base for arm, _ in runs) and any(arm in arms for arm, _ in runs):
                beside = for_every_seed(runs | references) if base == "real" else runs
                rows = [*arms, *REFERENCES]
                parts.append(
                    f"## {shot} shots, against {base}\n\n"
                    + paired_report.report(beside, rows, TEST_SET, base)
                )
    return "\n".join(parts)


def report(results: Results, references: dict[tuple[str, int], dict], args: Namespace) -> str:
    """The text of --out/table.md."""
    seeds = " ".join(str(seed) for seed in sorted({seed for _, _, seed in results}))
    shots = " ".join(str(shot) for shot in sorted({shot for _, shot, _ in results}))
    flags = " ".join(f"--{key} {value}" for key, value in settings_of(args).items())
    seconds = [result["seconds"] + result["generation_seconds"] for result in results.values()]
    return f"""# Synthetic anomalies as extra training data: the table

    python -m studies.synthesis_study --seeds {seeds} --shots {shots} {flags}

The baseline detector (`train.py`, {MODEL}) trained on k shots of {TRAIN_SET} and tested on {TEST_SET}: other
classes, other defects.

* `real`: the k shots per class, half of them anomalous. The other arms add images, all made from the same k shots,
  until these are a share {args.ratio} of the training set. `perlin`: foreign textures blended into Perlin noise (after
  DRAEM). `generated`: semantic fill ({FILL_MODEL[1]} model, {args.fill_size} px, {args.fill_steps} updates on the
  shots' own defects) in the shots' masks, moved. `sham`: the same, but half of the images are normal ones that went
  through codec and pasting and have label 0.
* Equal work: every arm has {args.text_steps} updates of stage 1 and {args.image_steps} of stage 2. More images mean
  fewer epochs, so real images are seen less often. `perlin` and `generated` also shift the labels towards anomalous,
  `sham` keeps them even.
* The k shots are the dataset's own k-shot file, the same for all seeds. A seed changes adapters, order, augmentation,
  semantic fill's training, and every mask and sample.
* Seconds per run, generation included: {min(seconds):.0f} to {max(seconds):.0f}. Each run's commands, versions and
  metrics by class are in its JSON file; `images_<k>shot.jpg` shows source, label and image of `generated`.

{tables(results, references)}"""


def keep_picture(sheet: Path, file: Path) -> None:
    """A contact sheet at half its size as JPEG."""
    if sheet.is_file() and not file.is_file():
        cv2.imwrite(
            str(file), cv2.resize(cv2.imread(str(sheet)), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        )


def run_missing(args: Namespace, out: Path) -> None:
    """Train and test what has no JSON in `out` yet, and write it there."""
    data, work = Path(args.data).resolve(), Path(args.work).resolve()
    for name in (TRAIN_SET, TEST_SET):
        python("-m", "demo_world.render_sets", "--name", name, "--out", str(data), "--size", str(SIZE))
    read_results(out, args)
    for seed in args.seeds:
        for shot in args.shots:
            for arm in args.arms:
                file = out / f"{arm}_{shot}shot_seed{seed}.json"
                if file.is_file():
                    continue
                print(f"{arm}, {shot} shots, seed {seed}", flush=True)
                text = json.dumps(run(args, arm, shot, seed, data, work), indent=1)
                write_text(file, text.replace(str(data), "DATA").replace(str(work), "WORK") + "\n")
                keep_picture(
                    work / f"generated_images_{shot}shot_seed{seed}" / "contact_sheet.png",
                    out / f"images_{shot}shot.jpg",
                )
    tasks = [(reference, args.seeds[0]) for reference in REFERENCES]
    arm_runs.run_missing(tasks, REFERENCES, TRAIN_SET, [TEST_SET], data, work, out)


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    out = Path(args.out)
    if not args.tables_only:
        run_missing(args, out)
    results, references = read_results(out, args), arm_runs.read_results(out, REFERENCES, TRAIN_SET)
    write_text(out / "table.md", report(results, references, args))
    print(tables(results, references))


if __name__ == "__main__":
    run_main(main)
