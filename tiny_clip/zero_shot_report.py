"""What the tiny CLIP knows without training: things, colours, and hardly whether they are damaged.

    python -m tiny_clip.zero_shot_report --output results/tiny_clip/report.json

Everything is measured on freshly rendered held-out combinations of name, colour, material and pattern.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from demo_world.rendering import COLOURS, Scene, render_scene, sample_scene, thing_names
from demo_world.rendering.vocabulary import DAMAGES
from files.command import run_main
from files.normalisation import CLIP_MEAN, CLIP_STD

ROOT = Path(__file__).resolve().parent.parent
NAME = "ViT-Tiny-8-demo"
THING_PROMPTS = (
    "{}",
    "a {}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up of a {}",
    "a picture of {}",
)
SOUND_PROMPTS = ("{}", "a {}", "the {}")
DAMAGED_PROMPTS = ("a damaged {}", "a broken {}", "a {} with flaw", "a {} with defect", "a {} with damage")
FRAMES = ("{}.", "a photo of {}.")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Unit image embeddings [N, E] and the N scenes the pictures show."""

    embedded: torch.Tensor
    scenes: list


class ZeroShot:
    """Image and prompt embeddings of one model at one image size."""

    def __init__(self, weights, image_size):
        """weights: safetensors of open_clip's keys; image_size in pixels, positions are resized to it."""
        import open_clip  # seconds, which --help does not wait for

        open_clip.add_model_config(ROOT / "model/model_configs")
        self.model = open_clip.create_model(NAME, pretrained=str(weights), force_image_size=image_size).eval()
        self.image_size = image_size
        self.tokenize = open_clip.get_tokenizer(NAME)

    @torch.no_grad()
    def embed_images(self, images: np.ndarray, batch: int = 64) -> torch.Tensor:
        """uint8 [N, S, S, 3] -> unit vectors [N, E]."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        parts = []
        for part in torch.from_numpy(images).split(batch):
            pixels = (part.permute(0, 3, 1, 2).float() / 255 - mean) / std
            parts.append(self.model.encode_image(pixels, normalize=True))
        return torch.cat(parts)

    @torch.no_grad()
    def embed_prompts(self, prompts: list[str]) -> torch.Tensor:
        """The unit mean [E] of the unit embeddings of several wordings of one thing."""
        from tiny_clip.towers import encode_text

        wordings = F.normalize(encode_text(self.model, self.tokenize(prompts)), dim=1)
        return F.normalize(wordings.mean(dim=0), dim=0)


def open_model(weights: Path | str, image_size: int) -> ZeroShot:
    """A ZeroShot model; raises FileNotFoundError when the weights are not there."""
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no weights {weights}: run python -m tiny_clip.pretrain, or give --weights")
    return ZeroShot(weights, image_size)


def held_out_pictures(model: ZeroShot, count: int, seed: int, damaged: bool = False) -> Pictures:
    """Pictures of `count` held-out scenes: all sound, or with `damaged` the same ones with defects taken in turn."""
    cv2.setNumThreads(1)
    images, scenes = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        scene = sample_scene(rng, held_out=True)
        scene = dataclasses.replace(scene, damage=DAMAGES[index % len(DAMAGES)] if damaged else None)
        images.append(render_scene(scene, model.image_size, rng))
        scenes.append(scene)
    return Pictures(model.embed_images(np.stack(images)), scenes)


def name_accuracy(model: ZeroShot, pictures: Pictures) -> float:
    """Share of pictures whose thing scores highest among all nameable things."""
    return float(np.mean(name_hits(model, pictures)))


def name_hits(model: ZeroShot, pictures: Pictures) -> list[bool]:
    """Whether each picture's thing scores highest among all nameable things: list of N bools."""
    names = thing_names()
    anchors = torch.stack(
        [model.embed_prompts([prompt.format(name) for prompt in THING_PROMPTS]) for name in names]
    )
    best = (pictures.embedded @ anchors.T).argmax(dim=1)
    return [names[index] == scene.name for index, scene in zip(best, pictures.scenes, strict=True)]


def mean_over_names(hits: Sequence[bool], scenes: Sequence[Scene]) -> tuple[float, int]:
    """Mean of the hit rates of the names that occur, each name counting alike; and how many names occur."""
    by_name = {}
    for hit, scene in zip(hits, scenes, strict=True):
        by_name.setdefault(scene.name, []).append(hit)
    return float(np.mean([np.mean(hits_of_name) for hits_of_name in by_name.values()])), len(by_name)


def colour_accuracy(model: ZeroShot, pictures: Pictures) -> float:
    """Share of pictures whose colour scores highest among all colours, the thing's name being given."""
    hits, colours = [], tuple(COLOURS)
    anchors = {}
    for image, scene in zip(pictures.embedded, pictures.scenes, strict=True):
        if scene.name not in anchors:
            phrases = [f"{colour} {scene.name}" for colour in colours]
            anchors[scene.name] = torch.stack(
                [
                    model.embed_prompts([prompt.format(phrase) for prompt in THING_PROMPTS])
                    for phrase in phrases
                ]
            )
        hits.append(colours[int((anchors[scene.name] @ image).argmax())] == scene.colour)
    return float(np.mean(hits))


def damage_accuracy(model: ZeroShot, sound: Pictures, damaged: Pictures) -> tuple[float, float]:
    """(accuracy of the raw decision, AUROC of its score) of damaged-or-not over twins of sound and damaged pictures.

    The score is cos(image, damaged prompts) - cos(image, sound prompts) for the thing's own name.
    """
    from sklearn.metrics import roc_auc_score

    scores = []
    anchors = {}
    for pictures in (sound, damaged):
        for image, scene in zip(pictures.embedded, pictures.scenes, strict=True):
            if scene.name not in anchors:
                ends = [
                    [frame.format(state.format(scene.name)) for state in states for frame in FRAMES]
                    for states in (DAMAGED_PROMPTS, SOUND_PROMPTS)
                ]
                anchors[scene.name] = model.embed_prompts(ends[0]) - model.embed_prompts(ends[1])
            scores.append(float(anchors[scene.name] @ image))
    labels = [0] * len(sound.scenes) + [1] * len(damaged.scenes)
    accuracy = np.mean([(score > 0) == bool(label) for score, label in zip(scores, labels, strict=True)])
    return float(accuracy), float(roc_auc_score(labels, scores))


def measure(weights: Path | str, image_size: int, count: int, seed: int) -> dict[str, float]:
    """All figures at one image size, rounded to 4 decimals."""
    model = open_model(weights, image_size)
    sound = held_out_pictures(model, count, seed)
    damaged = held_out_pictures(model, count, seed, damaged=True)
    accuracy, auroc = damage_accuracy(model, sound, damaged)
    hits = name_hits(model, sound)
    mean, shown = mean_over_names(hits, sound.scenes)
    figures = {
        "things_top1": float(np.mean(hits)),
        "things_top1_mean_over_names": mean,
        "names_shown": shown,
        "colours_top1": colour_accuracy(model, sound),
        "damaged_or_not_accuracy": accuracy,
        "damaged_or_not_auroc": auroc,
    }
    return {name: round(value, 4) for name, value in figures.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--weights", default=ROOT / f"model/weights/{NAME}.safetensors", help="of the tiny CLIP"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 128, 160], help="image sizes in pixels")
    parser.add_argument("--images", type=int, default=688, help="held-out pictures per figure")
    parser.add_argument("--seed", type=int, default=1, help="of the held-out pictures")
    parser.add_argument("--output", default=ROOT / "results/tiny_clip/report.json", help="JSON file to write")
    options = parser.parse_args(argv)
    report = {
        "command": f"python -m tiny_clip.zero_shot_report --sizes {' '.join(map(str, options.sizes))} "
        f"--images {options.images} --seed {options.seed}",
        "things": len(thing_names()),
        "colours": len(COLOURS),
        "held_out_pictures": options.images,
        "weights_bytes": Path(options.weights).stat().st_size,
        "by_image_size": {},
    }
    for size in options.sizes:
        start = time.perf_counter()
        report["by_image_size"][size] = measure(options.weights, size, options.images, options.seed)
        print(f"{size} px: {report['by_image_size'][size]} ({time.perf_counter() - start:.0f} s)", flush=True)
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
