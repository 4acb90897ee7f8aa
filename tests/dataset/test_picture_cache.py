"""dataset/picture_cache.py: what is kept has the bits of what was decoded, and is of these very files."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dataset import BaseDataset, get_dataset, picture_cache
from dataset.anomaly_dataset import Augmentation
from dataset.image_files import Reading
from dataset.picture_cache import PictureCache
from files.digests import IMAGE_DIGEST, tensor_digest
from files.tensor_cache import TensorCache

SIZE = 24


@pytest.fixture
def root(data_root, tmp_path):
    """A data root of its own, that a test may write to."""
    return shutil.copytree(data_root, tmp_path / "data")


@pytest.fixture
def entries(tmp_path, lines):
    return TensorCache(tmp_path / "pictures", 1, "image_cache", lines[0])


@pytest.fixture
def decoded(monkeypatch):
    """The paths of the images that were decoded."""
    paths, read = [], picture_cache.read_pair

    def reading(sample, *arguments, **named):
        paths.append(sample.image_path)
        return read(sample, *arguments, **named)

    monkeypatch.setattr(picture_cache, "read_pair", reading)
    return paths


def training_sets(root, size=SIZE):
    return get_dataset("MVTec", size, "full_shot", 0, "train", data_root=root)


def items(images, epochs=(0, 1)):
    found = []
    for epoch in epochs:
        images.set_epoch(epoch)
        found += [images[index] for index in range(len(images))]
    return found


def assert_same_bits(found, wanted):
    assert len(found) == len(wanted)
    for item, other in zip(found, wanted, strict=True):
        assert item.keys() == other.keys()
        for key, value in other.items():
            if isinstance(value, torch.Tensor):
                assert item[key].dtype == value.dtype and torch.equal(item[key], value), key
            else:
                assert item[key] == value


@pytest.mark.bit_equality
@pytest.mark.parametrize("stage", [0, 1], ids=["text", "image"])
def test_both_stages_see_the_same_bits_with_a_cold_and_a_warm_cache_and_decode_once(
    stage, root, entries, decoded
):
    wanted = items(training_sets(root)[stage])
    decoded.clear()
    images = training_sets(root)[stage].read_through(PictureCache(entries))
    assert_same_bits(items(images), wanted)
    assert len(decoded) == len(images) == 12  # in the first of two epochs
    decoded.clear()
    again = training_sets(root)[stage].read_through(PictureCache(TensorCache(entries.folder, 1)))
    assert_same_bits(items(again), wanted)
    assert not decoded


@pytest.mark.bit_equality
def test_test_images_and_their_masks_keep_their_bits_in_both_readings_of_masks(root, entries):
    for reading in ("upstream", "robust"):
        plain = get_dataset("MVTec", SIZE, None, 0, "test", data_root=root, mask_reading=reading)
        cached = get_dataset("MVTec", SIZE, None, 0, "test", data_root=root, mask_reading=reading)
        for name, images in cached.items():
            images.read_through(PictureCache(entries))
            assert_same_bits(items(images), items(plain[name], (0, 1)))


def test_other_bytes_another_size_and_another_reading_are_decoded_anew(root, entries, decoded):
    sample = next(one for one in training_sets(root)[0].samples if one.image_path.endswith("bmp"))
    cache = PictureCache(entries)
    wanted = cache.decode(sample, Reading(), SIZE, False)
    for how in ((Reading(), SIZE + 1, False), (Reading("upstream"), SIZE, False), (Reading(), SIZE, True)):
        decoded.clear()
        cache.decode(sample, *how)
        cache.decode(sample, *how)
        assert len(decoded) == 1, how
    pixels = np.array(Image.open(sample.image_path))
    state = os.stat(sample.image_path)
    Image.fromarray(255 - pixels).save(sample.image_path)  # of the same size, as BMP is not compressed
    os.utime(sample.image_path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a copy that keeps times does
    decoded.clear()
    changed = cache.decode(sample, Reading(), SIZE, False)
    assert len(decoded) == 1 and changed.picture.tobytes() != wanted.picture.tobytes()


def test_another_mask_is_read_anew(root, entries):
    sample = next(one for one in training_sets(root)[0].samples if one.mask_paths)
    cache = PictureCache(entries)
    before = cache.decode(sample, Reading(), SIZE, False)
    mask = np.array(Image.open(sample.mask_paths[0]))
    Image.fromarray(mask[::-1].copy()).save(sample.mask_paths[0])
    after = cache.decode(sample, Reading(), SIZE, False)
    assert not torch.equal(before.mask, after.mask) and before.mask_pixels == after.mask_pixels


def test_a_mask_that_vanishes_is_named_from_the_cache_as_from_the_file(root, entries, lines):
    logger, messages = lines
    sample = next(one for one in training_sets(root)[0].samples if one.mask_paths)
    mask = np.zeros_like(np.array(Image.open(sample.mask_paths[0])))
    mask[1, 1] = 255
    Image.fromarray(mask).save(sample.mask_paths[0])
    for _ in range(2):
        BaseDataset([sample], 4, logger=logger).read_through(PictureCache(entries))[0]
    said = [line for line in messages if "the 1 anomalous pixels" in line]
    assert len(said) == 2 and said[0] == said[1]


def test_a_damaged_entry_is_decoded_again_and_a_missing_file_is_named_as_always(
    root, entries, decoded, lines
):
    images = training_sets(root)[0].read_through(PictureCache(entries))
    wanted = items(images, [0])
    for path in entries.folder.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    decoded.clear()
    assert_same_bits(items(images, [0]), wanted)
    assert len(decoded) == 12 and any("is damaged" in line for line in lines[1])
    os.unlink(images.samples[0].image_path)
    with pytest.raises(ValueError, match="cannot read image"):
        images[0]


def test_workers_share_one_cache_and_give_the_same_batches(root, entries):
    def batches(images, workers):
        return [batch["image"] for batch in DataLoader(images, 5, num_workers=workers)]

    plain = batches(training_sets(root)[0], 0)
    for _ in range(2):
        found = batches(training_sets(root)[0].read_through(PictureCache(entries)), 2)
        assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_a_sample_carries_its_images_digest_where_that_is_asked_for(root):
    images = training_sets(root)[0]
    assert IMAGE_DIGEST not in images[0]
    item = images.read_through(digests=True)[0]
    assert item[IMAGE_DIGEST] == tensor_digest(item["image"])
    batch = next(iter(DataLoader(images, 3)))
    assert batch[IMAGE_DIGEST] == [tensor_digest(one) for one in batch["image"]]


def test_a_fixed_augmentation_shows_the_first_epoch_in_every_epoch(root):
    samples = training_sets(root)[0].samples
    moving = BaseDataset(samples, SIZE, Augmentation("text", False, 1))
    fixed = BaseDataset(samples, SIZE, Augmentation("text", False, 1, fixed=True))
    first, second = items(moving, [0]), items(moving, [1])
    assert_same_bits(items(fixed, [0]), first)
    assert_same_bits(items(fixed, [3]), first)
    assert any(not torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))
