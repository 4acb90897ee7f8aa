"""Datasets that come inside pip packages: python -m dataset.prepare --dataset ELPV and --dataset Textile."""

import contextlib
from pathlib import Path

import pytest
from PIL import Image

from dataset import get_dataset
from dataset.prepare.__main__ import main
from dataset.prepare.packages import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
CELLS = [("1.0", "mono"), ("0.0", "mono"), ("0.3333333333333333", "mono"), ("0.0", "poly"), ("1.0", "poly")]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages laid out as the real ones; importing one fails, since nothing needs to."""
    site = tmp_path / "site"
    for module in ("elpv_dataset", "conformal_clip_data"):
        (site / module).mkdir(parents=True)
        (site / module / "__init__.py").write_text("raise RuntimeError('never imported')")
    data, lines = site / "elpv_dataset" / "data", []
    (data / "images").mkdir(parents=True)
    for number, (probability, kind) in enumerate(CELLS, start=1):
        name = f"images/cell{number:04}.png"
        Image.new("L", (9, 9), 40 * number).save(data / name)
        lines.append(f"{name}  {probability}                 {kind}\n")
    (data / "labels.csv").write_text("".join(lines))
    for group in ("nominal", "local", "global"):
        folder = site / "conformal_clip_data" / "data" / "textile_images" / "simulated" / group
        folder.mkdir(parents=True)
        Image.new("RGB", (9, 9), (90, 80, 70)).save(folder / "textile_0001.jpg")
    monkeypatch.syspath_prepend(str(site))
    return site


def found_in(root, name):
    sets = get_dataset(name, 8, "full_shot", 0, "test", data_root=root)
    return {
        class_name: [(sample.file_name, sample.label, sample.mask_known) for sample in images.samples]
        for class_name, images in sets.items()
    }


def test_elpv_becomes_two_classes_of_certain_cells_with_labels_only(packages, tmp_path, capsys):
    with contextlib.nullcontext():
        main(["--dataset", "ELPV", "--data_root", str(tmp_path / "new" / "data"), "--shot", "2"])
    found = found_in(tmp_path / "new" / "data", "ELPV")
    assert found["monocrystalline"] == [
        ("ELPV/monocrystalline/test/defective/cell0001.png", 1, False),
        ("ELPV/monocrystalline/test/good/cell0002.png", 0, True),
    ]
    assert [label for _, label, _ in found["polycrystalline"]] == [1, 0]
    printed = capsys.readouterr().out
    assert "CC BY-NC-SA" in printed and "evaluation" in printed
    assert "1 cells with a probability between 0 and 1 are left out" in printed
    assert "2 anomalous, 2 of them without a mask" in printed
    picture = tmp_path / "new" / "data" / found["monocrystalline"][0][0]
    assert picture.read_bytes() == (packages / "elpv_dataset/data/images/cell0001.png").read_bytes()
    assert (tmp_path / "new" / "data" / "ELPV" / "2-shot.jsonl").is_file()


def test_textile_is_one_class_with_two_kinds_of_defects(packages, tmp_path, capsys):
    with contextlib.nullcontext():
        main(["--dataset", "Textile", "--data_root", str(tmp_path)])
    assert found_in(tmp_path, "Textile") == {
        "textile": [
            ("Textile/textile/test/global/textile_0001.jpg", 1, False),
            ("Textile/textile/test/good/textile_0001.jpg", 0, True),
            ("Textile/textile/test/local/textile_0001.jpg", 1, False),
        ]
    }
    printed = capsys.readouterr().out
    assert "MIT" in printed
    with pytest.raises(ValueError, match="exists: add --overwrite"):
        main(["--dataset", "Textile", "--data_root", str(tmp_path)])
    main(["--dataset", "Textile", "--data_root", str(tmp_path), "--overwrite"])


@pytest.mark.parametrize("name", ["ELPV", "Textile"])
def test_a_missing_package_is_named_with_pips_command(name, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {PACKAGES[name].pip_name}"):
        main(["--dataset", name, "--data_root", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=f"dataset.prepare --dataset {name}"):
        get_dataset(name, 8, "full_shot", 0, "test", data_root=tmp_path)


def test_a_table_of_another_form_is_refused_by_line(packages, tmp_path):
    (packages / "elpv_dataset" / "data" / "labels.csv").write_text("images/cell0001.png 1.0\n")
    with pytest.raises(ValueError, match=r"labels.csv:1: .*expected image, probability and mono or poly"):
        main(["--dataset", "ELPV", "--data_root", str(tmp_path)])


def test_the_extra_is_in_its_own_requirements_and_imported_by_nothing():
    names = (ROOT / "requirements-datasets.txt").read_text()
    assert all(package.pip_name in names for package in PACKAGES.values())
    assert all(
        package.pip_name not in (ROOT / "requirements.txt").read_text() for package in PACKAGES.values()
    )
    modules = [package.module for package in PACKAGES.values()]
    for file in ROOT.glob("*/**/*.py"):
        if "tests" not in file.parts and ".venv" not in file.parts:
            text = file.read_text(encoding="utf-8")
            assert not any(f"import {module}" in text or f"from {module}" in text for module in modules), file


def test_own_folders_without_masks_are_read_as_labels_only_and_published_sets_are_not(tmp_path, caplog):
    from dataset import register_dataset
    from dataset.constants import CLASS_NAMES, DATA_PATH, DOMAINS, REAL_NAMES

    for folder in (tmp_path / "scans" / "head", tmp_path / "mvtec_ad" / "wood"):
        for group in ("good", "hole"):
            (folder / "test" / group).mkdir(parents=True)
            Image.new("L", (6, 5), 9).save(folder / "test" / group / "0.png")
    register_dataset("Scans", "scans", "Medical", {"head": "head scan"})
    try:
        found = found_in(tmp_path, "Scans")
    finally:
        for registry in (CLASS_NAMES, DATA_PATH, DOMAINS, REAL_NAMES):
            del registry["Scans"]
    assert found == {
        "head": [("scans/head/test/good/0.png", 0, True), ("scans/head/test/hole/0.png", 1, False)]
    }
    assert "1 of 1 anomalous images have no mask" in caplog.text
    with pytest.raises(ValueError, match="1 anomalous images of MVTec .* published with masks"):
        get_dataset("MVTec", 8, "full_shot", 0, "test", data_root=tmp_path)
