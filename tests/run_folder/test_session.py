"""What a command starts from: run_folder/session.py."""

import logging
import re

import pytest

from run_folder.flags import settings_of
from run_folder.session import create_backbone
from run_folder.settings import BASELINE_GROUPS


@pytest.mark.parametrize(
    ("img_size", "said"),
    [
        (
            31,
            "--img_size 31 is not a multiple of the backbone's 8-pixel patches: the last 7 rows.* 24 and 32",
        ),
        (33, "the last 1 rows .* 32 and 40"),
        (32, None),
    ],
)
def test_an_image_size_of_no_whole_number_of_patches_is_said_with_the_nearest_sizes(img_size, said, caplog):
    settings = settings_of(BASELINE_GROUPS, {"model_name": "ViT-Tiny-8-demo", "img_size": img_size})
    create_backbone(settings, "cpu", logging.getLogger("test"))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (said is not None)
    if said:
        assert re.search(said, warnings[0])
