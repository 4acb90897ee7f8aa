"""The name from before of `files.pictures`, for scripts that import it."""

from files.names import picture_names, safe_name
from files.pictures import heatmap, outline, overlay, sheet, to_picture, visualize, write_png

__all__ = [
    "heatmap",
    "outline",
    "overlay",
    "picture_names",
    "safe_name",
    "sheet",
    "to_picture",
    "visualize",
    "write_png",
]
