"""Published sets by their layouts' names alone: what is read of them, and their counts."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from dataset import get_dataset
from dataset.constants import CLASS_NAMES, DATA_PATH, DOMAINS, LABELS_ONLY, PACKAGED, REAL_NAMES
from dataset.prepare import scan
from dataset.prepare.__main__ import main
from dataset.prepare.published import PUBLISHED, UNCOUNTED, check_published, counts_of

LOGGER = logging.getLogger("test")
BMAD = ("test/good/img/{n}.png", "test/Ungood/img/{n}.png", "test/Ungood/label/{n}.png")
POLYPS = ("", "images/{n}.png", "masks/{n}.png")
MVTEC = ("{c}/test/good/{n}.png", "{c}/test/bad/{n}.png", "{c}/ground_truth/bad/{n}_mask.png")
NAMES = {  # (normal picture, anomalous picture, its mask) of number n of class c
    **dict.fromkeys(("Brain", "Liver", "Retina"), BMAD),
    **dict.fromkeys((name for name in DATA_PATH if name.startswith("Colon")), POLYPS),
    "Colon_clinicDB": ("", "Original/{n}.tif", "Ground Truth/{n}.tif"),
    "BTAD": ("{c}/test/ok/{n}.bmp", "{c}/test/ko/{n}.bmp", "{c}/ground_truth/ko/{n}.png"),
    "VisA": (
        "{c}/Data/Images/Normal/{n}.JPG",
        "{c}/Data/Images/Anomaly/{n}.JPG",
        "{c}/Data/Masks/Anomaly/{n}.png",
    ),
    "MVTecLOCO": (
        "{c}/test/good/{n}.png",
        "{c}/test/logical_anomalies/{n}.png",
        "{c}/ground_truth/logical_anomalies/{n}/000.png",
    ),
    "MVTecAD2": (
        "{c}/test_public/good/{n}.png",
        "{c}/test_public/bad/{n}.png",
        "{c}/test_public/ground_truth/bad/{n}_mask.png",
    ),
    "DAGM": ("{c}/Test/{n}.PNG", "{c}/Test/{n}.PNG", "{c}/Test/Label/{n}_label.PNG"),
    "Br35H": ("no/{n}.jpg", "yes/{n}.jpg", ""),
    "BrainMRI": ("no/{n}.jpg", "yes/{n}.jpg", ""),
}
WITHOUT_NAMES = {*PACKAGED, "KolektorSDD", "HeadCT", "RealIAD"}  # their labels are in contents, not in names


def touch(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def draw(folder, name, value=255):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((5, 6), value, np.uint8)).save(path)
    return name


def lay_out(folder, dataset, normal, anomalous, make=touch):
    """So many pictures, spread over the classes."""
    classes = CLASS_NAMES[dataset]
    good, bad, mask = NAMES.get(dataset, MVTEC)
    for number in range(normal + anomalous):
        names = (good,) if number < normal else (bad, mask)
        for name in names:
            if name:
                make(folder, name.format(c=classes[number % len(classes)], n=f"{number:04}"))


@pytest.mark.parametrize("dataset", [name for name in PUBLISHED if name not in WITHOUT_NAMES])
def test_a_set_with_its_published_names_is_as_published_and_one_picture_less_is_not(
    dataset, tmp_path, caplog, monkeypatch
):
    normal, anomalous = (min(count, 5) for count in PUBLISHED[dataset][:2])  # thousands of files take seconds
    monkeypatch.setitem(PUBLISHED, dataset, PUBLISHED[dataset]._replace(normal=normal, anomalous=anomalous))
    lay_out(tmp_path, dataset, normal, anomalous)
    rows = scan(dataset, tmp_path, LOGGER)
    check_published(dataset, rows, True, LOGGER)
    found = counts_of(rows)
    assert list(found) == [name for name in CLASS_NAMES[dataset] if name in found]
    bare = anomalous if dataset in LABELS_ONLY else 0
    assert sum(own["without a mask"] for own in found.values()) == bare
    check_published(dataset, rows[1:], False, LOGGER)
    assert f"{dataset}: NOT as published: {normal + anomalous - 1} pictures" in caplog.text
    with pytest.raises(ValueError, match="NOT as published"):
        check_published(dataset, rows[1:], True, LOGGER)


def test_the_eleven_sets_have_the_counts_that_results_are_published_for():
    totals = {name: one.normal + one.anomalous for name, one in PUBLISHED.items()}
    eleven = {
        "MVTec": 1725,
        "VisA": 2162,
        "BTAD": 741,
        "MPDD": 458,
        "Brain": 3715,
        "Liver": 1493,
        "Retina": 1805,
    }
    eleven |= {"Colon_Kvasir": 1000, "Colon_clinicDB": 612, "Colon_colonDB": 380, "Colon_cvc300": 60}
    assert {name: totals[name] for name in eleven} == eleven
    assert PUBLISHED["MVTec"][:2] == (467, 1258) and PUBLISHED["VisA"][:2] == (962, 1200)


def test_every_set_is_counted_or_said_not_to_be_and_fully_declared():
    built_in = {name for name in DATA_PATH if not name.startswith("Demo")}
    assert built_in == {*PUBLISHED, *UNCOUNTED} and not {*PUBLISHED} & {*UNCOUNTED}
    for name in built_in:
        assert set(REAL_NAMES[name]) == set(CLASS_NAMES[name]) and DOMAINS[name] in ("Industrial", "Medical")


def read_back(dataset, root):
    sets = get_dataset(dataset, 8, None, 0, "test", data_root=root)
    return {name: [(item["label"], item["mask"].any().item()) for item in one] for name, one in sets.items()}


@pytest.mark.parametrize("dataset", ["MVTecAD2", "MVTecLOCO", "DAGM", "DTDSynthetic", "Br35H", "BrainMRI"])
def test_further_sets_are_read_by_their_names_as_the_eleven_are(dataset, tmp_path):
    folder = tmp_path / DATA_PATH[dataset]
    lay_out(folder, dataset, 1, len(CLASS_NAMES[dataset]), draw)
    first, *_ = CLASS_NAMES[dataset]
    has_mask = dataset not in LABELS_ONLY
    found = read_back(dataset, tmp_path)
    assert sorted(found.pop(first)) == [(0, False), (1, has_mask)]
    assert all(one == [(1, has_mask)] for one in found.values())


def test_several_masks_of_a_loco_picture_are_one(tmp_path):
    folder = tmp_path / DATA_PATH["MVTecLOCO"]
    lay_out(folder, "MVTecLOCO", 0, 1, draw)
    draw(folder, "breakfast_box/ground_truth/logical_anomalies/0000/001.png")
    (row,) = scan("MVTecLOCO", folder, LOGGER)
    assert len(row["mask_path"]) == 2


def test_private_splits_of_mvtec_ad_2_are_not_its_public_one(tmp_path, caplog):
    folder = tmp_path / "mvtec_ad_2"
    lay_out(folder, "MVTecAD2", 1, 1, draw)
    draw(folder, "can/test_private/000.png")
    assert len(scan("MVTecAD2", folder, LOGGER)) == 2
    with caplog.at_level(logging.INFO):
        check_published("MVTecAD2", [], True, LOGGER)
    assert "public test split's count is not known here: not checked" in caplog.text


def test_a_kolektor_picture_is_anomalous_where_its_label_is_not_black(tmp_path):
    folder = tmp_path / "KolektorSDD"
    for name, value in (("kos01/Part0", 0), ("kos01/Part1", 255), ("kos50/Part0", 0)):
        draw(folder, f"{name}.jpg", 90)
        draw(folder, f"{name}_label.bmp", value)
    rows = scan("KolektorSDD", folder, LOGGER)
    assert [(row["image_path"], row["label"], row.get("mask_path")) for row in rows] == [
        ("kos01/Part0.jpg", 0, None),
        ("kos01/Part1.jpg", 1, "kos01/Part1_label.bmp"),
        ("kos50/Part0.jpg", 0, None),
    ]
    (folder / "kos50/Part0_label.bmp").unlink()
    with pytest.raises(ValueError, match=r"1 anomalous images have no mask, such as .*kos50/Part0\.jpg"):
        scan("KolektorSDD", folder, LOGGER)


def test_head_ct_is_labelled_by_its_table(tmp_path, caplog):
    folder = tmp_path / "HeadCT"
    for number in range(3):
        draw(folder, f"head_ct/head_ct/{number:03}.png")
    (folder / "labels.csv").write_text("id, hemorrhage\n0,1\n1,0\n")
    assert read_back("HeadCT", tmp_path) == {"HeadCT": [(1, False), (0, False)]}
    assert "1 left out, without a line in labels.csv (head_ct/head_ct/002.png)" in caplog.text
    (folder / "labels.csv").write_text("id, hemorrhage\n7,1\n")
    with pytest.raises(
        ValueError, match=r"labels.csv:2: id '7', hemorrhage '1': expected a picture's number"
    ):
        scan("HeadCT", folder, LOGGER)


def test_real_iad_is_read_by_the_test_entries_of_its_json_files(tmp_path, caplog):
    folder = tmp_path / "Real-IAD"
    table = {
        "meta": {"prefix": "mint/", "normal_class": "OK"},
        "train": [{"anomaly_class": "OK", "image_path": "OK/S0/9.jpg", "mask_path": None}],
        "test": [
            {"anomaly_class": "OK", "image_path": "OK/S1/0.jpg", "mask_path": None},
            {"anomaly_class": "AK", "image_path": "NG/AK/S2/1.jpg", "mask_path": "NG/AK/S2/1.png"},
        ],
    }
    for name in ("OK/S1/0.jpg", "NG/AK/S2/1.jpg", "NG/AK/S2/1.png"):
        draw(folder, f"realiad_512/mint/{name}")
    with pytest.raises(FileNotFoundError, match=r"realiad_jsons' holds no <class>\.json"):
        scan("RealIAD", folder, LOGGER)
    (folder / "realiad_jsons").mkdir()
    file = folder / "realiad_jsons" / "mint.json"
    file.write_text(json.dumps(table))
    assert read_back("RealIAD", tmp_path) == {"mint": [(0, False), (1, True)]}
    assert "no realiad_jsons/<class>.json for audiojack" in caplog.text
    file.write_text(json.dumps(table | {"meta": {}}))
    with pytest.raises(ValueError, match=r"mint\.json: expected meta with prefix and normal_class"):
        scan("RealIAD", folder, LOGGER)


def test_the_command_takes_a_name_and_the_sets_own_folder_and_several_shots(tmp_path, capsys):
    folder = tmp_path / "downloads" / "mvtec_anomaly_detection"
    lay_out(folder, "MVTec", 30, 30, draw)
    main(["MVTec", "--root", str(folder), "--out", str(tmp_path / "meta"), "--shot", "2", "4"])
    said = capsys.readouterr().out
    assert "bottle: 2 normal, 2 anomalous" in said and "DATA_ROOT/mvtec_ad: link or move it" in said
    assert "MVTec: NOT as published: 60 pictures" in said
    written = sorted(path.name for path in (tmp_path / "meta" / "MVTec").iterdir())
    assert written == ["2-shot.jsonl", "4-shot.jsonl", "full-shot.jsonl"]
    folder.rename(tmp_path / "mvtec_ad")
    named = get_dataset(
        "MVTec", 8, None, 0, "test", data_root=tmp_path, meta_path=tmp_path / "meta/MVTec/full-shot.jsonl"
    )
    assert sum(map(len, named.values())) == 60
    with pytest.raises(ValueError, match="NOT as published"):
        main(["MVTec", "--root", str(tmp_path), "--out", str(tmp_path / "other"), "--strict"])
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="2 names of a dataset, MVTec, VisA: give one"):
        main(["MVTec", "--dataset", "VisA"])
    with pytest.raises(FileNotFoundError, match="--root .*nowhere' is not a folder"):
        main(["MVTec", "--root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")])
