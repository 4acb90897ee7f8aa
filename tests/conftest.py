"""One tiny random CLIP, four images and an MVTec-layout folder: all tests run on, no network, data or GPU."""

import copy
import json
import logging
import socket
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path[:1]:
    sys.path.insert(0, str(ROOT))  # first, because the project's `test.py` has a namesake in Python's library
torch.set_num_threads(1)

from cross_attention_world import MODEL as MODEL_WITH_EQUAL_WIDTHS  # noqa: E402
from cross_attention_world import write_world  # noqa: E402
from flag_words import SHORT_TRAINING, run_words, words  # noqa: E402

MODEL = "ViT-Test-8"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 4},
}
SIZE = 32  # pixels; 16 patches
CLASSES = ("bottle", "screw")


def pytest_configure(config):
    """`-m bit_equality` replaces pyproject's `-m "not slow"`; slow tests run only where one says slow."""
    wanted = config.option.markexpr
    if wanted and "slow" not in wanted:
        config.option.markexpr = f"({wanted}) and not slow"


@pytest.fixture(autouse=True)
def no_network_and_no_users_files(monkeypatch):
    """Weights and data come from fixtures only, whatever the machine has."""

    def refuse(*args, **kwargs):
        raise OSError("tests have no network")

    for variable in ("AACLIP_CLIP_WEIGHTS", "AACLIP_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", refuse)


@pytest.fixture(autouse=True)
def deterministic_mode_ends_with_the_test():
    """`setup_seed` switches all of torch; the next test starts from the defaults."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def registries():
    """A test may declare datasets and real names: they end with it."""
    from dataset import constants

    names = ("REAL_NAMES", "CLASS_NAMES", "DOMAINS", "DATA_PATH", "METADATA_FILES")
    before = {name: copy.deepcopy(getattr(constants, name)) for name in names}
    yield
    for name, content in before.items():
        getattr(constants, name).clear()
        getattr(constants, name).update(content)


@pytest.fixture(scope="session")
def model_name(tmp_path_factory):
    """Name of the tiny architecture, known to open_clip from here on."""
    folder = tmp_path_factory.mktemp("model_configs")
    (folder / f"{MODEL}.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    open_clip.add_model_config(folder)
    return MODEL


@pytest.fixture(scope="session")
def open_clip_model(model_name):
    """open_clip's own model on the tiny CLIP's weights: random, drawn large enough that attention matters."""
    torch.manual_seed(7)
    model = open_clip.create_model(model_name)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale" and not name.endswith("ln_post.weight"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def weights(open_clip_model, tmp_path_factory):
    """Weight file of the tiny CLIP."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file({name: value.contiguous() for name, value in open_clip_model.state_dict().items()}, path)
    return path


@pytest.fixture
def new_clip(model_name, weights):
    """Function (img_size, **create_model's options) -> the tiny CLIP."""
    from model.clip import create_model

    def build(img_size=SIZE, **options):
        return create_model(model_name, img_size, "openai", clip_weights=weights, **options)

    return build


@pytest.fixture(scope="session")
def clip(model_name, weights):
    """The tiny frozen CLIP, shared: tests do not change it."""
    from model.clip import create_model

    return create_model(model_name, SIZE, "openai", clip_weights=weights)


@pytest.fixture
def adapted(clip):
    """An AdaptedCLIP with two adapters in each tower, the same first values in every test."""
    from model.adapter import AdaptedCLIP

    torch.manual_seed(3)
    return AdaptedCLIP(clip, text_adapt_until=2, image_adapt_until=2)


@pytest.fixture(scope="session")
def images():
    """Four normalised images [4, 3, 32, 32]."""
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(11))


@pytest.fixture
def batch(images):
    """A training batch of two classes, two defective and two normal images."""
    mask = torch.zeros(4, 1, SIZE, SIZE)
    mask[0, 0, 4:14, 6:20] = mask[3, 0, 20:30, 2:30] = 1
    return {
        "image": images,
        "mask": mask,
        "label": torch.tensor([1, 0, 0, 1]),
        "class_name": ["bottle", "screw", "bottle", "screw"],
        "file_name": ["a.png", "b.png", "c.png", "d.png"],
    }


@pytest.fixture
def lines():
    """A logger and the list its messages go to: (logger, messages)."""
    logger, messages = logging.getLogger("collected by a test"), []

    class Collect(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logger.handlers, logger.propagate = [Collect()], False
    logger.setLevel(logging.INFO)
    return logger, messages


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """MVTec's layout: two classes, PNG, JPG and BMP of unequal sizes, three good, three broken each."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(5)
    for class_name in CLASSES:
        folder = root / "mvtec_ad" / class_name
        for kind in ("test/good", "test/broken", "ground_truth/broken"):
            (folder / kind).mkdir(parents=True)
        for number, ending in enumerate(("png", "jpg", "bmp")):
            height, width = 40 + 8 * number, 64 - 6 * number
            for kind in ("good", "broken"):
                pixels = random.integers(60, 120, (height, width, 3), dtype=np.uint8)
                if kind == "broken":
                    mask = np.zeros((height, width), np.uint8)
                    mask[8:24, 10 + number : 30] = 255
                    pixels[mask > 0] = (220, 30, 30)
                    Image.fromarray(mask).save(folder / "ground_truth" / kind / f"{number:03}_mask.png")
                Image.fromarray(pixels).save(folder / "test" / kind / f"{number:03}.{ending}")
    return root


@pytest.fixture
def flags(model_name, weights, data_root, tmp_path):
    """Command line of a short run on the tiny CLIP; flags behind it win."""
    return run_words(model_name, weights, data_root, tmp_path / "run")


@pytest.fixture
def train_flags(flags):
    """The same for train.py: one epoch of each stage on all images."""
    return flags + SHORT_TRAINING


@pytest.fixture(scope="session")
def cross_weights(tmp_path_factory):
    """Weight file of the tiny CLIP whose joint and text widths are equal, as cross-attention needs."""
    return write_world(tmp_path_factory.mktemp("cross"))


@pytest.fixture
def cross_flags(cross_weights, data_root):
    """Command line of train_cross_attention*.py on that CLIP: one epoch of each stage, at rates that move something."""
    return words(
        model_name=MODEL_WITH_EQUAL_WIDTHS,
        clip_weights=cross_weights,
        img_size=SIZE,
        text_adapt_until=2,
        image_adapt_until=2,
        dataset="MVTec",
        data_root=data_root,
    ) + [*SHORT_TRAINING, *words(text_lr=1e-2, image_lr=1e-2)]


@pytest.fixture
def evaluate(data_root, cross_weights):
    """Function (folder of a run on that CLIP, *further flags) -> test.main's results."""
    import test

    own = words(dataset="MVTec", data_root=data_root, clip_weights=cross_weights)
    return lambda folder, *more: test.main([*own, "--save_path", str(folder), *more])
