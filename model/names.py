"""The names of CLIP architectures: OpenAI's spelling, open_clip's, and those of their weight files."""

import re

from files.nearest import do_you_mean

QUICK_GELU = "-quickgelu"  # ends open_clip's name of an architecture with OpenAI's activation


def architecture_name(name: str) -> str:
    """open_clip's name of an architecture: ViT-L-14-336 for OpenAI's ViT-L/14@336px and its file's ViT-L-14-336px."""
    if ":" in name:  # open_clip's way to name a place instead
        return name
    return re.sub(r"(?<=\d)px(?=-|$)", "", re.sub(r"[/@]", "-", name.strip().removesuffix(".pt")))


def weights_name(name: str) -> str:
    """The name under which an architecture's weights go: the same with either activation."""
    return architecture_name(name).removesuffix(QUICK_GELU)


def meant(name: str, known: list[str]) -> str:
    """A hint which of the known architectures may be meant, or ""."""
    return do_you_mean(architecture_name(name).replace("_", "-"), known)
