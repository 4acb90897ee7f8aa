"""Testing: from a loaded run to anomaly maps, image scores, metrics and pictures.

>>> from evaluation import load_scorer
>>> result = load_scorer("ckpt/visa")("photo.jpg", "steel bolt")  # result.score, result.map [H, W]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.photographs.scorer import Prediction, load_scorer

__all__ = ["Prediction", "load_scorer"]


def __getattr__(name: str) -> Any:
    """Commands that use one module of this room do not import what single photographs need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from evaluation.photographs import scorer

    return getattr(scorer, name)
