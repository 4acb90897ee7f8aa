"""What rows leave open, a picture's label or the place of its defect, and who may use such rows."""

import logging
from collections.abc import Sequence

from dataset.jsonl import Sample


def labelled(samples: Sequence[Sample]) -> list[Sample]:
    """The samples whose label is known."""
    return [sample for sample in samples if sample.label is not None]


def without_place(samples: Sequence[Sample]) -> list[Sample]:
    """The anomalous samples without a mask: their defects are somewhere."""
    return [sample for sample in samples if sample.label == 1 and not sample.mask_known]


def say_what_is_unknown(samples: Sequence[Sample], dataset_name: str, logger: logging.Logger) -> None:
    """One line per kind of gap in a test set; none where everything is known."""
    unlabelled, somewhere = len(samples) - len(labelled(samples)), len(without_place(samples))
    if unlabelled:
        logger.warning(
            "%s: %d of %d images have no label: they are scored and count in no metric",
            dataset_name,
            unlabelled,
            len(samples),
        )
    if somewhere:
        logger.warning(
            "%s: %d of %d anomalous images have no mask, so where their defect is stays unknown: they count in image "
            "metrics and in no pixel metric",
            dataset_name,
            somewhere,
            sum(sample.label == 1 for sample in samples),
        )


def for_training(samples: Sequence[Sample], dataset_name: str, logger: logging.Logger) -> list[Sample]:
    """The labelled samples, with a line on what is left out and on what trains by the image loss alone.

    Raises:
        ValueError: no sample has a label.
    """
    found = labelled(samples)
    if not found:
        raise ValueError(
            f"{dataset_name}: none of {len(samples)} rows has a label: training needs label 0 or 1; test.py scores "
            "rows without"
        )
    if len(found) < len(samples):
        logger.warning(
            "%s: %d of %d images have no label: left out of training",
            dataset_name,
            len(samples) - len(found),
            len(samples),
        )
    somewhere, anomalous = len(without_place(found)), sum(sample.label for sample in found)
    if somewhere:
        logger.warning(
            "%s: %d of %d training images are anomalous without a mask: the image loss alone trains on them",
            dataset_name,
            somewhere,
            len(found),
        )
    if anomalous and somewhere == anomalous:
        logger.warning(
            "%s: no anomalous training image has a mask, so segmentation sees normal pixels alone; stage 1 has an "
            "image loss only with --text_cls_weight above 0",
            dataset_name,
        )
    return found
