"""Scanning published folder layouts into metadata: dataset.prepare."""

import json
import logging

import pytest
from PIL import Image

from dataset import get_dataset
from dataset.constants import DATA_PATH
from dataset.prepare import scan
from dataset.prepare.__main__ import main

LOGGER = logging.getLogger("test")


def draw(folder, *paths, size=(6, 5)):
    """Save a small white picture at each path below `folder`."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 255).save(folder / path)


def listed(rows):
    return [(row["image_path"], row["label"], row["class_name"], row.get("mask_path")) for row in rows]


def folder_of(dataset_name, tmp_path):
    folder = tmp_path / DATA_PATH[dataset_name]
    folder.mkdir(parents=True)
    return folder


def read_everything(dataset_name, tmp_path):
    sets = get_dataset(dataset_name, 8, "full_shot", 0, "test", data_root=tmp_path)
    return {name: [item["label"] for item in one] for name, one in sets.items()}


def test_mvtecs_layout_is_scanned_whatever_the_endings(tmp_path, caplog):
    folder = folder_of("MVTec", tmp_path)
    draw(folder, "wood/test/good/000.png", "wood/test/good/001.JPG", "wood/test/scratch/000.bmp", size=(9, 4))
    draw(folder, "wood/ground_truth/scratch/000_mask.PNG", size=(9, 4))
    draw(folder, "bottle/test/broken/7.JPEG", "bottle/ground_truth/broken/7.png", "bottle/train/good/000.png")
    draw(folder, "bottle/test/broken/._7.png", "bottle/test/good/.hidden.png", "jar/test/good/000.png")
    (folder / "license.txt").write_text("text")
    (folder / "wood" / "test" / "good" / "Thumbs.db").write_text("text")
    assert listed(scan("MVTec", folder, LOGGER)) == [
        ("bottle/test/broken/7.JPEG", 1, "bottle", "bottle/ground_truth/broken/7.png"),
        ("wood/test/good/000.png", 0, "wood", None),
        ("wood/test/good/001.JPG", 0, "wood", None),
        ("wood/test/scratch/000.bmp", 1, "wood", "wood/ground_truth/scratch/000_mask.PNG"),
    ]
    assert "no folder <class>/test for cable" in caplog.text
    assert "jar are not among the dataset's classes" in caplog.text
    assert read_everything("MVTec", tmp_path) == {"bottle": [1], "wood": [0, 0, 1]}


def test_btads_ok_and_ko_are_good_and_broken(tmp_path):
    folder = folder_of("BTAD", tmp_path)
    draw(
        folder,
        "03/test/ok/0001.bmp",
        "03/test/ko/0000.bmp",
        "03/ground_truth/ko/0000.bmp",
        "01/test/ok/0002.bmp",
    )
    assert listed(scan("BTAD", folder, LOGGER)) == [
        ("01/test/ok/0002.bmp", 0, "01", None),
        ("03/test/ko/0000.bmp", 1, "03", "03/ground_truth/ko/0000.bmp"),
        ("03/test/ok/0001.bmp", 0, "03", None),
    ]
    assert read_everything("BTAD", tmp_path) == {"01": [0], "03": [1, 0]}


def test_visas_test_split_is_read_from_its_table(tmp_path):
    folder = folder_of("VisA", tmp_path)
    normal, broken, mask = (
        "cashew/Data/Images/Normal/000.JPG",
        "cashew/Data/Images/Anomaly/000.JPG",
        "cashew/Data/Masks/Anomaly/000.png",
    )
    draw(
        folder, normal, broken, mask, "candle/Data/Images/Normal/7.JPG", "cashew/Data/Images/Normal/train.JPG"
    )
    (folder / "split_csv").mkdir()
    (folder / "split_csv" / "1cls.csv").write_text(
        "object,split,label,image,mask\n"
        "cashew,train,normal,cashew/Data/Images/Normal/train.JPG,\n"
        f"cashew,test,normal,{normal},\ncashew,test,anomaly,{broken},{mask}\n"
        "candle,test,normal,candle/Data/Images/Normal/7.JPG,\n"
    )
    expected = [
        ("candle/Data/Images/Normal/7.JPG", 0, "candle", None),
        (normal, 0, "cashew", None),
        (broken, 1, "cashew", mask),
    ]
    assert listed(scan("VisA", folder, LOGGER)) == expected
    assert read_everything("VisA", tmp_path) == {"candle": [0], "cashew": [0, 1]}


def test_visa_without_its_table_uses_all_images_and_says_so(tmp_path, caplog):
    folder = folder_of("VisA", tmp_path)
    draw(folder / "pcb1" / "Data", "Images/Normal/0.JPG", "Images/Anomaly/1.JPG", "Masks/Anomaly/1.png")
    assert [row["label"] for row in scan("VisA", folder, LOGGER)] == [0, 1]
    assert "1cls.csv is missing: all of VisA's images are used" in caplog.text


def test_visa_converted_to_mvtecs_layout_is_read_as_such(tmp_path):
    folder = folder_of("VisA", tmp_path)
    draw(folder, "pcb1/test/good/0.JPG", "pcb1/test/bad/1.JPG", "pcb1/ground_truth/bad/1.png")
    assert [row["label"] for row in scan("VisA", folder, LOGGER)] == [1, 0]


def test_a_visa_table_without_its_columns_is_refused(tmp_path):
    folder = folder_of("VisA", tmp_path)
    (folder / "split_csv").mkdir()
    (folder / "split_csv" / "1cls.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"1cls\.csv: columns are \['a', 'b'\]: expected image, label"):
        scan("VisA", folder, LOGGER)


@pytest.mark.parametrize("name", ["Brain", "Liver", "Retina"])
def test_the_medical_sets_are_scanned_in_bmads_layout(tmp_path, name):
    folder = folder_of(name, tmp_path)
    draw(
        folder,
        "test/good/img/5.png",
        "test/good/label/5.png",
        "test/Ungood/img/6.png",
        "test/Ungood/label/6.png",
    )
    assert listed(scan(name, folder, LOGGER)) == [
        ("test/good/img/5.png", 0, name, None),
        ("test/Ungood/img/6.png", 1, name, "test/Ungood/label/6.png"),
    ]
    assert read_everything(name, tmp_path) == {name: [0, 1]}


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("Original", "Ground Truth")])
def test_the_polyp_sets_are_anomalous_throughout(tmp_path, images, masks):
    folder = folder_of("Colon_clinicDB", tmp_path)
    draw(folder, f"{images}/1.tif", f"{masks}/1.tif", f"{images}/2.tif", f"{masks}/2.tif")
    assert read_everything("Colon_clinicDB", tmp_path) == {"Colon_clinicDB": [1, 1]}
    with pytest.raises(ValueError, match="Colon_clinicDB has 0 normal and 2 anomalous"):
        get_dataset("Colon_clinicDB", 8, "few_shot", 2, "train", data_root=tmp_path)


def test_anomalous_images_without_a_mask_are_refused_with_the_expected_names(tmp_path):
    folder = folder_of("MVTec", tmp_path)
    draw(folder, "wood/test/hole/0.png", "wood/test/hole/1.png", "wood/ground_truth/hole/1_mask.png")
    with pytest.raises(
        ValueError, match=r"1 anomalous images have no mask, such as .*hole/0\.png.*<name>_mask\.png"
    ):
        scan("MVTec", folder, LOGGER)


def test_two_masks_of_one_name_are_refused(tmp_path):
    folder = folder_of("MVTec", tmp_path)
    draw(
        folder,
        "wood/test/hole/0.png",
        "wood/ground_truth/hole/0_mask.png",
        "wood/ground_truth/hole/0_mask.bmp",
    )
    with pytest.raises(ValueError, match=r"two masks of one name, .*0_mask\.bmp and .*0_mask\.png"):
        scan("MVTec", folder, LOGGER)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("MVTec", "<class>/test: expected one or more of bottle"),
        ("VisA", "<class>/Data: expected one or more of candle"),
        ("Brain", "test/{good,Ungood}/{img,label}"),
        ("Colon_Kvasir", "images/"),
    ],
)
def test_a_folder_in_another_layout_is_refused_with_the_expected_one(tmp_path, name, layout):
    with pytest.raises(FileNotFoundError, match=layout):
        scan(name, folder_of(name, tmp_path), LOGGER)


def test_a_class_without_test_images_is_refused(tmp_path):
    folder = folder_of("MVTec", tmp_path)
    (folder / "wood" / "test" / "good").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no images found below"):
        scan("MVTec", folder, LOGGER)


def test_the_command_writes_metadata_that_reads_back_as_the_scan(tmp_path):
    folder = folder_of("MVTec", tmp_path)
    draw(folder, *(f"wood/test/good/{number}.png" for number in range(4)))
    draw(folder, *(f"wood/test/hole/{number}.png" for number in range(4)))
    draw(folder, *(f"wood/ground_truth/hole/{number}_mask.png" for number in range(4)))
    arguments = ["--dataset", "MVTec", "--data_root", str(tmp_path), "--out", str(tmp_path / "metadata")]
    main([*arguments, "--shot", "4", "--seed", "5"])
    written = tmp_path / "metadata" / "MVTec"
    full = [json.loads(line) for line in (written / "full-shot.jsonl").read_text().splitlines()]
    few = [json.loads(line) for line in (written / "4-shot.jsonl").read_text().splitlines()]
    assert full == scan("MVTec", folder, LOGGER)
    chosen = get_dataset("MVTec", 8, "few_shot", 4, "train", data_root=tmp_path, seed=5)[0].samples
    assert [row["image_path"] for row in few] == [
        sample.file_name.removeprefix("mvtec_ad/") for sample in chosen
    ]
    with pytest.raises(ValueError, match=r".*full-shot\.jsonl.*exists: add --overwrite"):
        main(arguments)
    main([*arguments, "--overwrite"])


def test_the_command_refuses_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="data root .*nowhere.* is not a folder"):
        main(["--dataset", "MVTec", "--data_root", str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match="unknown dataset 'Jars'"):
        main(["--dataset", "Jars", "--data_root", str(tmp_path)])
