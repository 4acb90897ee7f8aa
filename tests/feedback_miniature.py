"""The smallest feedback run that has every kind of loop, and how two of its checkpoints are compared."""

import torch
from flag_words import words

from run_folder.kinds import FEEDBACK

KEYS = (*FEEDBACK.text_keys, *FEEDBACK.image_keys)
MINIATURE = words(  # three loops of one epoch, two text stages have two
    loop1_text_epoch=2,
    loop2_text_epoch=2,
    loop3_text_epoch=1,
    loop1_image_epoch=1,
    loop2_image_epoch=1,
    loop3_image_epoch=1,
)
# Checkpoint files a miniature writes: twice 2 + 1 + 1 + 1, then 1 + 1 + 1 + 1, and final_model.pth.
WRITES = 15


def same(ours, theirs, keys=KEYS):
    """Whether two checkpoints hold the same bits under some keys."""
    return all(torch.equal(ours[key][name], value) for key in keys for name, value in theirs[key].items())
