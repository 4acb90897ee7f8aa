"""Reading, augmenting and serving images: get_dataset, anomaly_dataset, augmentation, image_files, randomness."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import dataset
from dataset import BaseDataset, BaseSingleClassDataset, EpochSampler, get_dataset
from dataset.anomaly_dataset import Augmentation
from dataset.augmentation import MAX_TRANSLATION, jitter_colour, move_together
from dataset.image_files import read_image, read_mask
from dataset.jsonl import Sample
from dataset.randomness import keyed_generator

SIZE = 32
TEXT = Augmentation("text", colour=False, seed=1)
IMAGE = Augmentation("image", colour=True, seed=1)
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def save_pixels(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return str(path)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def square(height, width, value=255):
    pixels = np.zeros((height, width), np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = value
    return pixels


@pytest.fixture
def root(tmp_path):
    """An MVTec-layout folder with two classes, three endings, unequal sizes: 3 normal and 3 broken images a class."""
    for class_name in ("bottle", "wood"):
        folder = tmp_path / "mvtec_ad" / class_name
        for number, ending in enumerate(("png", "JPG", "bmp")):
            height, width = 40 + 9 * number, 64 - 5 * number
            save_pixels(folder / "test" / "good" / f"{number:03}.{ending}", noise(height, width, number))
            save_pixels(
                folder / "test" / "broken" / f"{number:03}.{ending}", noise(height, width, 9 + number)
            )
            save_pixels(folder / "ground_truth" / "broken" / f"{number:03}_mask.png", square(height, width))
    return tmp_path


@pytest.fixture
def sample(tmp_path):
    """A white square on black whose mask is the same square."""
    pixels = square(48, 60)
    image = save_pixels(tmp_path / "image.png", np.stack([pixels] * 3, axis=-1))
    return Sample(image, save_pixels(tmp_path / "mask.png", pixels), 1, "bottle", "image.png", "rows.jsonl:1")


def test_a_folder_in_mvtec_layout_gives_training_batches(root):
    text_set, image_set = get_dataset("MVTec", SIZE, "full_shot", 0, "train", data_root=root)
    assert len(text_set) == len(image_set) == 12
    assert text_set.augmentation == Augmentation("text", colour=False, seed=111)
    assert image_set.augmentation == Augmentation("image", colour=True, seed=111)
    batches = list(DataLoader(image_set, batch_size=5, num_workers=1))
    assert [len(batch["label"]) for batch in batches] == [5, 5, 2]
    assert batches[0]["image"].shape == (5, 3, SIZE, SIZE) and batches[0]["image"].dtype == torch.float32
    assert batches[0]["mask"].shape == (5, 1, SIZE, SIZE) and batches[0]["mask"].dtype == torch.float32
    assert batches[0]["label"].dtype == torch.int64
    assert batches[0]["class_name"] == ["bottle"] * 5
    assert batches[0]["file_name"][0] == "mvtec_ad/bottle/test/broken/000.png"


def test_the_test_split_is_one_dataset_per_class_in_the_order_of_the_registry(root):
    sets = get_dataset("MVTec", SIZE, "few_shot", 2, "test", data_root=root)
    assert list(sets) == ["bottle", "wood"]
    assert all(isinstance(one, BaseSingleClassDataset) and len(one) == 6 for one in sets.values())
    for item in sets["wood"]:
        assert item["class_name"] == "wood"
        assert item["mask"].any() == item["label"]
        assert set(item["mask"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.bit_equality
def test_an_item_is_the_bicubic_resize_normalised_with_clips_statistics(sample):
    item = BaseDataset([sample], SIZE)[0]
    resized = Image.open(sample.image_path).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    expected = (torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255 - CLIP_MEAN) / CLIP_STD
    torch.testing.assert_close(item["image"], expected)
    mask = Image.open(sample.mask_path).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    assert torch.equal(item["mask"][0], torch.from_numpy(np.array(mask) / 255).float())


@pytest.mark.bit_equality
def test_the_test_split_is_not_augmented(root):
    one = get_dataset("MVTec", SIZE, "full_shot", 0, "test", data_root=root)["bottle"]
    first = one[0]["image"]
    one.set_epoch(5)
    assert torch.equal(first, one[0]["image"])


@pytest.mark.bit_equality
def test_workers_that_live_on_see_the_next_epoch(root):
    _, images = get_dataset("MVTec", SIZE, "full_shot", 0, "train", data_root=root, seed=3)
    loader = DataLoader(images, batch_size=4, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 5):
        images.set_epoch(epoch)
        lived_on = [item for batch in loader for item in batch["image"]]
        assert images.epoch == epoch
        assert all(torch.equal(one, images[index]["image"]) for index, one in enumerate(lived_on))


@pytest.mark.bit_equality
def test_augmentation_depends_on_seed_stage_epoch_and_index_only(root):
    _, image_set = get_dataset("MVTec", SIZE, "full_shot", 0, "train", data_root=root, seed=3)
    _, again = get_dataset("MVTec", SIZE, "full_shot", 0, "train", data_root=root, seed=3)
    image_set.set_epoch(2)
    again.set_epoch(2)
    forward = [image_set[index]["image"] for index in range(12)]
    torch.manual_seed(99)  # the global generator plays no part
    backward = [again[index]["image"] for index in reversed(range(12))][::-1]
    workers = [item for batch in DataLoader(again, batch_size=4, num_workers=2) for item in batch["image"]]
    assert all(map(torch.equal, forward, backward)) and all(map(torch.equal, forward, workers))
    again.set_epoch(3)
    assert not all(torch.equal(one, again[index]["image"]) for index, one in enumerate(forward))
    _, other_seed = get_dataset("MVTec", SIZE, "full_shot", 0, "train", data_root=root, seed=4)
    other_seed.set_epoch(2)
    assert not all(torch.equal(one, other_seed[index]["image"]) for index, one in enumerate(forward))


@pytest.mark.bit_equality
def test_the_same_image_varies_between_indices_and_stages(sample):
    copies = BaseDataset([sample] * 8, SIZE, TEXT)
    other_stage = BaseDataset([sample] * 8, SIZE, TEXT._replace(stage="image"))
    images = [copies[index]["image"] for index in range(8)]
    assert not all(torch.equal(images[0], image) for image in images)
    assert not all(torch.equal(image, other_stage[index]["image"]) for index, image in enumerate(images))
    assert torch.equal(copies[-1]["image"], images[7])


def test_augmenting_leaves_the_global_random_state_alone(sample):
    before = torch.get_rng_state()
    BaseDataset([sample], SIZE, IMAGE)[0]
    list(EpochSampler(5, seed=1))
    assert torch.equal(before, torch.get_rng_state())


def test_geometry_moves_image_and_mask_together(sample):
    moved = 0
    plain = BaseDataset([sample], 64)[0]["mask"]
    augmented = BaseDataset([sample], 64, TEXT)
    for epoch in range(20):
        augmented.set_epoch(epoch)
        item = augmented[0]
        white = (item["image"] * CLIP_STD + CLIP_MEAN).mean(dim=0, keepdim=True) > 0.75
        # bicubic against nearest resizing differs by at most the square's outline
        assert (white != item["mask"].bool()).sum() <= 4 * 16 + 4
        moved += not torch.equal(item["mask"], plain)
    assert moved >= 12


def test_geometry_draws_what_the_method_states():
    ramp = torch.arange(400.0).reshape(1, 20, 20)  # every pixel has a value of its own
    known = {"same": ramp, "flipped": ramp.flip(2), "upside down": ramp.flip(1), "both": ramp.flip(1, 2)}
    outcomes = Counter()
    for number in range(400):
        image, mask = move_together(ramp.expand(3, -1, -1), (ramp > 200).float(), keyed_generator(number))
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        outcomes[next((name for name, moved in known.items() if torch.equal(image[:1], moved)), "moved")] += 1
    # a quarter is neither rotated nor translated, and spread evenly over the four flips: 25 of 400 each
    assert all(12 <= outcomes[name] <= 45 for name in known)
    assert 255 <= outcomes["moved"] <= 330


def test_translation_stays_within_its_share_of_the_side():
    shifts = set()
    for number in range(300):
        generator = keyed_generator("shift", number)
        image = torch.zeros(3, 41, 41)
        image[:, 20, 20] = 1.0  # the centre stays in place under rotation and flips
        moved, _ = move_together(image, torch.zeros(1, 41, 41), generator)
        row, column = divmod(int(moved[0].argmax()), 41)
        shifts.add(max(abs(row - 20), abs(column - 20)))
    assert max(shifts) == round(MAX_TRANSLATION * 41) == 6
    assert 0 in shifts


def test_only_the_image_set_varies_colour(tmp_path):
    orange = np.zeros((SIZE, SIZE, 3), np.uint8) + np.array([200, 120, 40], np.uint8)
    orange[::2] //= 2
    image = save_pixels(tmp_path / "orange.png", orange)
    samples = [Sample(image, None, 0, "wood", "orange.png", "rows.jsonl:1")] * 12

    def colours(augmentation):
        items = BaseDataset(samples, SIZE, augmentation)
        return {
            tuple((pixel * 1000).round().int().tolist())
            for item in items
            for pixel in item["image"].flatten(1).T
        }

    plain = colours(None)
    assert len(plain) == 2
    assert colours(TEXT) <= plain | {(0, 0, 0)}  # 0 is the fill
    assert len(colours(IMAGE) - plain) > 12


def test_colour_jitter_applies_each_adjustment_with_its_own_probability():
    picture = Image.fromarray(noise(8, 8))
    unchanged = sum(jitter_colour(picture, keyed_generator(number)) is picture for number in range(1000))
    assert 12 <= unchanged <= 45  # 0.3 ** 3 of 1000 is 27


def test_the_sampler_orders_an_epoch_by_seed_and_epoch_only():
    sampler, resumed = EpochSampler(50, seed=7), EpochSampler(50, seed=7)
    first = list(sampler)
    assert sorted(first) == list(range(50)) and first != list(range(50)) and list(sampler) == first
    sampler.set_epoch(3)
    resumed.set_epoch(3)
    assert list(sampler) == list(resumed) != first
    assert list(EpochSampler(50, seed=8)) != first and len(sampler) == 50


def test_keyed_generators_are_the_same_in_every_process():
    assert torch.randint(1000, (3,), generator=keyed_generator(111, "image", 0, 5)).tolist() == [241, 867, 76]


def test_few_shot_sets_hold_k_images_per_class_and_shot_zero_all(root):
    text_set, image_set = get_dataset("MVTec", SIZE, "few_shot", 3, "train", data_root=root)
    counts = [(sample.class_name, sample.label) for sample in text_set.samples]
    assert text_set.samples == image_set.samples
    assert sorted(counts) == [(name, label) for name in ("bottle", "wood") for label in (0, 0, 1)]
    assert len(get_dataset("MVTec", SIZE, "few_shot", 0, "train", data_root=root)[0]) == 12
    assert len(get_dataset("MVTec", SIZE, "full_shot", 3, "train", data_root=root)[0]) == 12


def write_subset(path, folder, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = sorted((folder / "bottle" / "test" / "good").iterdir())[:count]
    rows = [
        {"image_path": str(image.relative_to(folder)), "label": 0, "class_name": "bottle"} for image in images
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_metadata_is_taken_from_the_first_place_that_has_it(root, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(dataset, "METADATA_FOLDER", tmp_path / "metadata")
    folder = root / "mvtec_ad"

    def rows(shot=0, **options):
        return len(get_dataset("MVTec", SIZE, "few_shot", shot, "train", data_root=root, **options)[0])

    assert rows() == 12
    assert "no full-shot.jsonl" in caplog.text
    write_subset(folder / "full-shot.jsonl", folder, 3)
    assert rows() == 3
    write_subset(tmp_path / "metadata" / "MVTec" / "full-shot.jsonl", folder, 2)
    assert rows() == 2
    write_subset(tmp_path / "metadata" / "MVTec" / "8-shot.jsonl", folder, 1)
    assert rows() == 2 and rows(shot=8) == 1
    write_subset(tmp_path / "mine.jsonl", folder, 3)
    assert rows(meta_path=tmp_path / "mine.jsonl") == 3
    assert str(tmp_path / "mine.jsonl") in caplog.text


@pytest.mark.parametrize(
    ("name", "mode", "split", "message"),
    [
        ("MVTek", "few_shot", "train", "unknown dataset 'MVTek'.*: known are MVTec, VisA"),
        ("MVTec", "fewshot", "train", "training_mode is 'fewshot': expected few_shot or full_shot"),
        ("MVTec", "few_shot", "val", "split is 'val': expected train or test"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(root, name, mode, split, message):
    with pytest.raises(ValueError, match=message):
        get_dataset(name, SIZE, mode, 2, split, data_root=root)


def test_the_data_root_is_the_argument_then_the_environment_then_the_default(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AACLIP_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"--data_root.*AACLIP_DATA.*\./data"):
        get_dataset("MVTec", SIZE, "full_shot", 0, "test")
    (tmp_path / "data").symlink_to(root)
    assert get_dataset("MVTec", SIZE, "full_shot", 0, "test")
    monkeypatch.setenv("AACLIP_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere' .from environment variable AACLIP_DATA"):
        get_dataset("MVTec", SIZE, "full_shot", 0, "test")
    assert get_dataset("MVTec", SIZE, "full_shot", 0, "test", data_root=root)
    with pytest.raises(FileNotFoundError, match="VisA_20220922.*put or link the dataset there"):
        get_dataset("VisA", SIZE, "full_shot", 0, "test", data_root=root)


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_an_unreadable_image_is_named_with_its_metadata_line(sample, content):
    intact = open(sample.image_path, "rb").read()
    with open(sample.image_path, "wb") as file:
        file.write(intact[: len(intact) // 2] if content == "truncated" else content)
    with pytest.raises(
        ValueError, match=r"rows\.jsonl:1: cannot read image .*image\.png.*expected an intact PNG"
    ):
        BaseDataset([sample], SIZE)[0]


def test_a_loader_worker_reports_an_unreadable_image_as_a_value_error(sample):
    open(sample.image_path, "wb").close()
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: cannot read image"):
        next(iter(DataLoader(BaseDataset([sample], SIZE), num_workers=1)))


def test_an_unreadable_mask_is_named_with_its_metadata_line(sample):
    open(sample.mask_path, "wb").close()
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: cannot read mask .*mask\.png"):
        BaseDataset([sample], SIZE)[0]


def test_a_mask_of_another_size_than_its_image_is_refused_with_both_sizes(sample):
    save_pixels(Path(sample.mask_path), square(48, 61))
    with pytest.raises(ValueError, match=r"is 61x48 pixels and its image is 60x48"):
        BaseDataset([sample], SIZE)[0]


def test_an_empty_mask_of_an_anomalous_image_is_warned_about_once(sample, caplog):
    Image.new("L", (60, 48)).save(sample.mask_path)
    one = BaseDataset([sample], SIZE)
    assert not one[0]["mask"].any() and not one[0]["mask"].any()
    assert caplog.text.count("label is 1 but mask") == 1


def test_a_mask_counts_bright_pixels_and_a_mask_of_defect_numbers_every_nonzero_one(tmp_path):
    grey, numbers = tmp_path / "grey.png", tmp_path / "numbers.png"
    save_pixels(grey, [[0, 3, 127], [128, 254, 255]])
    save_pixels(numbers, [[0, 1, 2], [0, 0, 9]])
    assert read_mask(str(grey), (3, 2), "row").tolist() == [[False, False, False], [True, True, True]]
    assert read_mask(str(numbers), (3, 2), "row").tolist() == [[False, True, True], [False, False, True]]


def test_images_of_any_mode_become_rgb_and_sixteen_bits_are_scaled_not_clipped(tmp_path):
    for name, image in {
        "grey.png": Image.new("L", (4, 4), 128),
        "alpha.png": Image.new("RGBA", (4, 4), (128, 128, 128, 255)),
        "palette.bmp": Image.new("L", (4, 4), 128).convert("P"),
        "deep.png": Image.fromarray(np.full((4, 4), 128 * 256 + 17, np.uint16)),
    }.items():
        image.save(tmp_path / name)
        assert read_image(str(tmp_path / name), "row").getpixel((1, 1)) == (128, 128, 128)
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="8 or 16 bits"):
        read_image(str(tmp_path / "float.tiff"), "row")


def test_a_single_class_dataset_refuses_other_classes(sample):
    with pytest.raises(ValueError, match="'wood' only, got also bottle"):
        BaseSingleClassDataset([sample], SIZE, "wood")
