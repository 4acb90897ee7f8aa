"""The demo. The studies and the tiny CLIP's pretraining have rooms of their own; `python -m scripts.evidence` and the
other names from before still run them."""

from pathlib import Path

__path__.extend(str(Path(__file__).resolve().parent.parent / room) for room in ("studies", "tiny_clip"))
