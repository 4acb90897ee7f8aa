"""Arms on real photographs: trained on rendered DemoA, tested on real defects, read where they lie.

    python -m studies.real_images --root ../shared/real_defects --out results/real_images
    python -m studies.real_images --root ../shared/real_defects --arms baseline anchor_late --seeds 511 512 513

RealDefects (three classes with masks) and RealImages (one more, image labels only) are declared by --root's
real_defects.json; ELPV and Textile are pip packages that `make datasets` unpacks under --data_root. A set that is not
there is named and left out. One JSON per set, arm and seed; what has one is not repeated. Pictures are never copied.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataset.constants import DATA_PATH
from files.atomic import write_text
from files.command import Refusal, run_main
from run_folder.checkpoints import versions
from run_folder.flags import HelpFormatter
from scripts.commands import ONE_THREAD
from studies.arm_harness import is_trained, run_command
from studies.arm_registry import ARMS, RARITY_WEIGHT, Arm
from studies.arm_runs import MODEL, ROOT, caches, training_command
from studies.class_halves import declare
from studies.evaluation_entry import entry_of
from studies.rarity_weight import weight_of

TRAIN = "DemoA"
DECLARED, PACKAGES = ("RealDefects", "RealImages"), ("ELPV", "Textile")
UNTRAINED = {
    "raw_clip": Arm(None, testing=("--raw_clip",), control=True),
    "local_contrast": Arm(None, testing=("--local_contrast",), control=True),
    "rarity_alone": ARMS["rarity_alone"],
}
CHOICES = UNTRAINED | ARMS
COLUMNS = ("pixel_auroc", "pixel_ap", "pixel_aupro", "image_auroc_unnormalised", "image_auroc", "image_ap")
HEADS = ("pixel AUROC", "pixel AP", "AUPRO", "image AUROC, each image alone", "image AUROC", "image AP")


class TestSet(NamedTuple):
    """A set of real pictures: its data root, and the file that declares it (None: built in)."""

    name: str
    data_root: Path
    config: Path | None

    def flags(self) -> list[str]:
        """How a command finds it."""
        declared = [] if self.config is None else ["--dataset_config", str(self.config)]
        return ["--dataset", self.name, "--data_root", str(self.data_root), *declared]


class Places(NamedTuple):
    """Folder of the rendered training set, of the run folders, and of the JSON files."""

    data: Path
    runs: Path
    out: Path

    def folder(self, arm: str, seed: int) -> Path:
        """The run folder: of what is tested again that of its training, of what is not trained one of its own."""
        own = CHOICES[arm].retests or arm
        return self.runs / (f"{own}_seed{seed}" if CHOICES[own].script else own)

    def file(self, test_set: str, arm: str, seed: int) -> Path:
        """The JSON of an evaluation; what is not trained has no seed."""
        return self.out / test_set / (f"{arm}_seed{seed}.json" if has_seed(arm) else f"{arm}.json")


def has_seed(arm: str) -> bool:
    """Whether an arm is trained, itself or as the run it tests again."""
    return bool(CHOICES[arm].script or CHOICES[arm].retests)


def sets_found(root: Path, data_root: Path) -> tuple[list[TestSet], list[str]]:
    """(the sets that are there, what is missing, as sentences)."""
    config, missing = root / "real_defects.json", []
    found = [TestSet(name, root, config) for name in DECLARED if config.is_file()]
    if not found:
        missing.append(f"{' and '.join(DECLARED)}: no {config}")
    for name in PACKAGES:
        if (data_root / DATA_PATH[name]).is_dir():
            found.append(TestSet(name, data_root, None))
        else:
            missing.append(f"{name}: no {data_root / DATA_PATH[name]}; `make datasets` unpacks it")
    return found, missing


def train(arm: str, seed: int, places: Places) -> list[list[str]]:
    """Train an arm's run unless it is finished; its command, none for what is not trained."""
    own = CHOICES[arm].retests or arm
    if CHOICES[own].script is None:
        return []
    folder, flags = places.folder(arm, seed), list(CHOICES[own].flags)
    if not is_trained(folder):
        words = ["-m", "demo_world.render_sets", "--name", TRAIN, "--out", str(places.data), "--seed", "1"]
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
        cached = [*flags, *caches(places.data)]
        run_command(training_command(CHOICES[own].script, cached, seed, TRAIN, places.data, folder))
    return [training_command(CHOICES[own].script, [*flags, *caches("DATA")], seed, TRAIN)]


def testing_flags(arm: str, first_seed: int, places: Places) -> list[str]:
    """An arm's flags of test.py, with the weight of rarity that is found on the training classes."""
    flags = list(CHOICES[arm].testing)
    if RARITY_WEIGHT not in flags:
        return flags
    config = declare(places.data, TRAIN)
    weight = weight_of(places.out / "rarity_weight.json", TRAIN, places.data, config, places.runs, first_seed)
    return [f"{weight:g}" if word == RARITY_WEIGHT else word for word in flags]


def make_run(arm: str, seed: int, first_seed: int, test_set: TestSet, places: Places) -> dict[str, Any]:
    """Train what has to be trained, test, and return the JSON's content."""
    begin, commands = time.perf_counter(), train(arm, seed, places)
    folder = places.folder(arm, seed)
    own = ["--model_name", MODEL, "--seed", str(seed), *testing_flags(arm, first_seed, places)]
    test = ["test.py", *test_set.flags(), "--save_path", str(folder), *own]
    run_command(test)
    entry = entry_of(folder, test_set.name, test)
    shown = [word.replace(str(test_set.data_root), "ROOT").replace(str(folder), "RUN") for word in test]
    return {
        "arm": arm,
        "seed": seed if has_seed(arm) else None,
        "train": TRAIN if has_seed(arm) else None,
        "test": test_set.name,
        "commands": [" ".join(["python", *words]) for words in [*commands, shown]],
        "seconds": round(time.perf_counter() - begin, 1),
        "threads": int(ONE_THREAD["OMP_NUM_THREADS"]),
        "rows": entry["rows"],  # which pictures, by hash
        "backbone": entry.get("backbone"),
        "metrics": {"mean": entry["mean"], "classes": entry["classes"]},
        "versions": versions(),
    }


def read_kept(out: Path) -> list[dict[str, Any]]:
    """The kept evaluations of known arms, by set, arm and seed."""
    files = [file for name in (*DECLARED, *PACKAGES) for file in sorted((out / name).glob("*.json"))]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def table(kept: Sequence[dict[str, Any]]) -> str:
    """Markdown: the command of what is kept, then a row per set, class and arm, percent, mean over the seeds (smallest
    to largest); a dash where there is no such metric."""
    rows: dict[tuple[str, str, str], list[dict]] = {}
    for run in kept:
        for name, metrics in run["metrics"]["classes"].items():
            rows.setdefault((run["test"], name, run["arm"]), []).append(metrics)
    arms = [arm for arm in CHOICES if any(run["arm"] == arm for run in kept)]
    seeds = sorted({run["seed"] for run in kept} - {None})
    command = f"    python -m studies.real_images --arms {' '.join(arms)}"
    lines = [command + (f" --seeds {' '.join(map(str, seeds))}" if seeds else ""), ""]
    lines += [f"| set | class | arm | runs | {' | '.join(HEADS)} |", "|--|--|--|--|" + "--|" * len(HEADS)]
    order = list(CHOICES)
    for (test_set, name, arm), found in sorted(
        rows.items(), key=lambda row: (*row[0][:2], order.index(row[0][2]))
    ):
        cells = []
        for column in COLUMNS:
            values = [metrics.get(column) for metrics in found]
            cells.append("–" if None in values else told(values))
        lines.append(f"| {test_set} | {name} | {arm} | {len(found)} | {' | '.join(cells)} |")
    missing = [name for name in (*DECLARED, *PACKAGES) if all(run["test"] != name for run in kept)]
    return "\n".join([*lines, "", *(f"Not evaluated here: {name}" for name in missing)]).rstrip() + "\n"


def told(values: Sequence[float]) -> str:
    """Percent: the mean, and the smallest and the largest of several."""
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f}–{100 * max(values):.1f})"


def write_table(out: Path) -> None:
    """Write the table of what is kept, and print it."""
    text = table(read_kept(out))
    write_text(out / "real_images.md", text)
    print(text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--root", default="../shared/real_defects", help="folder with real_defects.json")
    parser.add_argument("--data_root", default="data", help="folder of ELPV and Textile")
    parser.add_argument(
        "--arms", nargs="+", choices=list(CHOICES), default=list(UNTRAINED), help="default: untrained"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[511, 512, 513], help="of the trained arms")
    parser.add_argument(
        "--runs", default="runs/real_images", help="folder of rendered images and run folders"
    )
    parser.add_argument(
        "--out", default=str(ROOT / "results" / "real_images"), help="folder of the JSON files"
    )
    parser.add_argument("--tables_only", action="store_true", help="remake the table from what is kept")
    args = parser.parse_args(argv)
    if args.tables_only:
        write_table(Path(args.out).resolve())
        return
    runs, out = Path(args.runs).resolve(), Path(args.out).resolve()
    places = Places(runs / "data_seed1", runs, out)
    sets, missing = sets_found(Path(args.root).resolve(), Path(args.data_root).resolve())
    if not sets:
        raise Refusal("no set of real pictures is here:\n" + "\n".join(missing))
    for one in missing:
        print(f"not evaluated here: {one}", flush=True)
    for seed in args.seeds:
        for arm in args.arms:
            for test_set in sets:
                file = places.file(test_set.name, arm, seed)
                if file.is_file():
                    continue
                print(f"{test_set.name}: {arm}" + (f", seed {seed}" if has_seed(arm) else ""), flush=True)
                run = make_run(arm, seed, args.seeds[0], test_set, places)
                write_text(file, json.dumps(run, indent=1) + "\n")
    write_table(out)


if __name__ == "__main__":
    run_main(main)
