"""Finding, reading and strictly loading a CLIP weight file."""

import os
import zipfile
from pathlib import Path

import torch
from open_clip.model import CLIP, resize_pos_embed
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from files.tensors import UNREADABLE, reading_failure

HERE = Path(__file__).parent
LOCAL_FILES = {
    "ViT-L-14-336": HERE / "ViT-L-14-336px.pt",  # where AA-CLIP keeps OpenAI's archive
    "ViT-Tiny-8-demo": HERE / "weights" / "ViT-Tiny-8-demo.safetensors",
}
WEIGHTS_VARIABLE = "AACLIP_CLIP_WEIGHTS"
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # integers in OpenAI's archives


def find_weights(
    model_name: str,
    tag: str = "openai",
    clip_weights: Path | str | None = None,
    cache_dir: Path | str | None = None,
) -> Path:
    """The weight file of a backbone: explicit file, environment, project folder, then open_clip's download.

    A `tag` that is an existing file stands behind the two explicit ways and before the project folder.

    Raises:
        FileNotFoundError: nothing was found; says where it looked and how to get weights.
    """
    for source, value in (
        ("--clip_weights", clip_weights),
        (WEIGHTS_VARIABLE, os.environ.get(WEIGHTS_VARIABLE)),
    ):
        if value:
            if not Path(value).is_file():
                raise FileNotFoundError(
                    f"{source} names {value}, which is not a file: give a .pt or .safetensors file"
                )
            return Path(value)
    if Path(tag).is_file():
        return Path(tag)
    local = LOCAL_FILES.get(model_name)
    if local is not None and local.is_file():
        return local
    looked = [f"--clip_weights (not given), {WEIGHTS_VARIABLE} (not set)"] + ([str(local)] if local else [])
    config = get_pretrained_cfg(model_name, tag)
    if config:
        try:
            return Path(download_pretrained(config, cache_dir=cache_dir))
        except (OSError, RuntimeError, ValueError) as error:
            looked.append(f"open_clip's download of {tag!r} ({type(error).__name__}: {error})")
    else:
        looked.append(f"open_clip has no weights {tag!r} for {model_name}")
    raise FileNotFoundError(
        f"no weights for {model_name}. Looked at: " + "; ".join(looked) + ". Remedy: put OpenAI's archive at "
        f"{local or 'any place'}, or pass --clip_weights FILE or set {WEIGHTS_VARIABLE} to a .pt or .safetensors file, "
        "or go online once so that open_clip can fill its cache"
    )


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, an OpenAI TorchScript archive or a plain state dict, as {name: tensor}.

    Raises:
        RuntimeError: the file is truncated, damaged or holds something else than a state dict.
    """
    path = Path(path)
    size = path.stat().st_size
    damaged = (
        f"{path} ({size} bytes) cannot be read as CLIP weights: it is truncated, damaged or of another kind"
    )
    remedy = "; download it again, or point --clip_weights at an intact .pt or .safetensors file"
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        elif _is_torchscript(path):
            state = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *UNREADABLE) as error:
        raise RuntimeError(f"{damaged} ({reading_failure(error)}){remedy}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise RuntimeError(f"{damaged} (it holds {type(state).__name__}, not a state dict){remedy}")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in state.items() if name not in NOT_WEIGHTS}


def _is_torchscript(path):
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def load_backbone_weights(model: CLIP, path: Path | str, model_name: str) -> None:
    """Load a weight file into an open_clip CLIP, strictly, resizing the image positions (bicubic).

    Raises:
        RuntimeError: names or shapes differ from the architecture; the message lists them.
    """
    state = {name: value.float() for name, value in read_state_dict(path).items()}
    want = model.state_dict()
    problems = [f"{name} is missing" for name in want if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in want]
    for name in set(want) & set(state):
        got, expected = tuple(state[name].shape), tuple(want[name].shape)
        if name == "visual.positional_embedding":  # its length follows --img_size
            got, expected = got[1:], expected[1:]
        if got != expected:
            problems.append(f"{name} is {got}, {model_name} has {expected}")
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (
            f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        )
        raise RuntimeError(
            f"{path} holds no weights of {model_name}: {shown}. Give the --model_name they belong to"
        )
    resize_pos_embed(state, model)
    model.load_state_dict(state)
