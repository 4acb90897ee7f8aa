"""Finding, reading and strictly loading a CLIP weight file."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from files.atomic import sha256_of, unchanged
from files.command import Refusal
from files.digests import state_digest
from files.state_dict import nested_state, unwrapped
from files.tensors import (
    UNREADABLE,
    DamagedFile,
    TensorFile,
    load_safetensors,
    not_finite,
    read_archive,
    reading_failure,
)
from files.torchscript import is_torchscript, read_torchscript
from model.names import architecture_name, weights_name

HERE = Path(__file__).parent
LOCAL_FILES = {
    "ViT-L-14-336": HERE / "ViT-L-14-336px.pt",  # where AA-CLIP keeps OpenAI's archive
    "ViT-Tiny-8-demo": HERE / "weights" / "ViT-Tiny-8-demo.safetensors",
}
WEIGHTS_VARIABLE = "AACLIP_CLIP_WEIGHTS"
ALIGNMENT = 64  # bytes, of torch's own memory on CPUs
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # integers in OpenAI's archives
FOREIGN = {  # beginnings of names that tell other libraries' layouts
    "vision_model.": "Hugging Face's CLIPModel layout",
    "text_model.": "Hugging Face's CLIPModel layout",
    "blocks.": "timm's layout of an image tower alone",
    "trunk.": "timm's layout of an image tower alone",
    "visual.trunk.": "open_clip's layout of a timm image tower",
    "image_encoder.": "a layout with the two encoders apart, as prompt learning keeps them",
    "text_encoder.": "a layout with the two encoders apart, as prompt learning keeps them",
}


class WeightsSource(NamedTuple):
    """The file a backbone's weights were read from; `tensors` is the digest of what they are, in any kind of file."""

    file: str
    sha256: str
    tensors: str = ""


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
    model_name = architecture_name(model_name)
    local = LOCAL_FILES.get(weights_name(model_name))
    if local is not None and local.is_file():
        return local
    looked = [f"--clip_weights (not given), {WEIGHTS_VARIABLE} (not set)"] + ([str(local)] if local else [])
    from open_clip import pretrained  # here, because importing it takes two seconds

    config = pretrained.get_pretrained_cfg(model_name, tag)
    if config:
        try:
            return Path(pretrained.download_pretrained(config, cache_dir=cache_dir))
        except (OSError, RuntimeError, ValueError) as error:
            looked.append(f"open_clip's download of {tag!r} ({type(error).__name__}: {error})")
    else:
        looked.append(f"open_clip has no weights {tag!r} for {model_name}")
    raise FileNotFoundError(
        f"no weights for {model_name}. Looked at: " + "; ".join(looked) + ". Remedy: put OpenAI's archive at "
        f"{local or 'any place'}, or pass --clip_weights FILE or set {WEIGHTS_VARIABLE} to a .pt or .safetensors file, "
        "or go online once so that open_clip can fill its cache"
    )


def read_state_dict(path: Path | str) -> TensorFile:
    """Tensors of a .safetensors file, an OpenAI TorchScript archive or a plain state dict, as {name: tensor}.

    No code of the file runs, the archive's neither.

    Raises:
        DamagedFile: the file is truncated, damaged or holds something else than a state dict.
    """
    path = Path(path)
    size = path.stat().st_size
    damaged = (
        f"{path} ({size} bytes) cannot be read as CLIP weights: it is truncated, damaged or of another kind"
    )
    remedy = "; download it again, or point --clip_weights at an intact .pt or .safetensors file"
    try:
        found, digest = _content(path)
        state = nested_state(found)
        if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
            raise ValueError(f"it holds {type(state).__name__}, not a state dict")
        state = TensorFile(_one_text_tower(unwrapped(state)))
    except UNREADABLE as error:
        raise DamagedFile(f"{damaged} ({reading_failure(error)}){remedy}") from error
    for name in NOT_WEIGHTS:
        state.pop(name, None)
    state.sha256 = digest
    return state


def _content(path):
    """(what a weight file holds, SHA-256 of the bytes it was read from)."""
    if path.suffix == ".safetensors":
        state = load_safetensors(path)
        return state, state.sha256
    with unchanged(path) as file:
        digest = sha256_of(file)
        return (read_torchscript(file) if is_torchscript(file) else read_archive(file, path)), digest


def _one_text_tower(state):
    """open_clip's layout of CustomTextCLIP, whose text tower is a module `text`, as that of CLIP."""
    if "text.token_embedding.weight" not in state:
        return state
    return {name.removeprefix("text."): value for name, value in state.items()}


def foreign_layout(names: Iterable[str]) -> str | None:
    """The library whose names these are, where that is another than OpenAI's and open_clip's."""
    return next(
        (kind for begin, kind in FOREIGN.items() if any(name.startswith(begin) for name in names)), None
    )


def published_as(digest: str) -> str | None:
    """The name under which OpenAI published a file of this SHA-256; it stands in the addresses open_clip knows."""
    from open_clip import pretrained

    for model_name, tag in pretrained.list_pretrained():
        found = re.search(
            r"/([0-9a-f]{64})/([^/]+)$", pretrained.get_pretrained_cfg(model_name, tag).get("url") or ""
        )
        if found and found[1] == digest:
            return found[2]
    return None


def load_backbone_weights(model: nn.Module, path: Path | str, model_name: str) -> WeightsSource:
    """Make a weight file's tensors the weights of an open_clip CLIP, strictly, resizing the image positions (bicubic).

    Args:
        model: on the meta device, so that the file's tensors, in float32 on the CPU, are the network's only memory.

    Returns:
        what was loaded.

    Raises:
        DamagedFile: it cannot be read, or a weight is not finite.
        RuntimeError: names or shapes differ from the architecture; the message lists them.
        ValueError: somebody wrote into it meanwhile.
    """
    from open_clip.model import resize_pos_embed

    path = Path(path)
    with unchanged(path, same_name=True):
        state = read_state_dict(path)
    check_architecture(state, model, path, model_name)
    for name, value in state.items():  # one after the other: no second copy of the whole
        state[name] = _as_weight(value)
    broken = not_finite(state)
    if broken:
        raise DamagedFile(
            f"{path} holds CLIP weights that are not finite: {broken}. No image is the cause; download it again, or "
            "point --clip_weights at an intact file"
        )
    source = WeightsSource(path.name, state.sha256, state_digest(state))
    resize_pos_embed(state, model)
    model.load_state_dict(state, assign=True)
    length = model.context_length
    # The one buffer that no file holds.
    model.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
    return source


def _as_weight(value):
    """A tensor in float32, laid out as a parameter is; kernels may round otherwise on memory that is not aligned."""
    value = value.detach().float().contiguous()
    alone = value.untyped_storage().nbytes() == value.nbytes and value.data_ptr() % ALIGNMENT == 0
    return value if alone else value.clone()


def check_architecture(state: dict[str, torch.Tensor], model: nn.Module, path: Path, model_name: str) -> None:
    """Raises RuntimeError unless {name: tensor} has the model's names and shapes; the message lists what differs."""
    want = model.state_dict()
    problems = [f"{name} is missing" for name in want if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in want]
    for name in set(want) & set(state):
        got, expected = tuple(state[name].shape), tuple(want[name].shape)
        if name == "visual.positional_embedding":  # its length follows --img_size
            got, expected = got[1:], expected[1:]
        if got != expected:
            problems.append(f"{name} is {got}, {model_name} has {expected}")
    if not problems:
        return
    layout = foreign_layout(state)
    if layout:
        raise Refusal(
            f"{path} has {layout}, which is not read here: give OpenAI's archive or open_clip's file of {model_name}"
        )
    shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
    raise Refusal(f"{path} holds no weights of {model_name}: {shown}. Give the --model_name they belong to")
