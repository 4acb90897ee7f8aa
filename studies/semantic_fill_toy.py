"""Toy study of semantic fill: can the transformer put a defect where only the map says?

    python -m studies.semantic_fill_toy

Pictures of 64 x 64 pixels, a slope of one colour; the target has a dark ellipse at a random place, and only the
semantic map knows where. The small backbone is random, so all of it is trained. An arm whose JSON lies in
results/synthesis/toy/ is not repeated. Reported: the velocity's mean squared error on unseen pictures at t = 0.7,
relative to the arm without semantics, and how well the ellipses of sampled pictures overlap those of the map, beside
what the codec itself keeps of them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from files.atomic import write_text
from files.command import run_main
from files.logs import open_logger
from run_folder.flags import HelpFormatter

ARMS = {  # arm: (semantic layers, layout, positions, fill mask, what its relative error is expected to be)
    "none": (0, "33k", "none", "panel", "1 by definition"),
    "source": (1, "source", "none", "panel", "about 1"),
    "33k_local": (1, "33k", "local", "panel", "at most 0.92"),
    "33k_local_semantic_fill": (1, "33k", "local", "semantic", "at most 0.5"),
    "none_semantic_fill": (0, "33k", "none", "semantic", "the fill mask without attention"),
}


def table(results: dict[str, dict]) -> str:
    """Markdown of {arm: result}; relative errors need the arm without semantics."""
    titles = (
        "arm",
        "velocity MSE",
        "relative to none",
        "expected",
        "overlap of samples",
        "codec alone",
        "CPU s",
    )
    lines = ["| " + " | ".join(titles) + " |", "|" + "--|" * len(titles)]
    base = results.get("none", {}).get("velocity_mse")
    for arm, result in results.items():
        relative = f"{result['velocity_mse'] / base:.3f}" if base else "–"
        lines.append(
            f"| {arm} | {result['velocity_mse']:.4f} | {relative} | {ARMS[arm][-1]} | {result['overlap']:.3f} | "
            f"{result['codec_overlap']:.3f} | {result['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), help="default all")
    parser.add_argument("--steps", type=int, default=500, help="updates of every arm")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures per update")
    parser.add_argument("--size", type=int, default=64, help="panel side in pixels")
    parser.add_argument("--train_pictures", type=int, default=256, help="pictures an arm learns from")
    parser.add_argument("--test_pictures", type=int, default=64, help="unseen pictures an arm is measured on")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, weights, noise and order")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/synthesis/toy"),
        help="folder of JSON files, pictures and table",
    )
    args = parser.parse_args(argv)
    from studies.toy_arm import run_arm  # seconds, which --help does not wait for
    from synthesis.weights import library_versions

    torch.set_num_threads(1)  # the figures are those of one thread
    logger = open_logger("semantic_fill_toy")
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("arms", "out")}
    results = {}
    for arm in ARMS:
        file = args.out / f"{arm}_seed{args.seed}.json"
        if file.is_file():
            results[arm] = json.loads(file.read_text(encoding="utf-8"))
            if results[arm]["settings"] != settings:
                raise ValueError(
                    f"{file} was made with {results[arm]['settings']}, not {settings}: give another --out"
                )
        elif arm in args.arms:
            logger.info(f"arm {arm}")
            result = run_arm(ARMS[arm], args, logger, args.out / f"{arm}_seed{args.seed}.png")
            results[arm] = {"arm": arm, "settings": settings, **result, "versions": library_versions()}
            write_text(file, json.dumps(results[arm], indent=1) + "\n")
        write_text(args.out / f"table_seed{args.seed}.md", table(results))
    logger.info(table(results))


if __name__ == "__main__":
    run_main(main)
