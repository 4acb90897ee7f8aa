"""A FLUX.1-Fill model in a folder is data: nothing in it may choose code to import, and no pipe may stop a reader."""

import json
from pathlib import Path

from files.given import require_regular

LIBRARIES = ("diffusers", "transformers")  # whose classes a model_index.json may name
INDEX = "model_index.json"


def check_model_folder(model: Path | str) -> None:
    """Look through a model's folder before a library reads it; a hub id, which is no folder, passes.

    diffusers imports whatever module model_index.json names for a part. Links are as the hub's cache makes them.

    Raises:
        FileNotFoundError, ValueError: something in it is neither folder nor regular file, or model_index.json is no
            JSON object, or names a part of another library than diffusers and transformers.
    """
    folder = Path(model)
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            require_regular(path, "--model")
    index = folder / INDEX
    if not index.is_file():
        return  # the library says what is missing
    try:
        parts = dict(json.loads(index.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{index} is no JSON object ({error}): copy the model again") from error
    for name, part in parts.items():
        library = part[0] if isinstance(part, list) and part else None
        if library is not None and library not in LIBRARIES:
            raise ValueError(
                f"{index}: {name} is of {library!r}, which would be imported: expected a part of "
                f"{' or '.join(LIBRARIES)}; take another copy of the model"
            )
