"""Export a trained run, or raw CLIP, as one file: image in, anomaly map and score out, without this project.

    python -m scripts.export --run ckpt/visa --class_name bottle --dataset MVTec --out bottle.onnx
    python -m scripts.export --run ckpt/visa --text "steel bolt" --format openvino --out bolt.xml
    python -m scripts.export --run ckpt/visa --out any.onnx --anchors_of "steel bolt" bottle   # anchors as an input
    python -m scripts.export --run ckpt/visa --hub_layout hub/visa-adapter                     # safetensors, model card

Without --class_name and --text the anchors [E, 2] (and the context of a run with cross-attention) are inputs, so that
any class or prompt goes without another export; `--anchors_of` writes them for some words into an .npz beside the file.
Threshold and normalisation stay outside the graph and stand in its metadata. The file is checked against PyTorch on
batches of two sizes, relative to the map's scale, before it gets its name; the log says size and latency of both.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.photographs.calibration import THRESHOLDS, threshold_for, what_is_scored
from evaluation.photographs.command import PredictionSettings
from evaluation.photographs.request import ScoringSettings, as_in, check_ranges, groups, is_number
from evaluation.photographs.scorer import PhotographScorer, load_scorer
from evaluation.photographs.subject import Subject, subject_of_class, subject_of_text
from evaluation.scorer import AnomalyScorer
from files.atomic import copy_file, replacing, write_text
from files.command import Refusal, run_main
from files.logs import PROGRAM, open_logger
from files.normalisation import CLIP_MEAN, CLIP_STD
from model.settings import option
from run_folder.flags import parse
from run_folder.session import declare_datasets
from run_folder.settings import Settings
from scripts.export.example import example_lines
from scripts.export.formats import ENDINGS, READ, WRITE, Run, exported, require
from scripts.export.graph import Given, ImageToAnomaly
from scripts.export.hub import write_hub_layout
from utils import close_logger, setup_seed

TOLERANCE = {False: 1e-6, True: 1e-3}  # of a map's scale, float32 and --half
LATENCY_ROUNDS = 5


@dataclass(frozen=True)
class ExportSettings:
    """export"""

    run: str | None = as_in(ScoringSettings, "run")
    raw_clip: bool = as_in(ScoringSettings, "raw_clip")
    checkpoint: str | None = as_in(ScoringSettings, "checkpoint")
    loop: int | None = as_in(ScoringSettings, "loop")
    format: str = option("onnx", "of the file", choices=tuple(ENDINGS))
    out: str | None = option(None, "the file; one that is there is replaced")
    class_name: str | None = as_in(ScoringSettings, "class_name")
    text: str | None = as_in(ScoringSettings, "text")
    domain: str | None = as_in(ScoringSettings, "domain")
    anchors_of: list = option([], "write the anchors of these words beside the file", type=str, nargs="+")
    half: bool = option(False, "compute in float16: half the size, maps to 1e-3 of their scale")
    threshold: float | None = as_in(PredictionSettings, "threshold")
    calibrated: bool = as_in(PredictionSettings, "calibrated")
    hub_layout: str | None = option(
        None, "folder for safetensors, settings, metrics and a model card instead"
    )


GROUPS = groups(ExportSettings)


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse(__doc__, GROUPS, argv)
    own = settings.own
    check_flags(settings)
    declare_datasets(settings.data)
    setup_seed(settings.run.seed)
    logger = open_logger(PROGRAM)
    try:
        if own.hub_layout is not None:
            page = write_hub_layout(own.run, own.checkpoint, own.loop, Path(own.hub_layout))
            logger.info(
                f"safetensors, config.json, metrics.json and model card in {page.parent}: read {page}"
            )
            return
        subject = subject_of(settings)
        cpu = settings.change(device="cpu")  # where the file is made and checked
        scorer = load_scorer(
            own.run, checkpoint=own.checkpoint, loop=own.loop, settings=cpu, device="cpu", logger=logger
        )
        export(scorer, subject, settings, logger)
    finally:
        close_logger(logger)


def check_flags(settings: Settings) -> None:
    """Raises ValueError for flags that do not go together, Refusal for a format that is not installed."""
    own = settings.own
    if (own.run is None) != own.raw_clip:
        raise ValueError("give either --run RUN or --raw_clip: what is exported")
    if (own.out is None) == (own.hub_layout is None):
        raise ValueError("give either --out FILE or --hub_layout FOLDER: where the export goes")
    if own.hub_layout is not None:
        if own.raw_clip:
            raise ValueError("--hub_layout: raw CLIP has trained nothing that could be shared; give --run")
        return
    if own.class_name is not None and own.text is not None:
        raise ValueError(
            "--class_name and --text are two subjects: give one of them, or none for anchors as input"
        )
    is_baked = own.class_name is not None or own.text is not None
    for flag, value, needs in (
        ("threshold", own.threshold is not None, True),
        ("calibrated", own.calibrated, True),
    ):
        if value and is_baked != needs:
            raise ValueError(f"--{flag}: holds for one subject; give --class_name or --text")
    if own.anchors_of and is_baked:
        raise ValueError("--anchors_of: the anchors are baked in; leave --class_name and --text away")
    if own.calibrated and own.run is None:
        raise ValueError("--calibrated: raw CLIP has no folder; give --threshold")
    check_ranges(("threshold", own.threshold, is_number(own.threshold), "a number"))
    if Path(own.out).suffix != ENDINGS[own.format]:
        raise ValueError(
            f"--out {own.out}: expected a file ending in {ENDINGS[own.format]} for --format {own.format}"
        )
    require(own.format)


def subject_of(settings: Settings) -> Subject | None:
    """The class or the words that are baked in; None for anchors as input."""
    own = settings.own
    if own.class_name is not None:
        return subject_of_class(own.class_name, settings.data.dataset, own.domain)
    return None if own.text is None else subject_of_text(own.text, own.domain)


def export(scorer: PhotographScorer, subject: Subject | None, settings: Settings, logger: Logger) -> Path:
    """Write the file, checked, with its metadata, example and anchors; returns it."""
    own, out = settings.own, Path(settings.own.out)
    template = scorer.of(subject or subject_of_text("object", own.domain))
    given = given_of(template, subject or subject_of_text("object", own.domain))
    module = ImageToAnomaly(template, given if subject else None, own.half).eval()
    images = torch.randn(3, 3, scorer.img_size, scorer.img_size, generator=torch.Generator().manual_seed(0))
    inputs = (images,) if subject else tuple(one for one in (images, *given) if one is not None)
    about = metadata(scorer, subject, settings, template)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
        made = Path(folder) / out.name
        with torch.no_grad():
            WRITE[own.format](exported(module, inputs), inputs, made, about)
        run, read = READ[own.format](made)
        if read != about:
            raise Refusal(f"--format {own.format}: the metadata came back changed; use another format")
        reference = ImageToAnomaly(template, given if subject else None).eval()
        error = largest_error(run, reference, inputs, template.levels)
        if not error <= TOLERANCE[own.half]:
            raise Refusal(
                f"--format {own.format}: the maps differ from PyTorch's by {error:.1e} of their scale, allowed are "
                f"{TOLERANCE[own.half]:.0e}; {'leave --half away, or ' if own.half else ''}use another format"
            )
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        ours, theirs = latencies(run, reference, inputs)
        for file in Path(folder).iterdir():
            copy_file(file, out.parent / file.name)
    logger.info(f"{out}: {size / 1e6:.1f} MB, maps within {error:.1e} of their scale of PyTorch's")
    logger.info(
        f"latency of one picture {1000 * ours:.1f} ms, PyTorch {1000 * theirs:.1f} ms (medians, on this CPU)"
    )
    anchors = write_anchors(scorer, settings) if own.anchors_of else None
    if subject or anchors:
        example, lines = out.with_suffix(".example.py"), example_lines(own.format, out, anchors)
        write_text(example, lines)
        words = f" {own.anchors_of[0]!r}, by the anchors in {anchors}," if anchors else ""
        logger.info(f"python {example} PICTURE{words} scores a picture:\n{lines}")
    else:
        logger.info("anchors are an input: --anchors_of WORDS … writes some, with the lines that run them")
    return out


def given_of(scorer: AnomalyScorer, subject: Subject) -> Given:
    """A class's anchors and context. Raises Refusal where every image has anchors of its own, or sees two contexts."""
    try:
        anchors = scorer.class_anchors(subject.class_name)
    except KeyError:  # they ask for the image
        raise Refusal(
            "a run with --text_context image has other anchors for every image, which no file of one class holds; "
            "export a run of another --text_context"
        ) from None
    context = scorer.class_context(subject.class_name)
    if isinstance(context, tuple):
        raise Refusal(
            "a run with --split_text_context attends to two contexts, and an exported graph takes one; export a run "
            "without it"
        )
    return Given(anchors.detach(), context)


def metadata(
    scorer: PhotographScorer, subject: Subject | None, settings: Settings, template: AnomalyScorer
) -> dict[str, Any]:
    """What an application must know beside the graph."""
    own, threshold = settings.own, settings.own.threshold
    if own.calibrated:
        threshold = threshold_for(Path(own.run) / THRESHOLDS, what_is_scored(scorer, subject, None))
    return {
        "img_size": scorer.img_size,
        "mean": list(CLIP_MEAN),
        "std": list(CLIP_STD),
        "resize": "bicubic, antialiased (PIL), to a square; RGB / 255",
        "text": subject.text if subject else None,
        "domain": template.domain,
        "levels": template.levels,
        "threshold": threshold,
        "score": "0.5 * max(map) / (100 * levels) + 0.5 * head; anomalous from the threshold on",
        "half": own.half,
        "model": {key: value for key, value in scorer.origin.items() if key != "checkpoint"},
    }


@torch.no_grad()
def largest_error(run: Run, reference: ImageToAnomaly, inputs: tuple, levels: int) -> float:
    """Largest difference of maps (of their scale) and scores, over batches of one and three images."""
    error, scales = 0.0, (100.0 * levels, 1.0)
    for count in (1, 3):
        given = (inputs[0][:count], *inputs[1:])
        both = zip(run(*(one.numpy() for one in given)), reference(*given), scales, strict=True)
        for found, wanted, scale in both:
            error = max(error, float(np.abs(found - wanted.numpy()).max()) / scale)
    return error


def latencies(run: Run, reference: ImageToAnomaly, inputs: tuple) -> tuple[float, float]:
    """Median seconds of one image, (exported, PyTorch), in turns."""
    one = (inputs[0][:1], *inputs[1:])
    arrays, seconds = [value.numpy() for value in one], ([], [])
    with torch.no_grad():
        for _ in range(LATENCY_ROUNDS):
            for call, given, kept in ((run, arrays, seconds[0]), (reference, one, seconds[1])):
                begin = time.perf_counter()
                call(*given)
                kept.append(time.perf_counter() - begin)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def write_anchors(scorer: PhotographScorer, settings: Settings) -> Path:
    """An .npz of {words: [E, 2]} for --anchors_of, and {"words context": [S, W]} of a run that attends."""
    arrays = {}
    for words in settings.own.anchors_of:
        subject = subject_of_text(words, settings.own.domain)
        given = given_of(scorer.of(subject), subject)
        arrays[words] = given.anchors.numpy()
        if given.context is not None:
            arrays[f"{words} context"] = given.context.detach().numpy()
    file = Path(settings.own.out).with_suffix(".anchors.npz")
    with replacing(file) as opened:
        np.savez(opened, **arrays)
    return file


if __name__ == "__main__":
    run_main(main)
