"""What checkpoints and modules hold, for tests that compare them."""

import hashlib
import json

import torch


def state(folder, file):
    """The content of a checkpoint."""
    return torch.load(folder / file, weights_only=True)


def digest(module):
    """One hash of all weights of a module."""
    content = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        content.update(name.encode() + value.contiguous().numpy().tobytes())
    return content.hexdigest()


def states(folder, *names):
    """Adapter weights of checkpoint files: {file: {tensor name: tensor}}."""
    adapters = {name: "image_adapter" if name.startswith("image") else "text_adapter" for name in names}
    return {name: state(folder, name)[adapter] for name, adapter in adapters.items()}


def assert_equal(one, other):
    """That two results of `states` hold the same bits."""
    for file, tensors in one.items():
        for name, value in tensors.items():
            assert torch.equal(value, other[file][name]), f"{file}: {name}"


def read(run, name):
    """The text of one of a run's files."""
    return (run / name).read_text(encoding="utf-8")


def history(run):
    """(entries of the text stage, of the image stage) of a run without feedback."""
    (loop,) = json.loads(read(run, "history.json"))["loops"]
    assert loop["loop"] == 1 and set(loop) == {"loop", "text", "image"}
    return loop["text"], loop["image"]
