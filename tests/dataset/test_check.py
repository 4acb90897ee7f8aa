"""`python -m dataset.check`: every oddity of a data set at once, as a table and as JSON, and its exit status."""

import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from dataset import check
from dataset.check.__main__ import main
from dataset.check.pixels import digest_of
from dataset.findings import KINDS

SIZE = 48


class World:
    """A data set Own of one class, in which rows and files can be spoilt one by one."""

    def __init__(self, root):
        self.root, self.folder, self.rows = root, root / "own", []
        self.folder.mkdir()

    def picture(self, name, seed, size=(SIZE, SIZE)):
        pixels = np.random.default_rng(seed).integers(40, 200, (size[1], size[0], 3), np.uint8)
        return self.save(name, pixels)

    def mask(self, name, at=12, side=10, size=(SIZE, SIZE), value=255):
        pixels = np.zeros(size[::-1], np.uint8)
        pixels[at : at + side, at : at + side] = value
        return self.save(name, pixels)

    def save(self, name, pixels, **how):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(path, **how)
        return name

    def row(self, image, label, mask=None, **more):
        row = {"image_path": image, "label": label, "class_name": "ring"} | more
        self.rows.append(row | ({"mask_path": mask} if mask else {}))

    def fill(self, count=3):
        for i in range(count):
            self.row(self.picture(f"good{i}.png", i), 0)
            self.row(self.picture(f"bad{i}.png", 50 + i), 1, self.mask(f"mask{i}.png", 10 + i))

    def check(self, *flags):
        """(exit status, content of the JSON file)"""
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        entry = {
            "path": "own",
            "domain": "Industrial",
            "classes": {"ring": "ring"},
            "metadata": "own/rows.jsonl",
        }
        (self.root / "own.json").write_text(json.dumps({"Own": entry}))
        argv = ["--dataset", "Own", "--data_root", str(self.root), "--img_size", "32", "--workers", "2"]
        argv += [
            "--dataset_config",
            str(self.root / "own.json"),
            "--json",
            str(self.root / "found.json"),
            *flags,
        ]
        status = main(argv)
        return status, json.loads((self.root / "found.json").read_text(encoding="utf-8"))

    def kinds(self, *flags):
        return set(self.check(*flags)[1]["kinds"])


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_clean_data_set_has_no_findings_and_status_0(world, capsys):
    world.fill()
    status, found = world.check()
    assert status == 0 and found["findings"] == [] and found["problems"] == found["notes"] == 0
    assert found["datasets"] == [{"name": "Own", "mask_reading": "robust", "images": 6, "masks": 3}]
    assert "Own: 6 images, 3 masks, 0 problems, 0 notes" in capsys.readouterr().out


def test_notes_alone_leave_the_status_at_0(world):
    world.fill()
    world.save("mask0.png", Image.open(world.folder / "mask0.png").convert("P"))
    status, found = world.check()
    assert status == 0 and list(found["kinds"]) == ["palette mask"] and found["notes"] == 1


def spoil(world, kind):
    """Change a good data set so that it has a finding of this kind."""
    folder, half = world.folder, np.zeros((SIZE, SIZE), np.uint8)
    half[12:22, 12:22] = 255
    if kind in ("unreadable file", "cut short"):
        content = (folder / "bad1.png").read_bytes()
        (folder / "bad1.png").write_bytes(content[: len(content) // 2])
    elif kind == "several frames":
        frames = [Image.new("L", (SIZE, SIZE), value) for value in (0, 90)]
        frames[0].save(folder / "good1.png", format="GIF", save_all=True, append_images=frames[1:])
    elif kind == "no defined white":
        Image.fromarray(np.ones((SIZE, SIZE), np.float32)).save(folder / "good1.png", format="TIFF")
    elif kind == "sizes differ":
        world.mask("mask1.png", size=(SIZE, SIZE + 2))
    elif kind == "refused row":
        world.rows[1]["mask_path"] = world.rows[1]["image_path"]
    elif kind == "swapped":
        world.rows[1].update(image_path="mask0.png", mask_path="bad0.png")
    elif kind == "shared mask":
        world.rows[3]["mask_path"] = world.rows[1]["mask_path"]
    elif kind == "empty mask":
        world.mask("mask1.png", value=0)
    elif kind == "mask of a normal picture":
        world.rows[0]["mask_path"] = "mask0.png"
    elif kind == "inverted mask":
        world.save("mask1.png", 255 - half)
    elif kind == "vanishing mask":
        world.mask("mask1.png", at=2, side=1)
    elif kind == "shrinking mask":
        thin = np.zeros((400, 400), np.uint8)
        thin[51:62, 20:380] = thin[12, 12] = (
            255  # of every 12.5 pixels one is kept: the last of these, not the others
        )
        world.picture("bad1.png", 77, (400, 400))
        world.save("mask1.png", thin)
    elif kind == "duplicate":
        Image.open(folder / "bad0.png").save(folder / "good0.png", compress_level=0)
    elif kind == "repeated picture":
        Image.open(folder / "good0.png").save(folder / "good1.png", compress_level=0)
    elif kind == "one label":
        world.rows[:] = [row for row in world.rows if not row["label"]]
    elif kind == "repeated mask":
        world.mask("mask1.png", at=10)
    elif kind == "EXIF orientation":
        exif = Image.Exif()
        exif[0x0112] = 3
        world.save("good0.png", Image.open(folder / "good0.png"), exif=exif)
    elif kind in ("16-bit image", "dark 16-bit image"):
        world.save("good0.png", np.full((SIZE, SIZE), 3000 if "dark" in kind else 40000, np.uint16))
    elif kind == "palette image":
        world.save("good0.png", Image.open(folder / "good0.png").convert("P"))
    elif kind == "transparent image":
        world.save("good0.png", Image.open(folder / "good0.png").convert("RGBA"))
    elif kind == "16-bit mask":
        world.save("mask0.png", (half > 0).astype(np.uint16) * 300)
    elif kind == "palette mask":
        world.save("mask0.png", Image.fromarray(half).convert("P"))
    elif kind == "alpha mask":
        world.save("mask0.png", np.dstack([half * 0] * 3 + [half]))
    elif kind == "JPEG mask":
        world.save("mask0.png", Image.fromarray(half), format="JPEG")
    elif kind == "several values":
        half[30:40, 30:40] = 100
        world.save("mask0.png", half)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("too large", "mask is the image")])
def test_every_kind_of_finding_is_found_listed_and_decides_the_status(world, kind, capsys):
    world.fill()
    spoil(world, kind)
    status, found = world.check()
    assert kind in found["kinds"], found["findings"]
    assert status == (1 if found["problems"] else 0)
    assert KINDS[kind][0] == "note" or status == 1
    shown = capsys.readouterr().out.splitlines()
    assert any(line.endswith(f"{kind}: {KINDS[kind][1]}") for line in shown)
    (first, *_) = [one for one in found["findings"] if one["kind"] == kind]
    assert first["text"] and first["level"] == KINDS[kind][0]


def test_a_picture_of_too_many_pixels_is_found(world, monkeypatch):
    world.fill()
    monkeypatch.setattr("dataset.image_files.PIXEL_LIMIT", SIZE * SIZE)
    world.picture("good1.png", 1, (SIZE, SIZE + 1))
    assert world.kinds() == {"too large"}


def test_all_problems_are_listed_at_once_and_none_hides_another(world):
    world.fill(6)
    (world.folder / "bad0.png").write_bytes(b"")
    world.mask("mask1.png", size=(SIZE, SIZE + 2))
    world.mask("mask2.png", value=0)
    world.save("mask3.png", np.full((SIZE, SIZE), 255, np.uint8))
    world.rows[9]["mask_path"] = "mask5.png"
    status, found = world.check()
    wanted = ["unreadable file", "sizes differ", "empty mask", "inverted mask", "shared mask"]
    assert status == 1 and found["problems"] == 5 and set(found["kinds"]) == set(wanted)


def test_masks_with_more_than_two_values_say_which_count_as_defect(world):
    world.fill()
    spoil(world, "several values")
    (one,) = world.check()[1]["findings"]
    assert "values 0, 100, 255; defect are 100, 255, normal 0" in one["text"]
    (one,) = world.check("--mask_reading", "upstream")[1]["findings"]
    assert "defect are 100, 255, normal 0" in one["text"]


def test_a_jpeg_masks_noise_counts_by_one_reading_and_not_by_the_other(world):
    world.fill()
    ring = np.zeros((SIZE, SIZE), np.uint8)
    ring[13:29, 13:29] = 255
    world.save("mask0.png", Image.fromarray(ring), format="JPEG", quality=60)

    def text(*flags):
        found = world.check(*flags)[1]["findings"]
        return next(one["text"] for one in found if one["kind"] == "several values")

    assert text("--mask_reading", "upstream").endswith(", normal 0")
    assert not text().endswith(", normal 0")


def test_sizes_that_differ_are_given_with_both_sizes(world):
    world.fill()
    spoil(world, "sizes differ")
    (one,) = world.check()[1]["findings"]
    assert "48x50 pixels and its image is 48x48" in one["text"] and "1.000 x 1.042" in one["text"]


def test_the_same_picture_under_another_split_is_a_problem(world):
    world.fill()
    for split in ("train", "test"):
        (world.folder / split).mkdir()
        Image.open(world.folder / "good0.png").save(world.folder / split / "copy.png")
    world.rows[0]["image_path"] = "train/copy.png"
    world.row("test/copy.png", 0)
    status, found = world.check()
    (one,) = found["findings"]
    assert status == 1 and one["kind"] == "duplicate" and "split train and test" in one["text"]


def test_pictures_are_compared_across_data_sets(world):
    world.fill()
    world.check()
    config = json.loads((world.root / "own.json").read_text())
    config["Other"] = config["Own"] | {"metadata": "own/few.jsonl"}
    (world.root / "both.json").write_text(json.dumps(config))
    (world.folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in world.rows[:2]))
    status, found = world.check(
        "--dataset", "Own", "Other", "--dataset_config", str(world.root / "both.json")
    )
    assert status == 1 and found["kinds"]["duplicate"]["count"] == 2
    assert "data set Own and Other" in found["findings"][0]["text"]


def test_it_cannot_run_without_data_or_with_wrong_flags(world, tmp_path, capsys):
    world.fill()
    with pytest.raises(ValueError, match="unknown dataset 'Nowhere'"):
        main(["--dataset", "Nowhere", "--data_root", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="dataset MVTec: no folder"):
        main(["--dataset", "MVTec", "--data_root", str(tmp_path)])
    assert world.check()[0] == 0
    for number in (0, 1):
        world.rows[number]["image_path"] = f"missing{number}.png"
    status, found = world.check()
    assert status == 1 and found["kinds"]["refused row"]["count"] == 2
    assert "missing1.png" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--data_root", str(tmp_path)])
    assert stopped.value.code == 2


def test_large_pictures_are_decoded_one_at_a_time(world, monkeypatch):
    world.fill(4)
    at_once, most = [0], [0]
    lock, look = threading.Lock(), check.look_at_pixels

    def counted(*arguments):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        try:
            return look(*arguments)
        finally:
            with lock:
                at_once[0] -= 1

    monkeypatch.setattr(check, "look_at_pixels", counted)
    monkeypatch.setattr(check, "LARGE", 1)
    world.check("--workers", "4")
    assert most[0] == 1
    monkeypatch.setattr(check, "LARGE", 10**9)
    world.check("--workers", "4")
    assert most[0] > 1


def test_a_picture_with_an_unreadable_mask_is_still_compared_with_others(world):
    world.fill()
    (world.folder / "mask1.png").write_bytes(b"no picture")
    Image.open(world.folder / "bad1.png").save(world.folder / "good0.png", compress_level=0)
    found = world.check()[1]["findings"]
    assert {one["kind"] for one in found} == {"unreadable file", "duplicate"}


def test_every_mask_of_a_list_that_a_normal_row_names_is_looked_at(world):
    world.fill()
    world.mask("empty.png", value=0)
    world.rows[0]["mask_path"] = ["empty.png", "mask0.png"]
    (one,) = world.check()[1]["findings"]
    assert one["kind"] == "mask of a normal picture" and "mask0.png" in one["text"]


def test_digests_tell_shapes_apart():
    assert digest_of(np.zeros((2, 8), np.uint8)) != digest_of(np.zeros((4, 4), np.uint8))
    assert digest_of(np.zeros((4, 4), np.uint8)[:, ::2]) == digest_of(np.zeros((4, 2), np.uint8))
