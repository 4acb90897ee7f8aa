"""Triptychs [visible | target | semantic] as tensors, from any of three layouts of the same pictures.

    strips       FOLDER/<name>.png, three square panels side by side (512 x 1536 at FLUX's size)
    folders      FOLDER/visible/<name>.png, FOLDER/target/<name>.png, FOLDER/semantic/<name>.png, equal stems
    triptych.jsonl   one object a line: {"visible": path, "target": path, "semantic": path}, relative to the file's
                 folder; "name" is optional, the target's stem without it

A folder that holds a triptych.jsonl is read by it. The folder may be a link, what lies in it may not lead out of it;
hidden files are none. The panels may show anything: a defect and its mask, or visible
light, infrared and a label map.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dataset.folders import IMAGE_ENDINGS
from dataset.image_files import read_image
from dataset.jsonl import read_rows
from files.given import can_name_a_file, require_inside, require_regular

PANELS = ("visible", "target", "semantic")
INDEX = "triptych.jsonl"
LAYOUTS = ("strips", "folders", "jsonl")
ENDINGS = tuple(sorted(IMAGE_ENDINGS))


class Entry(NamedTuple):
    """One triptych: the file of each panel, or thrice the strip that holds them."""

    name: str
    files: dict[str, Path]  # by panel
    source: str  # for errors at reading time
    is_strip: bool = False


class Triptychs(Dataset):
    """{"visible", "target", "semantic": float [3, S, S] in [-1, 1], "name": str}, sorted by name.

    Panels of another size are resized to S x S: pictures bicubic, the semantic map nearest, so that no label appears
    that was not drawn. The three layouts give identical tensors for identical pictures.

    Args:
        path: the folder, or a .jsonl file.
        size: S in pixels.

    Raises:
        FileNotFoundError: no such folder or file, or one that a row names.
        ValueError: no triptych found, panels of unequal number, a strip whose width is not three times its height, two
            of one name, a path that leaves the folder, a picture that is no regular file, or (when an item is read) a
            damaged picture.
    """

    def __init__(self, path: str | os.PathLike, size: int):
        if size < 1:
            raise ValueError(f"size is {size}: expected the panels' side in pixels")
        self.size = size
        self.entries = sorted(find_triptychs(Path(path)), key=lambda entry: entry.name)
        names = [entry.name for entry in self.entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"{path}: {len(twice)} names occur twice, the first is {twice[0]!r}: names must differ"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str]:
        entry = self.entries[index]
        panels = {panel: self._read(entry, panel) for panel in PANELS}
        return {**panels, "name": entry.name}

    def _read(self, entry: Entry, panel: str) -> torch.Tensor:
        require_regular(entry.files[panel], entry.source)
        picture = read_image(str(entry.files[panel]), entry.source)
        if entry.is_strip:
            picture = cut_panel(picture, panel, entry.source)
        if picture.size != (self.size, self.size):
            method = Image.Resampling.NEAREST if panel == "semantic" else Image.Resampling.BICUBIC
            picture = picture.resize((self.size, self.size), method)
        return to_tensor(np.asarray(picture))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """RGB bytes [H, W, 3] -> float [3, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """Float [3, H, W] in [-1, 1] -> RGB bytes [H, W, 3]; the inverse of `to_tensor`, values outside are clipped."""
    scaled = (image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 0).numpy()


def cut_panel(strip: Image.Image, panel: str, source: str) -> Image.Image:
    """One panel of a strip. Raises ValueError unless the strip is three times as wide as high."""
    width, height = strip.size
    if width != 3 * height:
        raise ValueError(
            f"{source}: the strip is {width}x{height} pixels, expected three square panels side by side, "
            f"{3 * height}x{height}; or put the panels into the folders {', '.join(PANELS)}"
        )
    left = PANELS.index(panel) * height
    return strip.crop((left, 0, left + height, height))


def find_triptychs(path: Path) -> list[Entry]:
    """The triptychs at a path, whatever the layout; see `Triptychs` for what is raised."""
    if path.suffix == ".jsonl" or (path / INDEX).is_file():
        if path.suffix != ".jsonl":
            require_inside(path / INDEX, path)
        return _from_index(path if path.suffix == ".jsonl" else path / INDEX)
    if not path.is_dir():
        raise FileNotFoundError(
            f"no folder {str(path)!r}: make triptychs with make_triptychs.py, or give their folder"
        )
    if any((path / panel).is_dir() for panel in PANELS):
        return _from_folders(path)
    strips = pictures_in(path)
    if not strips:
        raise ValueError(
            f"{path}: no triptych found: expected strips (PNG), the folders {', '.join(PANELS)}, or {INDEX}"
        )
    return [
        Entry(name, dict.fromkeys(PANELS, file), str(file), is_strip=True) for name, file in strips.items()
    ]


def _from_folders(path: Path) -> list[Entry]:
    found = {panel: pictures_in(path / panel, path) for panel in PANELS}
    names = sorted(set().union(*found.values()))
    lonely = [(name, panel) for name in names for panel in PANELS if name not in found[panel]]
    if lonely or not names:
        what = (
            f"{lonely[0][1]} has no picture of stem {lonely[0][0]!r}" if lonely else "there are no pictures"
        )
        raise ValueError(f"{path}: {what}: {', '.join(PANELS)} must hold pictures of equal stems")
    return [Entry(name, {panel: found[panel][name] for panel in PANELS}, f"{path}, {name}") for name in names]


def _from_index(file: Path) -> list[Entry]:
    entries, folder = [], os.path.realpath(file.parent)
    for source, row in read_rows(file):
        paths = {}
        for panel in PANELS:
            value = row.get(panel)
            if not can_name_a_file(value):
                raise ValueError(f"{source}: {panel} is {value!r}: expected a path relative to {file.parent}")
            real = os.path.realpath(os.path.join(folder, value))
            if not real.startswith(os.path.join(folder, "")):
                raise ValueError(
                    f"{source}: {panel} {value!r} leads outside {file.parent}: keep the pictures below it"
                )
            if not os.path.isfile(real):
                raise FileNotFoundError(
                    f"{source}: {panel} {value!r} is no file below {file.parent}: correct the path"
                )
            paths[panel] = Path(real)
        entries.append(Entry(str(row.get("name", paths["target"].stem)), paths, source))
    if not entries:
        raise ValueError(f"{file}: no rows: expected one object a line with {', '.join(PANELS)}")
    return entries


def pictures_in(folder: Path, root: Path | None = None) -> dict[str, Path]:
    """{stem: file} of a folder's pictures; {} without the folder.

    Args:
        root: the folder that links may not leave; default `folder`.

    Raises:
        FileNotFoundError, ValueError: a picture that is a link to nothing or out of `root`, or no regular file; two of
            one stem.
    """
    files = sorted(folder.glob("[!.]*")) if folder.is_dir() else []
    pictures = [file for file in files if file.suffix.lower() in ENDINGS]
    for file in pictures:
        require_inside(file, root or folder)
        require_regular(file)
    stems = {file.stem: file for file in pictures}
    if len(stems) < len(pictures):
        raise ValueError(
            f"{folder}: {len(pictures) - len(stems)} pictures share another's stem: names must differ"
        )
    return stems
