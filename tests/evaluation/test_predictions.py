"""Batches of an evaluation, and images that see another one of theirs: evaluation/predictions.py."""

import pytest
import torch
from torch.utils.data import Dataset

from evaluation.errors import draw
from evaluation.predictions import Batch, batches_of, evaluate_dataset, predict_batches
from evaluation.rarity import rarity_alone_scorer
from run_folder.processes import Processes

SIZE = 32


class Images(Dataset):
    """The first images of a fixture as a class's data set."""

    def __init__(self, images, count):
        self.images = images[:count]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        mask = torch.zeros(1, SIZE, SIZE)
        return {"image": self.images[index], "mask": mask, "label": index % 2, "file_name": f"{index}.png"}


class Rank(Processes):
    """One of two processes that score together."""

    def __init__(self, rank):
        super().__init__(rank, 2)

    def collect(self, value):
        return [value]


def maps_of(scorer, images, batch_size, **more):
    found = predict_batches(scorer, images, "bottle", batch_size=batch_size, device="cpu", **more)
    return {file: score for batch in found for file, score in zip(batch["files"], batch["maps"], strict=True)}


def test_an_image_left_over_sees_the_one_before_it_and_other_batches_stay_as_they_were():
    assert batches_of(5, 2) == [Batch(range(0, 2)), Batch(range(2, 4)), Batch(range(4, 5))]
    assert batches_of(5, 2, True) == [Batch(range(0, 2)), Batch(range(2, 4)), Batch([3, 4], 1)]
    assert batches_of(4, 2, True) == batches_of(4, 2)
    assert batches_of(3, 1, True) == [Batch([1, 0], 1), Batch([0, 1], 1), Batch([1, 2], 1)]


def test_a_shuffled_image_that_is_left_over_gets_the_rarities_of_the_one_before_it_in_any_process(
    clip, images
):
    shuffled = rarity_alone_scorer(clip, "MVTec", SIZE, "shuffled")
    own = maps_of(rarity_alone_scorer(clip, "MVTec", SIZE), Images(images, 3), 2)
    found = maps_of(shuffled, Images(images, 3), 2)
    assert list(found) == ["0.png", "1.png", "2.png"]
    for file, lender in (("0.png", "1.png"), ("1.png", "0.png"), ("2.png", "1.png")):
        torch.testing.assert_close(torch.tensor(found[file]), torch.tensor(own[lender]), rtol=1e-4, atol=1e-5)
    other = maps_of(shuffled, Images(images, 3), 2, processes=Rank(1))
    torch.testing.assert_close(torch.tensor(other["2.png"]), torch.tensor(found["2.png"]))


def test_a_class_of_one_image_is_refused_before_any_class_is_scored(clip, images):
    sets = {"bottle": Images(images, 4), "screw": Images(images, 1)}
    scored = []
    how = {"batch_size": 2, "device": "cpu", "on_class": lambda name, _: scored.append(name)}
    with pytest.raises(ValueError, match="screw has 1 image, expected 2 or more"):
        evaluate_dataset(rarity_alone_scorer(clip, "MVTec", SIZE, "shuffled"), sets, **how)
    assert not scored


def test_a_page_of_errors_shows_the_maps_an_image_was_judged_by(clip, images, monkeypatch):
    from evaluation import errors

    class Mistake:
        class Picture:
            class_name = "bottle"

        picture, number = Picture, 2

    data = Images(images, 3)
    data.samples, data.reading = [None] * 3, None
    photograph = torch.zeros(SIZE, SIZE, 3, dtype=torch.uint8).numpy()
    monkeypatch.setattr(errors, "read_image_of", lambda sample, reading: photograph)
    shuffled = rarity_alone_scorer(clip, "MVTec", SIZE, "shuffled")
    (drawn,) = draw([Mistake], shuffled, {"bottle": data}, batch_size=2, device="cpu")
    wanted = maps_of(shuffled, data, 2)["2.png"]
    assert (drawn.low, drawn.high) == (float(wanted.min()), float(wanted.max()))
