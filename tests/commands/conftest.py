"""Short runs that several files of this folder look at."""

import shutil

import pytest
from cross_attention_world import MODEL
from feedback_miniature import MINIATURE
from flag_words import SHORT_TRAINING, run_words, words


@pytest.fixture
def run(tmp_path):
    """The folder the flags name."""
    return tmp_path / "run"


@pytest.fixture(scope="session")
def trained(tmp_path_factory, model_name, weights, data_root):
    """A run of one text and two image epochs, trained once; tests copy what they change."""
    import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    flags = run_words(model_name, weights, data_root, folder)
    train.main([*flags, *SHORT_TRAINING, "--image_epoch", "2"])
    return folder


@pytest.fixture
def trained_copy(trained, run):
    """The same run where the flags name it."""
    shutil.copytree(trained, run)
    return run


@pytest.fixture
def train_loops(cross_flags, tmp_path, monkeypatch):
    """Function (name, *further flags) -> folder of a trained miniature, or of another script's run."""
    import train_cross_attention_feedback
    from training import feedback

    # tests/training/test_feedback_recipes.py draws one.
    monkeypatch.setattr(feedback, "draw_curves", lambda path, loops: None)
    batches = words(text_batch_size=6, image_batch_size=6, cross_attn_heads=4)

    def train(name, *more, script=train_cross_attention_feedback):
        shape = MINIATURE if script is train_cross_attention_feedback else []
        script.main([*cross_flags, *batches, *shape, "--save_path", str(tmp_path / name), *more])
        return tmp_path / name

    return train


@pytest.fixture
def gradient_flags(cross_weights, data_root):
    """Command line of test_stage2_gradients.py, the run to be measured left out."""
    return words(
        model_name=MODEL,
        clip_weights=cross_weights,
        img_size=32,
        text_adapt_until=2,
        image_adapt_until=2,
        cross_attn_heads=4,
        dataset="MVTec",
        data_root=data_root,
        batch_size=4,
    )
