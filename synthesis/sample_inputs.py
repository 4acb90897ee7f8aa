"""Which pictures `python -m synthesis.sample` works on, and the panels made of them."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from dataset.image_files import read_image, read_mask
from files.given import require_regular
from synthesis.data import ENDINGS, pictures_in, to_tensor
from synthesis.semantic_maps import MAPS, canny_map, luminance_map, mask_map

SHEET = "contact_sheet.png"
WRITTEN = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # endings of results


class Paths(Protocol):
    """The flags that name files."""

    visible: str
    semantic: str | None
    semantic_map: list[str] | None
    target: str | None
    out: str
    attention_out: str | None


class Picture(NamedTuple):
    """One picture to be sampled: what is read for it, and what is written."""

    name: str  # stem of the visible picture
    visible: Path
    semantic: Path | None  # file of the map, or of the mask it is made from; None: made from `visible`
    target: Path | None
    out: Path
    attention_out: Path | None


def find_pictures(own: Paths) -> list[Picture]:
    """The pictures that the flags name, sorted by stem.

    Raises:
        FileNotFoundError: no such file or folder, or a picture without partner.
        ValueError: flags that contradict each other, an ending no picture has, or a file both read and written.
    """
    inputs = {"visible": own.visible, map_flag(own): map_file(own), "target": own.target}
    files = {flag: files_of(flag, path, own.visible) for flag, path in inputs.items()}
    is_folder = Path(own.visible).is_dir()
    pictures = []
    for stem, visible in files["visible"].items():
        key = stem if is_folder else None
        semantic, target = (
            partner(flag, inputs[flag], files[flag], key) for flag in (map_flag(own), "target")
        )
        out, attention = (output(flag, getattr(own, flag), key) for flag in ("out", "attention_out"))
        pictures.append(Picture(stem, visible, semantic, target, out, attention))
    check_outputs(own, pictures)
    return pictures


def map_flag(own: Paths) -> str:
    """The flag that says where the map comes from.

    Raises:
        ValueError: none or both, or a kind of map that does not exist.
    """
    if (own.semantic is None) == (own.semantic_map is None):
        raise ValueError("give either --semantic FILE or --semantic_map canny, luminance or mask FILE")
    if own.semantic is not None:
        return "semantic"
    kind, *file = own.semantic_map
    if kind not in MAPS or len(file) != (kind == "mask"):
        raise ValueError(
            f"--semantic_map {' '.join(own.semantic_map)}: expected canny, luminance, or mask FILE"
        )
    return "semantic_map"


def map_file(own: Paths) -> str | None:
    """The map's file, or the mask's; None where the map is made from the visible picture."""
    if own.semantic is not None:
        return own.semantic
    return own.semantic_map[1] if own.semantic_map[0] == "mask" else None


def files_of(flag: str, path: str | None, visible: str) -> dict[str, Path]:
    """{stem: file} of a flag's pictures; the other flags take a folder where --visible is one."""
    if path is None:
        return {}
    if Path(path).is_dir():
        if not Path(visible).is_dir():
            raise ValueError(
                f"--{flag} {path} is a folder and --visible {visible} a file: give two of a kind"
            )
        found = pictures_in(Path(path))
        if not found:
            raise FileNotFoundError(f"--{flag} {path}: no pictures there ({', '.join(ENDINGS)})")
        return found
    if not Path(path).is_file():
        raise FileNotFoundError(f"--{flag} {path}: no such file or folder")
    if Path(visible).is_dir():
        raise ValueError(f"--{flag} {path} is a file and --visible {visible} a folder: give two of a kind")
    return {Path(path).stem: Path(path)}


def partner(flag: str, path: str | None, files: dict[str, Path], stem: str | None) -> Path | None:
    """The file that belongs to a picture of a folder by its stem, or the only one."""
    if path is None:
        return None
    if stem is None:
        return Path(path)
    if stem not in files:
        raise FileNotFoundError(f"--{flag} {path}: no picture of stem {stem!r}, as --visible has one")
    return files[stem]


def output(flag: str, path: str | None, stem: str | None) -> Path | None:
    """Where a picture's result goes."""
    if path is None:
        return None
    if stem is not None:
        if Path(path).is_file():
            raise ValueError(f"--{flag} {path} is a file: --visible is a folder, name one")
        return Path(path) / f"{stem}.png"
    if Path(path).suffix.lower() not in WRITTEN:
        raise ValueError(f"--{flag} {path}: expected a file that ends in one of {', '.join(WRITTEN)}")
    return Path(path)


def sheet_path(own: Paths) -> Path:
    """The contact sheet beside the results."""
    out = Path(own.out)
    return out / SHEET if Path(own.visible).is_dir() else out.with_name(f"{out.stem}_sheet.png")


def check_outputs(own: Paths, pictures: list[Picture]) -> None:
    """Raises ValueError where a file would be written twice, or over one that is read."""
    read = {path.resolve() for one in pictures for path in (one.visible, one.semantic, one.target) if path}
    written = [path.resolve() for one in pictures for path in (one.out, one.attention_out) if path]
    written.append(sheet_path(own).resolve())
    twice = [path for path in written if written.count(path) > 1 or path in read]
    if twice:
        raise ValueError(
            f"--out {own.out} --attention_out {own.attention_out}: {twice[0]} would be overwritten; "
            "name other files or folders"
        )


def panels_of(picture: Picture, own: Paths, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(visible, semantic) panels [1, 3, side, side] in [-1, 1], resized as in training."""
    visible = read_picture(picture.visible)
    size, shape = visible.size, (side, side)
    visible = visible.resize(shape, Image.Resampling.BICUBIC)
    kind = own.semantic_map[0] if own.semantic_map else None
    if kind == "canny":
        semantic = canny_map(visible)
    elif kind == "luminance":
        semantic = luminance_map(visible)
    elif kind == "mask":
        semantic = mask_map(read_mask(str(picture.semantic), size, "--semantic_map"))
    else:
        semantic = read_picture(picture.semantic)
    semantic = semantic.resize(shape, Image.Resampling.NEAREST)
    return tuple(to_tensor(np.asarray(panel))[None] for panel in (visible, semantic))


def read_picture(path: Path) -> Image.Image:
    """An RGB picture; ValueError for one that cannot be decoded."""
    require_regular(path, "synthesis.sample")
    return read_image(str(path), "synthesis.sample")
