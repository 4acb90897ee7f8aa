"""DemoPhoto and DemoPhotoMed: crops of the photographs inside scikit-image's package, with composited defects.

Only files that the package installs are opened, nothing is downloaded. The photographs are already lit, so a defect is
drawn into the picture divided by its local shading, lit by the relief it adds itself, and multiplied back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from demo_world.rendering.defects import apply_defect
from demo_world.rendering.fields import fractal
from demo_world.rendering.lighting import Camera, Light, expose, shade
from demo_world.rendering.regions import blob, place_on
from demo_world.rendering.surfaces import Layers, layers
from demo_world.rendering.twins import damage_twin

TESTED_SKIMAGE = "0.26.0"


@dataclass(frozen=True)
class PhotoLine:
    """One class: its file, the side of its crops in source pixels (least, most), its defects.

    `bounds` = (top, bottom, left, right) shares of the photograph that crops stay in; `upright` forbids flips.
    """

    file: str
    crop: tuple
    defects: tuple
    upright: bool = False
    bounds: tuple = (0.0, 1.0, 0.0, 1.0)


PHOTO_LINES = {
    "DemoPhoto": {
        "brick": PhotoLine("brick.png", (230, 330), ("crack", "hole", "stain", "chip")),
        "coins": PhotoLine(
            "coins.png",
            (190, 260),
            ("scratch", "stain", "contamination"),
            upright=True,
            bounds=(0.1, 1.0, 0.0, 1.0),
        ),
        "grass": PhotoLine("grass.png", (230, 340), ("burn", "contamination", "thread")),
        "gravel": PhotoLine("gravel.png", (230, 340), ("burn", "stain", "thread", "contamination")),
        "moon": PhotoLine("moon.png", (220, 330), ("scratch", "stain", "contamination")),
        "page": PhotoLine("page.png", (150, 185), ("stain", "thread", "burn"), upright=True),
    },
    "DemoPhotoMed": {
        "ihc": PhotoLine("ihc.png", (240, 360), ("fold", "bleaching", "stain")),
        "retina": PhotoLine(
            "retina.jpg", (900, 1200), ("haemorrhage", "exudate"), bounds=(0.05, 0.95, 0.05, 0.95)
        ),
    },
}
PHOTO_CLASSES = {
    name: {class_name: line.defects for class_name, line in lines.items()}
    for name, lines in PHOTO_LINES.items()
}


def photo_folder() -> Path:
    """The folder of photographs that scikit-image installs. Raises ImportError with the remedy without it."""
    try:
        import skimage
    except ImportError as error:
        raise ImportError(
            "DemoPhoto is cut from photographs that come with scikit-image, which is not installed; "
            "run `pip install scikit-image` or render only --name DemoA and DemoB."
        ) from error
    return Path(skimage.__file__).parent / "data"


@cache
def load_photo(file: str) -> np.ndarray:
    """A packaged photograph as uint8 RGB [H, W, 3]. Raises FileNotFoundError when this release lacks it."""
    path = photo_folder() / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; scikit-image {TESTED_SKIMAGE} installs it with the package. "
            f"Install that release or render only --name DemoA and DemoB."
        )
    with Image.open(path) as photo:
        return np.asarray(photo.convert("RGB"))


def crop_photo(line: PhotoLine, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop, float32 RGB 0..1 [S, S, 3], mirrored at random where the class allows it."""
    photo = load_photo(line.file)
    height, width = photo.shape[:2]
    top, bottom, left, right = (
        int(share * side) for share, side in zip(line.bounds, (height, height, width, width), strict=True)
    )
    side = min(int(rng.integers(line.crop[0], line.crop[1] + 1)), bottom - top, right - left)
    y, x = int(rng.integers(top, bottom - side + 1)), int(rng.integers(left, right - side + 1))
    crop = photo[y : y + side, x : x + side]
    if not line.upright:
        crop = np.rot90(crop, int(rng.integers(4)))
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    method = cv2.INTER_AREA if side >= size else cv2.INTER_CUBIC
    return np.clip(
        cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=method) / np.float32(255), 0, 1
    )


def local_shading(picture: np.ndarray) -> np.ndarray:
    """Slow brightness of a photograph around its mean, 0.4..1.6 [S, S]: what light and relief did to the surface."""
    gray = picture.mean(2)
    slow = cv2.GaussianBlur(gray, (0, 0), 0.02 * gray.shape[0])
    return np.clip(slow / max(float(gray.mean()), 0.05), 0.4, 1.6)


def render_photo(
    dataset: str, class_name: str, size: int, rng: np.random.Generator, defect: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One picture: (picture, undamaged twin) uint8 [S, S, 3] RGB, and its mask uint8 [S, S].

    Raises RuntimeError when no fair defect comes out (see twins.py).
    """
    line = PHOTO_LINES[dataset][class_name]
    crop = crop_photo(line, size, rng)
    camera = Camera(
        rng.uniform(1.0, 1.12), rng.uniform(0.95, 1.05), rng.uniform(0.0, 2.0), rng.uniform(0.003, 0.008)
    )
    light = Light(rng.uniform(-np.pi, np.pi), 0.85, 0.45, (1.0, 1.0, 1.0), 0.0, 0.0)
    sensor = int(rng.integers(2**62))
    twin = expose(crop, camera, np.random.default_rng(sensor))
    if defect is None:
        return twin, twin, np.zeros((size, size), np.uint8)

    def draw(extent, rng):
        return expose(composite(crop, defect, extent, light, rng), camera, np.random.default_rng(sensor))

    picture, mask = damage_twin(twin, draw, rng, f"'{defect}' on {dataset}/{class_name}")
    return picture, twin, mask


def composite(
    crop: np.ndarray, defect: str, extent: float, light: Light, rng: np.random.Generator
) -> np.ndarray:
    """`crop` [S, S, 3] with a defect under the crop's local shading and the light on the relief it adds."""
    shading = local_shading(crop)[..., None]
    subject = layers(crop / shading, np.zeros(crop.shape[:2], np.float32))
    # Lesions lie in the tissue: medical defects keep off the black surround of a fundus camera.
    subject.coverage = (cv2.GaussianBlur(crop.mean(2), (0, 0), 2.0) > 0.12).astype(np.float32)
    if defect in MEDICAL_DEFECTS:
        MEDICAL_DEFECTS[defect](subject, extent, rng)
    else:
        subject.coverage[:] = 1.0
        apply_defect(defect, subject, extent, rng)
    if np.ptp(crop, axis=2).max() < 1e-3:
        # In a black-and-white photograph a defect has no colour either, else colour alone would give it away.
        subject.albedo[:] = subject.albedo.mean(2, keepdims=True)
    return shade(subject, light) * shading


def haemorrhage(subject: Layers, extent: float, rng: np.random.Generator) -> None:
    """A dark red blot with a soft irregular edge."""
    mask = _soft_blob(subject, 0.8 * extent, rng, softness=0.5)
    subject.albedo *= 1.0 + mask[..., None] * (np.float32([0.50, 0.32, 0.35]) - 1.0)


def exudate(subject: Layers, extent: float, rng: np.random.Generator) -> None:
    """A cluster of small waxy yellow spots."""
    centre = np.array(place_on(subject.coverage, rng))
    for _ in range(int(rng.integers(5, 12))):
        spot = centre + rng.normal(0.0, 0.5 * extent, 2)
        mask = blob(subject.height.shape[0], spot, extent * rng.uniform(0.1, 0.3), rng, softness=0.5)
        mask *= 0.75 * subject.coverage
        colour = np.float32([0.95, 0.85, 0.50])
        subject.albedo += mask[..., None] * (colour - subject.albedo)


def bleaching(subject: Layers, extent: float, rng: np.random.Generator) -> None:
    """A pale patch where the dye did not take."""
    mask = _soft_blob(subject, extent, rng, softness=0.6)
    pale = 0.35 * subject.albedo + 0.65 * np.float32([0.86, 0.84, 0.86])
    subject.albedo += 0.85 * mask[..., None] * (pale - subject.albedo)


def fold(subject: Layers, extent: float, rng: np.random.Generator) -> None:
    """The slice folded over: an elongated band in which the tissue is twice as dense."""
    mask = _soft_blob(subject, 0.8 * extent, rng, softness=0.2, aspect=rng.uniform(3.0, 6.0))
    subject.albedo += mask[..., None] * (subject.albedo**2 * 0.85 - subject.albedo)
    subject.height += 0.02 * mask


def _soft_blob(subject, radius, rng, *, softness, aspect=1.3):
    size = subject.height.shape[0]
    mask = blob(
        size, place_on(subject.coverage, rng), radius, rng, softness=softness, rough=0.3, aspect=aspect
    )
    return mask * subject.coverage * np.clip(0.85 + 0.12 * fractal(size, 8, rng, octaves=3), 0.4, 1.0)


MEDICAL_DEFECTS: dict[str, Callable] = {
    "haemorrhage": haemorrhage,
    "exudate": exudate,
    "bleaching": bleaching,
    "fold": fold,
}
