"""Command lines written as Python writes arguments."""


def words(**flags):
    """The words of some flags: True stands for a flag alone, a list for several words, False for nothing."""
    line = []
    for name, value in flags.items():
        if value is False:
            continue
        given = [] if value is True else value if isinstance(value, list | tuple) else [value]
        line += [f"--{name}", *map(str, given)]
    return line


def run_words(model_name, weights, data_root, save_path):
    """Command line of a run of the tiny CLIP on MVTec's layout; flags behind it win."""
    return words(
        model_name=model_name,
        clip_weights=weights,
        img_size=32,
        text_adapt_until=2,
        image_adapt_until=2,
        dataset="MVTec",
        data_root=data_root,
        save_path=save_path,
    )


# One epoch of each stage on all images.
SHORT_TRAINING = words(
    surgery_until_layer=3,
    training_mode="full_shot",
    text_epoch=1,
    image_epoch=1,
    text_batch_size=4,
    image_batch_size=4,
    text_lr=1e-3,
)
