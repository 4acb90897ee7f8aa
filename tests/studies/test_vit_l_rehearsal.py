"""A rehearsal at the real size: all three training scripts and test.py with ViT-L's shapes on a CPU, random weights.

Takes a quarter of an hour or more and about 8 GB. REHEARSAL_SIZE=224 makes it smaller.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.jsonl import write_rows
from files.atomic import write_text
from files.pictures import write_png

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "real_defects"
SIZE = os.environ.get("REHEARSAL_SIZE", "518")
CLASSES = {"solar_cell": "solar cell", "screws": "wooden block with four screws"}
EACH = 4  # normal and as many defective pictures of a class
PASSES = ["--text_epoch", "1", "--image_epoch", "1"]
SCRIPTS = {
    "train.py": PASSES,
    "train_cross_attention.py": PASSES,
    "train_cross_attention_feedback.py": [*PASSES, "--num_feedback_loops", "1"],
}


def drawn_rows(folder):
    """Rows of drawn pictures: noise, with a bright patch where there is a defect."""
    random, rows = np.random.default_rng(0), []
    for name in CLASSES:
        for number in range(2 * EACH):
            picture = random.integers(60, 120, (256, 256, 3), dtype=np.uint8)
            mask = np.zeros((256, 256, 3), np.uint8)
            row = {"image_path": f"{name}/{number}.png", "class_name": name, "label": number % 2}
            if number % 2:
                place = slice(20 * number, 20 * number + 40)
                picture[place, place] = mask[place, place] = 255
                row["mask_path"] = f"{name}/{number}_mask.png"
                write_png(folder / "data" / row["mask_path"], mask)
            write_png(folder / "data" / row["image_path"], picture)
            rows.append(row)
    return rows


def real_rows():
    """The first pictures of each class and label, read where they lie."""
    lines = (REAL / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows, taken = [], {}
    for row in map(json.loads, lines):
        key = row["class_name"], row["label"]
        taken[key] = taken.get(key, 0) + 1
        if row["class_name"] in CLASSES and taken[key] <= EACH:
            rows.append(row)
    return rows


@pytest.fixture
def data_flags(tmp_path):
    """How the commands find eight pictures of each class: real ones where they are there, else drawn ones."""
    is_there = (REAL / "rows.jsonl").is_file()
    rows = real_rows() if is_there else drawn_rows(tmp_path)
    assert len(rows) == len(CLASSES) * 2 * EACH
    write_rows(rows, tmp_path / "few.jsonl")
    entry = {"path": "data", "domain": "Industrial", "classes": CLASSES, "metadata": "few.jsonl"}
    write_text(tmp_path / "few.json", json.dumps({"Few": entry}))
    root = REAL if is_there else tmp_path
    return ["--dataset", "Few", "--dataset_config", str(tmp_path / "few.json"), "--data_root", str(root)]


@pytest.fixture
def weights(tmp_path):
    """Random weights of ViT-L-14-336's shapes, 0.9 GB."""
    sys.path.insert(0, str(ROOT / "tests" / "parity"))
    from reference_weights import clip_state_dict

    file = tmp_path / "ViT-L-14-336px.pt"
    torch.save(clip_state_dict(7), file)
    yield file
    file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("script", list(SCRIPTS))
def test_vit_l_trains_and_is_tested_end_to_end(tmp_path, script, data_flags, weights):
    common = [*data_flags, "--clip_weights", str(weights), "--save_path", str(tmp_path / "run")]
    training = [*SCRIPTS[script], "--training_mode", "full_shot", "--img_size", SIZE, *common]
    told = tmp_path / "told.json"
    words = ["-m", "studies.real_study.timing", str(told), json.dumps([script, training])]
    ended = subprocess.run(
        [sys.executable, *words, json.dumps(["test.py", common])], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    took = json.loads(told.read_text(encoding="utf-8"))
    train, test = took["seconds"]
    print(
        f"{script} at {SIZE} px: training {train:.0f} s, test {test:.0f} s, at most {took['peak_gb']:.1f} GB"
    )
    (entry,) = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["Few"].values()
    assert set(entry["classes"]) == set(CLASSES)
    assert all(0 <= entry["mean"][metric] <= 1 for metric in ("pixel_auroc", "pixel_ap", "image_auroc"))
    loops = json.loads((tmp_path / "run" / "history.json").read_text(encoding="utf-8"))["loops"]
    assert all(np.isfinite(one["loss"]) for stage in ("text", "image") for one in loops[0][stage])
