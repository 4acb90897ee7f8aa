"""What the web page computes, without gradio: scores, decisions, heatmaps, words."""

from importlib.util import find_spec

import numpy as np
import pytest
from flag_words import words
from PIL import Image

from app import command, page, scoring
from app.scoring import Shown, Side, Threshold
from evaluation import load_scorer
from evaluation.photographs.calibration import Calibration, store, what_is_scored
from run_folder.flags import parse


@pytest.fixture(scope="module")
def side(model_name, weights, tmp_path_factory):
    """Unadapted CLIP with a file for its thresholds."""
    flags = words(raw_clip=True, model_name=model_name, clip_weights=weights, img_size=32)
    scorer = load_scorer(settings=parse("", command.GROUPS, flags))
    return Side("raw", scorer, tmp_path_factory.mktemp("side") / "thresholds.json")


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


MAP = np.array([[0.0, 1.0], [2.0, 4.0]], np.float32)
GREY = Shown("a.png", np.full((2, 2, 3), 100, np.uint8), MAP, 0.5, 0.5, 1)


def test_a_picture_gets_the_librarys_score_and_a_map_of_its_shape(side, picture):
    subject = scoring.subject_in_words("steel bolt", "Industrial")
    (found,) = scoring.score_pictures(side, [("a.png", picture)], subject)
    assert found.score == side.scorer(picture, "steel bolt").score
    assert found.map.shape == (24, 40) and found.photograph.shape == (24, 40, 3)


def test_what_cannot_be_read_is_named_and_the_rest_is_kept(tmp_path, picture):
    picture.save(tmp_path / "good.png")
    (tmp_path / "note.txt").write_text("no picture")
    pictures, refused = scoring.read_pictures([tmp_path / "good.png", tmp_path / "note.txt"])
    assert [name for name, _ in pictures] == ["good.png"]
    assert refused == ["note.txt is no picture that can be read"]
    with pytest.raises(ValueError, match="^note.txt is no picture that can be read$"):
        scoring.read_pictures([tmp_path / "note.txt"])
    with pytest.raises(ValueError, match="Drop a picture first"):
        scoring.read_pictures(None)
    with pytest.raises(ValueError, match="25 pictures are more than 24"):
        scoring.read_pictures([tmp_path / "good.png"] * 25)


def test_a_typed_threshold_comes_before_the_calibrated_one_which_holds_for_its_words_alone(side):
    bolt, nut = (scoring.subject_in_words(text, "Industrial") for text in ("bolt", "nut"))
    assert scoring.threshold_of(side, bolt, None).value is None
    store(side.thresholds, Calibration(0.25, 0.05, 20, (0, 0.1)), what_is_scored(side.scorer, bolt, None))
    assert scoring.threshold_of(side, bolt, None) == Threshold(0.25, "calibrated")
    assert scoring.threshold_of(side, bolt, 0.0) == Threshold(0.0, "typed")
    other = scoring.threshold_of(side, nut, None)
    assert other.value is None and "no threshold for 'nut'" in other.origin
    assert [scoring.decision(score, 0.25) for score in (0.24, 0.25)] == ["normal", "anomalous"]
    assert scoring.decision(0.25, None) == ""


@pytest.mark.parametrize(
    ("text", "number"), [("", None), (" ", None), (None, None), ("0", 0.0), (" 1e-1 ", 0.1)]
)
def test_an_empty_threshold_is_none_and_a_zero_is_zero(text, number):
    assert scoring.typed_number(text) == number


@pytest.mark.parametrize("text", ["high", "nan", "inf", "0,4"])
def test_a_threshold_that_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match=f"Threshold {text}: expected a number"):
        scoring.typed_number(text)


def test_opacity_and_cut_decide_where_the_photograph_shows():
    scale = scoring.common_scale([GREY])
    assert scale == (0.0, 4.0)
    assert (scoring.drawn(GREY, scale, 0.0, 0.0, None) == GREY.photograph).all()
    half = scoring.drawn(GREY, scale, 1.0, 0.5, None)
    assert (half[0] == 100).all() and (half[1] != 100).any(axis=-1).all()
    reached = scoring.drawn(GREY, scale, 0.0, 0.0, 2.0)  # (0.5 + (4 + 1) / 2) / 2 is not reached
    assert (reached == GREY.photograph).all()
    edge = scoring.drawn(GREY, scale, 0.0, 0.0, -9.0)
    assert (edge == (0, 255, 0)).all()


def test_each_word_is_left_out_once_and_adds_what_the_score_loses(side, picture):
    assert scoring.without_each_word("old steel bolt") == [
        ("old", "steel bolt"),
        ("steel", "old bolt"),
        ("bolt", "old steel"),
    ]
    assert scoring.without_each_word("bolt") == [("bolt", "object")]
    subject = scoring.subject_in_words("steel bolt", "Industrial")
    effects = scoring.word_effects(side, picture, subject)
    whole = side.scorer(picture, "steel bolt").score
    assert [one.score for one in effects] == [side.scorer(picture, text).score for text in ("bolt", "steel")]
    assert [one.adds for one in effects] == [whole - one.score for one in effects]
    with pytest.raises(ValueError, match="13 words"):
        scoring.word_effects(side, picture, subject._replace(text="a " * 13))


def test_a_model_without_cross_attention_has_no_attention_of_words_to_show(side, picture):
    subject = scoring.subject_in_words("bolt", "Industrial")
    assert scoring.words_attended(side, picture, subject) == []
    told = page.words_of_side(side, picture, subject)
    assert "the word adds" in told and "Cross-attention" not in told


def test_a_slider_draws_again_without_scoring():
    state = [([GREY], Threshold(0.5, "typed"))]
    assert page.redraw(1, None, 0.5, 0.0) == [] and page.redraw(2, None, 0.5, 0.0) == [[], []]
    ((picture, caption),) = page.redraw(1, state, 0.0, 0.0)
    assert caption == "a.png: 0.50000, anomalous" and picture.shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--run RUN or --raw_clip"),
        (["--run_b", "x"], "name the first with --run"),
        (["--run", "x", "--run_b", "y", "--raw_clip"], "are three"),
        (["--raw_clip", "--port", "0"], "--port 0: expected"),
        (["--raw_clip", "--threshold", "nan"], "--threshold nan: expected a number"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_before_anything_is_loaded(flags, message):
    with pytest.raises(ValueError, match=message):
        command.serve(parse("", command.GROUPS, flags))


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "gradio" else find_spec(name))
    with pytest.raises(ModuleNotFoundError, match="pip install -r requirements-app.txt"):
        command.serve(parse("", command.GROUPS, ["--raw_clip"]))


def test_names_that_visitors_chose_are_escaped(side):
    assert "&lt;b&gt;x.png" in page.table(("picture",), [("<b>x.png",)])
    named = Side("<i>run", side.scorer, None)
    told = page.summary(named, [GREY], Threshold(None, "no threshold for '<u>nut'"))
    assert "&lt;i&gt;run" in told and "&lt;u&gt;nut" in told and "<i>" not in told and "<u>" not in told
    assert "1 of 1 anomalous (threshold 0.5, typed)" in page.summary(named, [GREY], Threshold(0.5, "typed"))
