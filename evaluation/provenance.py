"""What a number was computed from: hashes of files, weights, backbone, test images and prompts, and the settings."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from torch.utils.data import Dataset

from metrics import METRICS_VERSION
from model.clip import CLIP
from model.settings import MAY_CHANGE, MUST_AGREE
from run_folder.identity import prompts_identity, rows_identity, weights_digest
from run_folder.loaded_run import LoadedRun
from run_folder.settings import Settings

# Of an evaluation's own flags those that change its numbers.
AT_TEST = ("no_cross_attention", "exact_pixels", "rarity_weight", "rarity_control")


def provenance(
    settings: Settings,
    domain: str,
    test_sets: dict[str, Dataset],
    kind: str,
    *,
    run: LoadedRun | None = None,
    clip: CLIP | None = None,
) -> dict[str, Any]:
    """What stands beside every evaluation's metrics.

    Args:
        test_sets: {class name: dataset with `samples`}.
        kind: of the run.
        run: what is evaluated; None without training.
        clip: the backbone of an evaluation without a run; None where it has none.
    """
    backbone = run.model.clipmodel if run is not None else clip
    return {
        "model_name": settings.model.model_name,
        "img_size": settings.model.img_size,
        "domain": domain,
        "kind": kind,
        "settings": run.stored if run is not None else settings.record(),
        "run": run.identity.run if run is not None else None,
        "checkpoints": run.files if run is not None else {},
        "weights_sha256": weights_of(run) if run is not None else None,
        "backbone": backbone.source._asdict() if backbone is not None and backbone.source else None,
        "rows": tested_rows(test_sets.values()),
        "prompts_sha256": prompts_sha256(settings.data.dataset),
        "tested_with": flags_at_test(settings),
        "metrics_version": METRICS_VERSION,
    }


def flags_at_test(settings: Settings) -> dict[str, Any]:
    """{flag: value} of what moves an evaluation's numbers beside the files."""
    flags = [*settings.flags(at_test=MUST_AGREE), *settings.flags(at_test=MAY_CHANGE), *AT_TEST]
    record = settings.record()
    return {flag: record[flag] for flag in flags if flag in record}


def weights_of(run: LoadedRun) -> str:
    """Digest of everything a run has trained, as it stands in its model now."""
    modules = run.model.text_modules | run.model.image_modules
    return weights_digest({key: module.state_dict() for key, module in modules.items()})


def tested_rows(test_sets: Iterable[Dataset]) -> dict[str, Any]:
    """`run_folder.identity.rows_identity` of a data set's test images."""
    return rows_identity([sample for images in test_sets for sample in images.samples])


def prompts_sha256(dataset: str) -> str:
    """SHA-256 of what the anchors of a data set's classes are made of."""
    return hashlib.sha256(json.dumps(prompts_identity(dataset), sort_keys=True).encode()).hexdigest()
