"""`python -m dataset.prepare NEW_NAME --root FOLDER`: any folder of pictures, and what the rows it writes read as."""

import csv
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dataset import constants, get_dataset, load_dataset_config
from dataset.prepare.__main__ import main
from dataset.prepare.polygons import polygon_mask, run_length_mask

REGISTRIES = ("CLASS_NAMES", "REAL_NAMES", "DATA_PATH", "DOMAINS", "METADATA_FILES")
SQUARE = [2, 1, 5, 1, 5, 4, 2, 4]  # columns 2 to 4, rows 1 to 3


@pytest.fixture(autouse=True)
def registries():
    """No data set of a test stays registered."""
    before = {name: dict(getattr(constants, name)) for name in REGISTRIES}
    yield
    for name, content in before.items():
        getattr(constants, name).clear()
        getattr(constants, name).update(content)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class World:
    """The folder `pictures` of a user, and what is prepared of it in `out`."""

    def __init__(self, root):
        self.root, self.folder, self.out = root, root / "pictures", root / "out" / "Own"
        self.folder.mkdir()

    def draw(self, *names, size=(8, 6), value=200, **how):
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", size, value).save(path, **how)

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return str(path)

    def prepare(self, *flags):
        main(["Own", "--root", str(self.folder), "--out", str(self.root / "out"), *flags])
        self.forget()

    def forget(self):
        for name in REGISTRIES:
            getattr(constants, name).pop("Own", None)

    def rows(self, *flags):
        """(path, label, class, mask) of every row that is written."""
        self.prepare(*flags)
        lines = (self.out / "full-shot.jsonl").read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        return [
            (row["image_path"], row.get("label"), row["class_name"], row.get("mask_path")) for row in found
        ]

    def items(self):
        """{class: [(label, mask [6, 8] of 0 and 1)]} as evaluation reads what was written."""
        load_dataset_config(self.out / "dataset.json")
        sets = get_dataset("Own", 24, None, 0, "test", data_root=self.root)
        self.forget()
        return {
            name: [(one["label"], one["mask"][0, 2::4, 1::3].int().numpy()) for one in own]
            for name, own in sets.items()
        }

    def names_in_folder(self):
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))


@pytest.mark.parametrize(
    ("base", "masks", "class_name"),
    [
        ("ring/test/", "ring/ground_truth/", "ring"),
        ("test/", "ground_truth/", "Own"),
        ("ring/", "ring/masks/", "ring"),
        ("", "Masks/", "Own"),
    ],
)
def test_folders_with_and_without_test_and_classes_are_read(world, base, masks, class_name):
    world.draw(f"{base}Non-Defective/0.webp", f"{base}cut/0.png", f"{masks}cut/0.png")
    assert world.rows() == [
        (f"{base}Non-Defective/0.webp", 0, class_name, None),
        (f"{base}cut/0.png", 1, class_name, f"{masks}cut/0.png"),
    ]
    assert [label for label, _ in world.items()[class_name]] == [0, 1]


def test_the_only_kinds_masks_may_lie_right_in_the_folder_of_masks(world):
    world.draw("ok/0.png", "defect/0.png", "masks/0.png")
    assert world.rows()[0] == ("defect/0.png", 1, "Own", "masks/0.png")
    world.draw("scratch/0.png")  # whose mask is it now?
    assert [row[3] for row in world.rows("--overwrite")] == [None, None, None]


def test_nested_kinds_of_defects_are_read_and_links_in_a_circle_and_other_splits_are_said(world, capsys):
    world.draw("ok/0.png", "defects/cut/deep/0.png", "defects/1.png", "train/ok/9.png")
    world.draw("masks/defects/cut/deep/0_mask.png", "masks/defects/1_mask.png", "defects/.hidden/0.png")
    (world.folder / "defects/cut/loop").symlink_to(world.folder / "defects")
    assert world.rows() == [
        ("defects/1.png", 1, "Own", "masks/defects/1_mask.png"),
        ("defects/cut/deep/0.png", 1, "Own", "masks/defects/cut/deep/0_mask.png"),
        ("ok/0.png", 0, "Own", None),
    ]
    said = capsys.readouterr().out
    assert "1 left out, links in a circle (defects/cut/loop)" in said
    assert "1 left out, hidden (defects/.hidden)" in said
    assert "1 left out, of another split (train)" in said
    assert "Own: 1 normal, 2 anomalous" in said


def test_folders_that_hold_no_pictures_of_the_test_split_are_said(world, capsys):
    world.draw("ring/test/ok/0.png", "ring/test/bad/0.png", "ring/train/ok/0.png", "notes/0.png")
    assert len(world.rows()) == 2
    said = capsys.readouterr().out
    assert (
        "1 left out, beside test (ring/train)" in said and "1 left out, without a folder test (notes)" in said
    )


def write_table(world, name, lines):
    with (world.folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(lines)


def test_a_table_of_images_and_masks_is_read_and_several_masks_of_a_picture_are_united(world, capsys):
    world.draw("a/0.png", "a/1.png", "a/2.png", "m/1.png", "m/1b.png", "spare.png")
    write_table(
        world,
        "list.csv",
        [
            ["Filename", "mask", "Label", "object", "split"],
            ["a/0.png", "", "good", "ring", "test"],
            ["a/1.png", "m/1.png", "scratch", "ring", "test"],
            ["a\\1.png", "m/1b.png", "scratch", "ring", "test"],
            ["a/2.png", "", "", "cup", "test"],
            ["a/0.png", "", "good", "ring", "train"],
            ["gone.png", "", "good", "ring", "test"],
            ["1.png", "", "good", "ring", "test"],  # of a or of m?
        ],
    )
    assert world.rows() == [
        ("a/0.png", 0, "ring", None),
        ("a/1.png", 1, "ring", ["m/1.png", "m/1b.png"]),
        ("a/2.png", None, "cup", None),
    ]
    said = capsys.readouterr().out
    for text in (
        "1 left out, of another split (a/0.png)",
        "1 left out, named in the annotations and not there (gone.png)",
        "1 left out, named as several pictures are (1.png)",
        "1 left out, without a line in the table (spare.png)",
        "cup: 0 normal, 0 anomalous, 1 unlabelled",
    ):
        assert text in said
    assert "of ending .csv" not in said
    with pytest.raises(ValueError, match="--split is 'val': there are test, train"):
        world.prepare("--split", "val", "--overwrite")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [["image", "label"], ["0.png", "0"], ["0.png", "1"]],
            "stands there twice with another label or class",
        ),
        ([["image", "mask"], ["0.png", "no.png"]], r"list.csv:2: mask 'no.png' is no picture below"),
        ([["image", "label"], ["0.png", "-1"]], r"list.csv:2: label is -1: expected 0 \(normal\), 1"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(world, lines, message):
    world.draw("0.png")
    write_table(world, "list.csv", lines)
    with pytest.raises(ValueError, match=message):
        world.prepare()
    with pytest.raises(ValueError, match="columns are"):
        world.prepare("--annotations", world.write("other.csv", "a,b\n1,2\n"))
    with pytest.raises(
        FileNotFoundError, match=r"'other.csv': there is no .*do you mean .*pictures/other.csv\?"
    ):
        world.prepare("--annotations", "other.csv")


def coco(annotations, images=("0.png", "1.png", "2.png")):
    entries = [{"id": n, "file_name": name, "width": 8, "height": 6} for n, name in enumerate(images)]
    categories = [{"id": 5, "name": "scratch"}, {"id": 6, "name": "good"}]
    filled = [{"id": n, "category_id": 5} | one for n, one in enumerate(annotations)]
    return {"images": entries, "annotations": filled, "categories": categories}


def test_coco_polygons_and_run_lengths_become_masks_beside_the_rows_and_not_among_the_pictures(world, capsys):
    world.draw("images/0.png", "images/1.png", "images/2.png", "images/3.png")
    annotations = [
        {"image_id": 1, "segmentation": [SQUARE]},
        {"image_id": 1, "segmentation": {"counts": [0, 6, 42], "size": [6, 8]}},  # the first column
        {"image_id": 2, "segmentation": [SQUARE]},
        {"image_id": 2, "segmentation": [], "bbox": [0, 0, 2, 2]},
        {"image_id": 0, "category_id": 6, "segmentation": [SQUARE]},
    ]
    world.write("annotations/instances.json", coco(annotations))
    before = world.names_in_folder()
    assert world.rows("--class_name", "steel_ring", "--shot", "2") == [
        ("images/0.png", 0, "steel_ring", None),
        ("images/1.png", 1, "steel_ring", "masks/images/1.png.png"),
        ("images/2.png", 1, "steel_ring", None),
    ]
    assert world.names_in_folder() == before
    said = capsys.readouterr().out
    assert "1 left out, not in the annotations (images/3.png)" in said
    assert "1 picture has a defect without an outline (a box, a point)" in said
    assert ".json)" not in said  # what was read is not left out
    entry = json.loads((world.out / "dataset.json").read_text())["Own"]
    assert entry["classes"] == {"steel_ring": "steel ring"} and entry["domain"] == "Industrial"
    wanted = np.zeros((6, 8), int)
    wanted[1:4, 2:5] = wanted[:, 0] = 1
    labels, masks = zip(*world.items()["steel_ring"], strict=True)
    assert labels == (0, 1, 1) and np.array_equal(masks[1], wanted) and not masks[0].any()


def test_a_mask_beside_the_rows_stays_in_their_folder_and_a_picture_there_is_none(world):
    world.draw("0.png")
    world.write("a.json", coco([{"image_id": 0, "segmentation": [SQUARE]}], ["0.png"]))
    world.prepare()
    Image.new("L", (8, 6)).save(world.out.parent / "outside.png")
    Image.new("L", (8, 6)).save(world.out / "picture.png")
    file = world.out / "full-shot.jsonl"
    rows = file.read_text(encoding="utf-8")
    for wrong, error in (("masks/0.png.png", "../outside.png"), ("0.png", "picture.png")):
        file.write_text(rows.replace(f'"{wrong}"', f'"{error}"'), encoding="utf-8")
        with pytest.raises((ValueError, FileNotFoundError), match=error):
            world.items()
        world.forget()


def test_of_several_coco_files_the_test_splits_is_taken(world):
    for split in ("train", "test"):
        world.draw(f"{split}/0.png")
        world.write(f"{split}/_annotations.coco.json", coco([], ["0.png"]))
    assert world.rows() == [("test/0.png", 0, "Own", None)]
    (world.folder / "test/_annotations.coco.json").rename(world.folder / "valid.json")
    with pytest.raises(ValueError, match="2 files of COCO's form, such as .*: name one with --annotations"):
        world.prepare("--overwrite")
    assert world.rows("--overwrite", "--split", "train") == [("train/0.png", 0, "Own", None)]
    (world.folder / "train/_annotations.coco.json").unlink()
    with pytest.raises(ValueError, match="--split is 'train': .*valid.json holds one split"):
        world.prepare("--overwrite", "--split", "train")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "is no polygon: expected x and y of three points or more"),
        ({"counts": [0, 7], "size": [6, 8]}, "run lengths of 7 pixels for a picture of 8x6"),
    ],
)
def test_a_segmentation_that_is_none_is_refused_with_its_place(world, segmentation, message):
    world.draw("0.png")
    world.write("a.json", coco([{"image_id": 0, "segmentation": segmentation}], ["0.png"]))
    with pytest.raises(ValueError, match=rf"a.json, 0.png: annotation 0: .*{message}"):
        world.prepare()


def test_compressed_run_lengths_are_read_by_cocos_own_package_or_refused_with_its_name(world, monkeypatch):
    world.draw("0.png")
    shape = {"counts": "74o4", "size": [6, 8]}
    world.write("a.json", coco([{"image_id": 0, "segmentation": shape}], ["0.png"]))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pycocotools"):
        world.prepare()
    for size, refused in (((6, 8), False), ((8, 6), True)):
        decoded = SimpleNamespace(decode=lambda given, size=size: np.full(size, given is not None, np.uint8))
        monkeypatch.setitem(sys.modules, "pycocotools", SimpleNamespace(mask=decoded))
        if refused:
            with pytest.raises(ValueError, match=r"run lengths of size \(8, 6\) for a picture of 8x6"):
                world.prepare("--overwrite")
        else:
            assert world.rows()[0][3] == "masks/0.png.png"


def test_a_picture_of_another_size_than_its_polygons_is_left_out_and_a_turned_one_is_not(world, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    world.draw("0.png", size=(9, 6))
    world.draw("1.jpg", size=(6, 8), exif=exif)
    world.write("a.json", coco([{"image_id": 1, "segmentation": [SQUARE]}], ["0.png", "1.jpg"]))
    assert [row[0] for row in world.rows()] == ["1.jpg"]
    assert "1 left out, of another size than the annotations say (0.png)" in capsys.readouterr().out
    ((_, mask),) = world.items()["Own"]
    assert mask[1:4, 2:5].all() and mask.sum() == 9


def test_yolo_outlines_become_masks_and_boxes_leave_the_place_open(world, capsys):
    shares = " ".join(f"{value / side}" for value, side in zip(SQUARE, [8, 6] * 4, strict=True))
    world.draw(
        "images/test/0.png",
        "images/test/1.png",
        "images/test/2.png",
        "images/test/3.png",
        "images/train/0.png",
    )
    world.write("labels/test/0.txt", f"1 {shares}\n")  # of the category ok
    world.write("labels/test/1.txt", f"0 {shares}\n\n")
    world.write("labels/test/2.txt", "0 0.5 0.5 0.1 0.1\n")
    world.write("data.yaml", "names: [scratch, ok]\n")
    assert world.rows() == [
        ("images/test/0.png", 0, "Own", None),
        ("images/test/1.png", 1, "Own", "masks/images/test/1.png.png"),
        ("images/test/2.png", 1, "Own", None),
        ("images/test/3.png", 0, "Own", None),
    ]
    said = capsys.readouterr().out
    assert "1 picture without a file of labels, taken as normal" in said and "of another split" in said
    assert ".txt" not in said and ".yaml" not in said  # what was read is not left out
    masks = [mask for _, mask in world.items()["Own"]]
    assert masks[1][1:4, 2:5].all() and masks[1].sum() == 9
    world.write("labels/test/2.txt", "0 5 5 1 1\n")
    with pytest.raises(ValueError, match=r"2.txt:1: '0 5 5 1 1': expected shares of the picture"):
        world.prepare("--overwrite")


def test_yolos_folders_in_folders_of_splits_are_read_and_not_taken_for_kinds_of_defects(world):
    for split in ("train", "valid", "test"):
        world.draw(f"{split}/images/0.png", f"{split}/images/1.png")
        world.write(f"{split}/labels/0.txt", "1 0.1 0.1 0.9 0.1 0.9 0.9\n")  # of the category ok
        world.write(f"{split}/labels/1.txt", "0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    world.write("data.yaml", "names: [scratch, ok]\n")

    def rows_of(split):
        mask = f"masks/{split}/images/1.png.png"
        return [(f"{split}/images/0.png", 0, "Own", None), (f"{split}/images/1.png", 1, "Own", mask)]

    assert world.rows() == rows_of("test")
    assert world.rows("--overwrite", "--split", "Valid") == rows_of("valid")


def test_the_wanted_split_of_folders_of_kinds_is_taken_in_whatever_capitals(world):
    world.draw("Train/OK/0.png", "Test/OK/1.png", "Test/NG/2.png")
    assert [row[0] for row in world.rows()] == ["Test/NG/2.png", "Test/OK/1.png"]
    assert [row[0] for row in world.rows("--overwrite", "--split", "train")] == ["Train/OK/0.png"]
    with pytest.raises(FileNotFoundError, match="--split val is looked for as a folder of this name"):
        world.prepare("--overwrite", "--split", "val")


def test_masks_among_the_pictures_are_refused_and_not_taken_for_pictures(world):
    world.draw("test/good/0.png", "test/bad/1.png", "test/bad/1_mask.png")
    with pytest.raises(ValueError, match="1 pictures are called as masks of pictures beside .*1_mask.png"):
        world.prepare()


def test_a_picture_that_cannot_be_read_is_left_out_and_said(world, capsys):
    world.draw("0.png")
    world.write("1.png", "no picture")
    world.write("a.json", coco([], ["0.png", str(world.folder / "1.png")]))
    assert [row[0] for row in world.rows()] == ["0.png"]
    assert "1 left out, that cannot be read (1.png)" in capsys.readouterr().out


def test_a_folder_in_no_known_layout_is_refused_with_those_that_are(world):
    world.draw("0.png", "a/1.png")
    with pytest.raises(FileNotFoundError, match=r"is in no layout that is known: expected <class>/test/"):
        world.prepare()
    with pytest.raises(ValueError, match="--class_name: for a folder of your own.*MVTec is built in"):
        main(["MVTec", "--root", str(world.folder), "--class_name", "x"])
    with pytest.raises(ValueError, match="'mvtec' is 'MVTec' in other capitals"):
        main(["mvtec", "--root", str(world.folder)])
    with pytest.raises(FileNotFoundError, match="--annotations .*: there is no such file"):
        world.prepare("--annotations", str(world.root / "none.csv"))


@pytest.mark.parametrize(
    ("points", "pixels"),
    [
        ([(0, 0), (3, 0), (3, 2), (0, 2)], 6),
        ([(0.4, 0.4), (2.6, 0.4), (2.6, 1.6), (0.4, 1.6)], 6),
        (
            [(0.6, 0.6), (2.4, 0.6), (2.4, 1.4), (0.6, 1.4)],
            6,
        ),  # no centre: what its outline passes
        ([(-9, -9), (99, -9), (99, 99), (-9, 99)], 48),
        ([(0, 0), (6, 0), (0, 6)], 15),
    ],
)
def test_a_polygon_holds_the_pixels_whose_centre_it_holds(points, pixels):
    assert polygon_mask(np.array(points), 8, 6).sum() == pixels


def test_run_lengths_go_down_the_columns():
    mask = run_length_mask([1, 2, 3], 2, 3)
    assert mask.astype(int).tolist() == [[0, 0], [1, 0], [1, 0]]
