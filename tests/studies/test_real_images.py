"""The arms on real photographs: what is there is evaluated once, what is not is named, pictures stay where they lie."""

import json

import numpy as np
import pytest

from dataset.jsonl import write_rows
from files.atomic import write_text
from files.command import Refusal
from files.pictures import write_png
from scripts.commands import run_command
from studies import real_images


@pytest.fixture
def root(tmp_path):
    """RealDefects with one class of four pictures, RealImages with one of labels alone."""
    folder, rows = tmp_path / "real", []
    for number in range(4):
        picture = np.full((64, 64, 3), 90, np.uint8)
        mask = np.zeros((64, 64, 3), np.uint8)
        if number > 1:
            picture[20:30, 20:30] = mask[20:30, 20:30] = 255
        write_png(folder / "data" / f"{number}.png", picture)
        write_png(folder / "data" / f"{number}_mask.png", mask)
        row = {"image_path": f"{number}.png", "label": int(number > 1), "class_name": "cell"}
        rows.append(row | ({"mask_path": f"{number}_mask.png"} if number > 1 else {}))
    write_rows(rows, folder / "rows.jsonl")
    write_rows(
        [{key: row[key] for key in ("image_path", "label", "class_name")} for row in rows],
        folder / "bare.jsonl",
    )
    entry = {"path": "data", "domain": "Industrial", "classes": {"cell": "solar cell"}}
    config = {
        "RealDefects": entry | {"metadata": "rows.jsonl"},
        "RealImages": entry | {"metadata": "bare.jsonl"},
    }
    write_text(folder / "real_defects.json", json.dumps(config))
    return folder


def test_what_is_there_is_evaluated_once_and_what_is_not_is_named(tmp_path, root, monkeypatch, capsys):
    ran = []

    def run(command):
        ran.append(command)
        run_command(command[0], command[1:])

    monkeypatch.setattr(real_images, "run_command", run)
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--data_root", str(tmp_path)]
    words = ["--root", str(root), "--arms", "local_contrast", *places]
    real_images.main(words)
    assert len(ran) == 2
    text = (tmp_path / "out" / "real_images.md").read_text(encoding="utf-8")
    assert "| RealDefects | cell | local_contrast | 1 | " in text
    assert "| RealImages | cell | local_contrast | 1 | – | – | – | " in text
    assert text.startswith("    python -m studies.real_images --arms local_contrast\n\n| set |")
    assert "Not evaluated here: ELPV" in text and "Not evaluated here: Textile" in text
    assert "not evaluated here: ELPV: no " in capsys.readouterr().out  # with the remedy
    kept = (tmp_path / "out" / "RealDefects" / "local_contrast.json").read_text(encoding="utf-8")
    assert str(root) not in kept and json.loads(kept)["seed"] is None
    assert not list((tmp_path / "out").rglob("*.png"))
    real_images.main(words)
    assert len(ran) == 2, "a finished evaluation was repeated"
    (tmp_path / "out" / "real_images.md").unlink()
    real_images.main([*words[2:], "--tables_only"])  # the pictures need not be there
    assert (tmp_path / "out" / "real_images.md").read_text(encoding="utf-8") == text
    capsys.readouterr()


def test_of_several_seeds_the_smallest_and_the_largest_stand_beside_the_mean():
    def run(seed, value):
        classes = {"cell": dict.fromkeys(real_images.COLUMNS, value) | {"pixel_ap": None}}
        return {"arm": "baseline", "seed": seed, "test": "RealDefects", "metrics": {"classes": classes}}

    lines = real_images.table([run(1, 0.25), run(2, 0.5)]).splitlines()
    assert lines[0] == "    python -m studies.real_images --arms baseline --seeds 1 2"
    assert lines[4].startswith("| RealDefects | cell | baseline | 2 | 37.5 (25.0–50.0) | – | 37.5")


def test_an_arm_that_is_tested_again_lies_in_the_run_it_tests(tmp_path):
    places = real_images.Places(tmp_path, tmp_path, tmp_path)
    assert places.folder("anchor_late_swapped", 1) == places.folder("anchor_late", 1)
    assert places.file("ELPV", "rarity_alone", 1) == places.file("ELPV", "rarity_alone", 2)
    assert places.file("ELPV", "anchor_late", 1) != places.file("ELPV", "anchor_late", 2)


def test_without_any_set_the_command_says_where_it_looked(tmp_path):
    with pytest.raises(Refusal, match="real_defects.json"):
        real_images.main(
            ["--root", str(tmp_path), "--data_root", str(tmp_path), "--out", str(tmp_path / "out")]
        )
