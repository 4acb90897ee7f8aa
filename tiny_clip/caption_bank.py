"""The pretraining bank: rendered training images of the procedural world, each with several captions.

Pixels lie in one memory-mapped `images.npy`, captions in one JSON file per chunk. A chunk's JSON file is written after
its pixels, so an interrupted rendering goes on with the chunks that have none.
"""

import json
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from demo_world.rendering import Scene, caption, render_scene, sample_scene, vocabulary
from demo_world.rendering.captions import DAMAGE_WORDS, TEMPLATES
from files.atomic import write_text

CHUNK = 256
SHORT_CAPTIONS = 3
# Words that templates and articles use as well say nothing about a scene.
FILLING_WORDS = frozenset("a an and the of on in at with some piece top surface small".split())


@dataclass(frozen=True)
class BankPlan:
    """What a bank holds; a bank on disk is only reused for the same plan. `size` in pixels."""

    images: int
    size: int
    captions: int
    seed: int


@dataclass(frozen=True)
class Bank:
    """images [N, S, S, 3] uint8 RGB; N lists of captions, N lists of captions that name the thing and nothing else, and
    N sets of words true of the scene."""

    images: np.ndarray
    captions: list
    short_captions: list
    words: list


def open_bank(
    folder: Path | str, plan: BankPlan, processes: int, log: Callable[[str], None] = lambda line: None
) -> Bank:
    """Render what is missing of a bank in `folder` and open it.

    Raises:
        ValueError: the folder holds a bank of another plan.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, plan)
    images = folder / "images.npy"
    if not images.exists():
        shape = (plan.images, plan.size, plan.size, 3)
        np.lib.format.open_memmap(images, mode="w+", dtype=np.uint8, shape=shape).flush()
    starts = range(0, plan.images, CHUNK)
    missing = [start for start in starts if not _chunk_file(folder, start).exists()]
    for done in _render_all(folder, plan, missing, processes):
        if done % 10 == 0 or done == len(missing):
            log(f"bank: {done} of {len(missing)} missing chunks of {CHUNK} images rendered")
    records = [record for start in starts for record in json.loads(_chunk_file(folder, start).read_text())]
    return Bank(
        np.load(images, mmap_mode="r"),
        [record["captions"] for record in records],
        [record["short_captions"] for record in records],
        [frozenset(record["words"]) for record in records],
    )


def _render_all(folder, plan, missing, processes):
    """Render the missing chunks; yields how many are done. One process is this one."""
    if processes == 1:
        for done, start in enumerate(missing, 1):
            _render_chunk(folder, plan, start)
            yield done
        return
    # Spawned, not forked: a fork of a process with threads (torch, OpenCV) can inherit a lock that nobody releases.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_render_chunk, folder, plan, start) for start in missing]
        for done, job in enumerate(jobs, 1):
            job.result()
            yield done


def short_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Captions that name the thing and nothing else, as much of the web's alternative text does."""
    nouns = (scene.name, scene.name, *vocabulary.thing(scene.name).synonyms)
    captions = []
    for _ in range(SHORT_CAPTIONS):
        noun, template = nouns[rng.integers(len(nouns))], TEMPLATES[rng.integers(len(TEMPLATES))]
        bare = scene.is_surface or noun.startswith(("a ", "an ")) or rng.random() < 0.2
        article = "" if bare else "an " if noun[0] in "aeio" else "a "
        captions.append(template.format(article + noun))
    return captions


def content_words(text: str) -> frozenset[str]:
    """The words of a text that can say something about a scene."""
    return frozenset(re.findall(r"[a-z-]+|[A-Z]\b", text)) - FILLING_WORDS


def scene_words(scene: Scene) -> frozenset[str]:
    """Every content word that a true caption of the scene may use, synonyms included."""
    entry = vocabulary.thing(scene.name)
    said = [scene.name, *entry.synonyms, scene.colour, scene.material or ""]
    if scene.pattern != "plain":
        said += [scene.pattern, scene.second_colour]
    if scene.background:
        said += [
            scene.background_colour,
            "background" if scene.background == "paper" else "lying",
            scene.background,
        ]
    for mark in scene.marks:
        said += [mark.kind, mark.colour, mark.place, mark.letter]
    said += [phrase.format("") for phrase in DAMAGE_WORDS.get(scene.damage, ())]
    return content_words(" ".join(said))


def _claim(folder, plan):
    path = folder / "bank.json"
    if not path.exists():
        _write_json(path, vars(plan))
    held = json.loads(path.read_text())
    if held != vars(plan):
        raise ValueError(
            f"{folder} holds a bank of {held}, asked for {vars(plan)}: give another --cache folder"
        )


def _chunk_file(folder, start):
    return folder / f"captions_{start:07d}.json"


def _render_chunk(folder, plan, start):
    cv2.setNumThreads(1)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="r+")
    records = []
    for index in range(start, min(start + CHUNK, plan.images)):
        rng = np.random.default_rng([plan.seed, index])
        scene = sample_scene(rng)
        images[index] = render_scene(scene, plan.size, rng)
        captions = [caption(scene, rng) for _ in range(plan.captions)]
        short = short_captions(scene, np.random.default_rng([plan.seed, index, 1]))
        records.append({"captions": captions, "short_captions": short, "words": sorted(scene_words(scene))})
    images.flush()
    _write_json(_chunk_file(folder, start), records)


def _write_json(path, content):
    write_text(path, json.dumps(content))
