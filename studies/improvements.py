"""Improvements of the method, tried where no test set is looked at: trained on one half of DemoA's classes, tested on
the other, and the other way round.

    python -m studies.improvements --seeds 311 312 --precision bf16

One run per process; finished runs in results/improvements/ are not repeated. The images come from a data seed of their
own. What wins here is run once on DemoB, with fresh seeds: `python -m studies.evidence --study self_reference`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dataset.constants import DATA_PATH, DOMAINS, REAL_NAMES
from dataset.jsonl import read_rows, write_rows
from files.atomic import write_text
from files.command import run_main
from run_folder.flags import HelpFormatter
from studies.arm_runs import CROSS, ROOT, read_results, run_missing
from studies.evidence import IDEA, OFF, REFERENCE, STEPS, add_study_flags, tasks
from studies.paired_report import report
from studies.references import REFERENCES, for_every_seed, reference_tasks

ARMS = {  # arm: (script, flags)
    "baseline": IDEA["baseline"],
    "cross_attention": IDEA["cross_attention"],
    "later_gated": (CROSS, [*STEPS, "--image_cross_attn_after", "5", "--cross_attn_gate", "zero"]),
    "self_reference_no_head": (CROSS, [*STEPS, *REFERENCE, "--self_reference_head", "0"]),
    "self_reference": (CROSS, [*STEPS, *REFERENCE]),
    "self_reference_alone": (CROSS, [*STEPS, *REFERENCE, *OFF]),
}
CONFIG = "halves.json"
HALVES = ("DemoA_even", "DemoA_odd")


def declare_halves(data: Path) -> None:
    """Write CONFIG beside rendered DemoA: its classes in turns as two datasets."""
    rows = [row for _, row in read_rows(data / "DemoA" / "full-shot.jsonl")]
    entries = {}
    for number, half in enumerate(HALVES):
        classes = dict(list(REAL_NAMES["DemoA"].items())[number::2])
        write_rows([row for row in rows if row["class_name"] in classes], data / f"{half}.jsonl")
        entries[half] = {
            "path": DATA_PATH["DemoA"],
            "domain": DOMAINS["DemoA"],
            "classes": classes,
            "metadata": f"{half}.jsonl",
        }
    write_text(data / CONFIG, json.dumps(entries, indent=1) + "\n")


def both_halves(results: dict[str, dict[tuple[str, int], dict]]) -> dict[tuple[str, int], dict]:
    """Runs whose test classes are all of DemoA's, for the paired report.

    Args:
        results: {training half: {(arm, seed): JSON}}.

    Returns:
        {(arm, seed): {"metrics": {"DemoA": {"classes": ...}}}} of the runs that both halves have.
    """
    first, second = (results[half] for half in HALVES)
    return {
        key: {
            "metrics": {
                "DemoA": {
                    "classes": first[key]["metrics"][HALVES[1]]["classes"]
                    | second[key]["metrics"][HALVES[0]]["classes"]
                }
            }
        }
        for key in first.keys() & second.keys()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_study_flags(parser, "improvements", [311, 312], data_seed=2)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *REFERENCES], help="default all")
    args = parser.parse_args(argv)
    out, data = Path(args.out), Path(args.runs).resolve() / f"data_seed{args.data_seed}"
    render = [
        "-m",
        "demo_world.render_sets",
        "--name",
        "DemoA",
        "--out",
        str(data),
        "--seed",
        str(args.data_seed),
    ]
    if not args.tables_only:
        subprocess.run([sys.executable, *render], cwd=ROOT, check=True)
        declare_halves(data)
    every = {arm: (script, [*flags, "--precision", args.precision]) for arm, (script, flags) in ARMS.items()}
    every |= REFERENCES
    chosen = args.arms or every
    todo = tasks([arm for arm in ARMS if arm in chosen], args.seeds, args.shard)
    todo += reference_tasks(chosen, args.seeds)
    results = {}
    for half, other in (HALVES, HALVES[::-1]):
        read_results(out / half, every, half, CONFIG)  # a mismatch is better found before anything is trained
        if not args.tables_only:
            run_missing(todo, every, half, [other], data, data.parent / half, out / half, CONFIG)
        results[half] = read_results(out / half, every, half, CONFIG)
    merged = for_every_seed(both_halves(results))
    seeds = " ".join(str(seed) for seed in sorted({seed for _, seed in merged}))
    command = f"python -m studies.improvements --seeds {seeds} --data_seed {args.data_seed}"
    command += f" --precision {args.precision}"
    table = report(merged, [*ARMS, *REFERENCES], "DemoA")
    if any(arm == "rarity_alone" for arm, _ in merged):
        table += "\n" + report(merged, list(ARMS), "DemoA", "rarity_alone")
    write_text(out / "table.md", f"    {command}\n\n{table}")
    print(table)


if __name__ == "__main__":
    run_main(main)
