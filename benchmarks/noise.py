"""A class of images of noise, for what needs a data set and not its content."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset


class Noise(Dataset):
    """`count` images of `size` px made when they are asked for, every second one with a defect."""

    def __init__(self, count: int, size: int):
        self.count, self.img_size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        image = random.standard_normal((3, self.img_size, self.img_size), np.float32)
        mask = np.zeros((1, self.img_size, self.img_size), np.float32)
        if index % 2:
            top, left = random.integers(0, self.img_size * 3 // 4, 2)
            side = self.img_size // 8
            mask[0, top : top + side, left : left + side] = 1
            image[:, top : top + side, left : left + side] += 2
        return {"image": image, "mask": mask, "label": index % 2, "file_name": f"{index:06}.png"}
