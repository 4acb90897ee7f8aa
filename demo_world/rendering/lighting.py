"""Light on a height field: Lambert and Blinn-Phong shading, soft shadows, and the camera's exposure.

Shading follows the usual Blinn-Phong model (Blinn, 1977) on normals from finite differences.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from demo_world.rendering.surfaces import Layers


@dataclass(frozen=True)
class Light:
    """Direction in radians (azimuth in the image plane, elevation above it), ambient share and colour cast."""

    azimuth: float
    elevation: float
    ambient: float
    cast: tuple
    falloff: float
    reflection: float

    @property
    def vector(self) -> tuple[float, float, float]:
        flat = np.cos(self.elevation)
        return flat * np.cos(self.azimuth), flat * np.sin(self.azimuth), np.sin(self.elevation)


def sample_light(rng: np.random.Generator, spread: float = 1.0) -> Light:
    """A random light; `spread` < 1 keeps it near one direction, as in an inspection station."""
    return Light(
        azimuth=-2.2 + spread * rng.uniform(-np.pi, np.pi),
        elevation=0.85 + spread * rng.uniform(-0.3, 0.3),
        ambient=0.42 + spread * rng.uniform(-0.12, 0.12),
        cast=tuple(1.0 + spread * rng.uniform(-0.06, 0.06, 3)),
        falloff=spread * rng.uniform(0.0, 0.22),
        reflection=spread * rng.uniform(0.0, 6.28),
    )


def shade(world: Layers, light: Light) -> np.ndarray:
    """Lit colours [S, S, 3] of composed layers; a flat white surface comes out at about 1."""
    size = world.height.shape[0]
    slope = size / 4.0
    height = world.height
    across = np.empty_like(height)
    down = np.empty_like(height)
    across[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * slope
    down[1:-1] = (height[2:] - height[:-2]) * slope
    across[:, 0], across[:, -1], down[0], down[-1] = across[:, 1], across[:, -2], down[1], down[-2]
    across, down = np.clip(across, -2.5, 2.5), np.clip(down, -2.5, 2.5)
    inverse = 1.0 / np.sqrt(1.0 + across * across + down * down)
    light_x, light_y, light_z = light.vector
    diffuse = np.maximum((light_z - across * light_x - down * light_y) * inverse, 0.0) / light_z
    half = np.array([light_x, light_y, light_z + 1.0])
    half /= np.linalg.norm(half)
    facing = np.maximum((half[2] - across * half[0] - down * half[1]) * inverse, 0.0)
    highlight = facing ** (8.0 + 40.0 * world.gloss) * world.gloss
    # A made-up room for mirrors: bright and dark bands by the normal's direction.
    mirror = 0.95 + 0.45 * np.sin(3.2 * across * inverse - 2.7 * down * inverse + light.reflection)
    level = light.ambient * (0.6 + 0.4 * inverse) + (1.0 - light.ambient) * np.minimum(diffuse, 1.5)
    level = level * (1.0 + world.mirror * (mirror - 1.0))
    lit = world.albedo * level[..., None] + (0.42 * highlight)[..., None]
    if light.falloff:
        axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
        ramp = 1.0 + light.falloff * (light_x * axis[None, :] + light_y * axis[:, None])
        lit = lit * ramp[..., None]
    return lit * np.asarray(light.cast, np.float32)


def compose(front: Layers | None, back: Layers, light: Light) -> Layers:
    """`front` laid on `back`, with its soft shadow: contact occlusion and a cast shadow away from the light."""
    if front is None:
        return back
    size = back.height.shape[0]
    cover = front.coverage
    light_x, light_y, light_z = light.vector
    reach = 0.035 * size * np.cos(light.elevation) / light_z
    moved = cv2.warpAffine(
        cover, np.float32([[1, 0, -light_x * reach], [0, 1, -light_y * reach]]), (size, size)
    )
    cast = cv2.GaussianBlur(moved, (0, 0), 0.018 * size)
    contact = cv2.GaussianBlur(cover, (0, 0), 0.03 * size)
    dim = 1.0 - (1.0 - light.ambient) * 0.75 * cast - 0.3 * contact
    weight = cover[..., None]
    return Layers(
        albedo=back.albedo * dim[..., None] * (1.0 - weight) + front.albedo * weight,
        height=back.height * (1.0 - cover) + (front.height + 0.02) * cover,
        gloss=back.gloss * (1.0 - cover) + front.gloss * cover,
        mirror=back.mirror * (1.0 - cover) + front.mirror * cover,
        coverage=cover,
    )


@dataclass(frozen=True)
class Camera:
    """exposure, saturation factors, blur sigma in 1/1000 of the frame, noise standard deviation (of 0..1)."""

    exposure: float
    saturation: float
    blur: float
    noise: float


def sample_camera(rng: np.random.Generator, spread: float = 1.0) -> Camera:
    """A random camera; `spread` < 1 keeps exposure and saturation close to 1."""
    return Camera(
        1.0 + spread * rng.uniform(-0.16, 0.14),
        1.0 + spread * rng.uniform(-0.2, 0.15),
        max(0.0, rng.uniform(-3.0, 6.0)),
        rng.uniform(0.003, 0.02),
    )


def expose(lit: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Lit colours to an 8-bit RGB picture: exposure, saturation, blur, soft clipping and sensor noise."""
    size = lit.shape[0]
    gray = lit.mean(2, keepdims=True)
    picture = (gray + camera.saturation * (lit - gray)) * (0.94 * camera.exposure)
    sigma = camera.blur * size / 1000.0
    if sigma > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    picture = np.where(picture > 0.8, 0.8 + 0.2 * np.tanh((picture - 0.8) * 4.0), picture)
    noise = rng.standard_normal(lit.shape[:2], dtype=np.float32)[..., None]
    noise = noise + 0.4 * rng.standard_normal(lit.shape, dtype=np.float32)
    picture = picture + camera.noise * noise
    return np.clip(picture * 255.0 + 0.5, 0, 255).astype(np.uint8)
