"""Few-shot subsets: k images per class, half of them normal, chosen by a seed."""

import random
from collections.abc import Sequence
from typing import TypeVar

Row = TypeVar("Row")


def select(rows: Sequence[Row], shot: int, seed: int) -> list[Row]:
    """ceil(shot / 2) normal and floor(shot / 2) anomalous rows per class; all rows for shot 0.

    `rows` are metadata rows (dictionaries) or Samples. The choice depends on the seed and on which rows there are,
    never on their order; classes are drawn from independently. Returned sorted by class, label and path.
    Raises ValueError if a class has fewer rows than asked for, with what every short class has.
    """
    if shot < 0:
        raise ValueError(f"--shot is {shot}: expected 0 (all images) or a positive number per class")
    if shot == 0:
        return list(rows)
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        for label in (0, 1):
            groups.setdefault((_field(row, "class_name"), label), [])
        groups[_field(row, "class_name"), int(_field(row, "label"))].append(row)
    wanted = {0: (shot + 1) // 2, 1: shot // 2}
    _require_enough(groups, wanted, shot)
    chosen = []
    for (class_name, label), group in sorted(groups.items()):
        group = sorted(group, key=lambda row: _field(row, "image_path"))
        random.Random(f"{seed}/{class_name}/{label}").shuffle(group)
        chosen += sorted(group[: wanted[label]], key=lambda row: _field(row, "image_path"))
    return chosen


def _require_enough(groups: dict[tuple[str, int], list], wanted: dict[int, int], shot: int) -> None:
    short = [
        f"{class_name} has {len(groups[class_name, 0])} normal and {len(groups[class_name, 1])} anomalous"
        for class_name in sorted({class_name for class_name, _ in groups})
        if any(len(groups[class_name, label]) < wanted[label] for label in wanted)
    ]
    if short:
        # ceil(k / 2) <= normal and floor(k / 2) <= anomalous, solved for k
        largest = min(2 * len(group) + label for (_, label), group in groups.items())
        remedy = f"use --shot {largest} or less" if largest else "write your own <k>-shot.jsonl"
        raise ValueError(
            f"--shot {shot} needs {wanted[0]} normal and {wanted[1]} anomalous images per class, "
            f"but {'; '.join(short)}: {remedy}, or all images with --shot 0 or --training_mode full_shot"
        )


def _field(row, name: str):
    return row[name] if isinstance(row, dict) else getattr(row, name)
