"""Arms, pairing, refusals, differing settings, verdict sentences, curves: the parts of comparison/ without a model."""

import json
import re

import pytest

from comparison import arms as arms_module
from comparison.arms import Arm, Run, pair, read_arm
from comparison.comparable import differing_settings, reasons
from comparison.figures import plain, read_losses
from comparison.tables import cells, escape_latex, escape_markdown, percent, verdict_text
from run_folder.settings import DEVIATIONS

FILES = {"x": (["a.png", "b.png"], ["1", "2"])}


def about(**changes):
    """What a scores file says of a baseline run."""
    found = {
        "img_size": 32,
        "domain": "Industrial",
        "metrics_version": 1,
        "checkpoint": "image_adapter.pth",
        "kind": "baseline",
        "settings": {"seed": 1, "image_lr": 0.1, "head_temperature": 1.0, "save_path": "p"},
        "tested_with": {"quick_gelu": False, "img_size": 32},
    }
    return found | changes


def settings(**changes):
    return {"settings": about()["settings"] | changes}


def test_equal_evaluations_and_other_training_may_be_compared():
    assert reasons(FILES, about(), FILES, about(**settings(seed=2, image_lr=0.5))) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"img_size": 64}, "img_size is 32 there and 64 here"),
        ({"metrics_version": 2}, "metrics_version is 1 there and 2"),
        ({"domain": "Medical"}, "domain is Industrial there and Medical here"),
        (settings(head_temperature=100.0), "known deviation --head_temperature is 1.0 there and 100.0 here"),
        ({"tested_with": {"quick_gelu": True}}, r"known deviation --quick_gelu \(at test\) is False there"),
    ],
)
def test_other_sizes_metrics_and_deviations_are_reasons_to_refuse(changes, reason):
    (found,) = reasons(FILES, about(), FILES, about(**changes))
    assert re.search(reason, found)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"x": (["a.png", "c.png"], ["1", "2"])}, "b.png (in one of them only), c.png (in one of them only)"),
        ({"x": (["a.png", "b.png"], ["1", "9"])}, "class x: b.png (other content)"),
        ({"y": FILES["x"]}, "other classes: ['x', 'y']"),
    ],
)
def test_other_test_files_are_reasons_to_refuse(other, reason):
    (found,) = reasons(FILES, about(), other, about())
    assert reason in found


def test_a_file_of_aa_clip_without_settings_has_all_its_deviations():
    assert reasons(FILES, about(settings=None), FILES, about()) == []
    assert len(reasons(FILES, about(settings=None), FILES, about(**settings(text_cls_weight=1.0)))) == 1


def test_milestones_are_a_feedback_runs_recipe_and_a_deviation_elsewhere():
    kept, corrected = DEVIATIONS["milestones"]
    base, other = about(**settings(milestones=kept)), settings(milestones=corrected)
    assert reasons(FILES, base, FILES, about(kind="feedback", **other)) == []
    assert len(reasons(FILES, base, FILES, about(kind="cross-attention", **other))) == 1


def test_raw_clip_has_no_deviation_but_the_activation():
    raw = about(checkpoint="raw_clip", **settings(head_temperature=100.0))
    assert reasons(FILES, about(), FILES, raw) == []


def test_settings_that_differ_are_listed_once_per_arm_without_paths_and_seeds():
    found = differing_settings(
        {
            "base": [about(), about(**settings(seed=2, save_path="q"))],
            "new": [
                about(kind="feedback", **settings(image_lr=0.5, recipe="v2")),
                about(**settings(image_lr=0.7)),
            ],
        }
    )
    assert found == {
        "image_lr": {"base": [0.1], "new": [0.5, 0.7]},
        "kind of run": {"base": ["baseline"], "new": ["feedback", "baseline"]},
        "recipe": {"base": [None], "new": ["v2", None]},
    }


def run(seed, folder="f"):
    return Run(folder, "image_adapter.pth", None, "baseline", seed, None)


def test_runs_are_paired_by_seed_and_the_others_are_named():
    pairs, alone = pair(Arm("base", [run(1), run(2), run(3)]), Arm("new", [run(4), run(3), run(1)]))
    assert [(seed, one.seed, other.seed) for seed, one, other in pairs] == [(1, 1, 1), (3, 3, 3)]
    assert alone == [4, 2]


def test_a_single_run_without_seed_goes_with_every_run_of_the_other_side():
    several, one = Arm("several", [run(1), run(2)]), Arm("one", [run(None)])
    assert (
        [seed for seed, *_ in pair(several, one)[0]] == [seed for seed, *_ in pair(one, several)[0]] == [1, 2]
    )
    assert pair(one, one)[0][0][0] is None


def test_arms_without_a_common_seed_are_refused():
    with pytest.raises(ValueError, match=r"arm new has the seeds \[2\] and the baseline \[1\]"):
        pair(Arm("base", [run(1)]), Arm("new", [run(2)]))


def test_an_arm_is_named_or_called_as_its_path_and_lists_and_patterns_are_opened(tmp_path, monkeypatch):
    for name in ("cross_seed1", "cross_seed2", "a=b,c"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(arms_module, "read_run", lambda path: run(path.name, path))
    assert read_arm(f"{tmp_path}/cross_seed*").name == "cross_seed"
    named = read_arm(f"my arm={tmp_path}/cross_seed2,{tmp_path}/cross_seed1")
    assert (named.name, [one.seed for one in named.runs]) == ("my arm", ["cross_seed2", "cross_seed1"])
    assert [one.seed for one in read_arm(f"{tmp_path}/a=b,c").runs] == ["a=b,c"]
    with pytest.raises(FileNotFoundError, match="no run .*/missing"):
        read_arm(f"{tmp_path}/missing")
    with pytest.raises(ValueError, match="seed cross_seed1 occurs twice"):
        read_arm(f"{tmp_path}/cross_seed*,{tmp_path}/cross_seed1")


def test_losses_come_from_history_json_and_from_no_log(tmp_path):
    (tmp_path / "train.log").write_text("t INFO training text epoch 0:\nt INFO loss: 2.5\n", encoding="utf-8")
    assert read_losses(tmp_path) == {"text": [], "image": []}
    loops = [{"text": [{"loss": 3.0}], "image": [{"loss": 2.0}]}, {"text": [{"loss": 1.0}], "image": []}]
    (tmp_path / "history.json").write_text(json.dumps({"loops": loops}), encoding="utf-8")
    assert read_losses(tmp_path) == {"text": [3.0, 1.0], "image": [2.0]}
    assert read_losses(tmp_path / "nowhere") == {"text": [], "image": []}


ROW = {
    "baseline": 0.5,
    "arm": 0.525,
    "value": 0.025,
    "low": 0.01,
    "high": 0.04,
    "p": 0.001,
    "p_holm": 0.002,
    "hypotheses": 2,
    "smallest_p": 0.0001,
    "p_images": None,
    "detectable": 0.03,
    "wins": 3,
    "ties": 1,
    "losses": 0,
    "verdict": "helps",
}


def test_a_verdict_says_its_word_its_interval_and_why_not_more():
    assert verdict_text("pixel_ap", ROW) == (
        "pixel AP: helps, +2.50 points, 95 % interval [+1.00, +4.00], p 0.002 after Holm over 2"
        "; a true 3.00 points would be found in 4 of 5 such studies"
    )
    unclear = ROW | {"verdict": "not shown", "p_holm": 0.5}
    assert "the corrected p does not confirm it" in verdict_text("pixel_ap", unclear)
    assert "p alone" in verdict_text("pixel_ap", ROW | {"verdict": "not shown", "low": -0.01})
    assert "undefined" in verdict_text("pixel_ap", ROW | {"value": None})
    assert "no difference beyond the margin" in verdict_text("pixel_ap", ROW | {"verdict": "equivalent"})


def test_what_few_classes_cannot_decide_says_what_would_and_what_single_images_say():
    few = ROW | {
        "verdict": "undecidable",
        "p_holm": 1.0,
        "smallest_p": 0.25,
        "p_images": 0.002,
        "detectable": None,
    }
    assert verdict_text("pixel_ap", few) == (
        "pixel AP: undecidable with these classes, +2.50 points, 95 % interval [+1.00, +4.00], "
        "p 1.000 after Holm over 2"
        ": 0.25 is the smallest p of so few classes; 7 classes could decide 2 hypotheses"
        "; these runs on these images only: p 0.002"
    )
    many = few | {"smallest_p": 2 / 2**8, "hypotheses": 12}
    assert "9 classes could decide 12 hypotheses, or these classes 6 hypotheses" in verdict_text(
        "pixel_ap", many
    )


def test_numbers_are_in_percent_with_a_dash_for_undefined():
    assert cells("pixel_ap", ROW)[1:] == [
        "50.00",
        "52.50",
        "+2.50",
        "[+1.00, +4.00]",
        "0.001",
        "0.002",
        "3/1/0",
    ]
    assert percent(None) == "–"


def test_special_characters_are_escaped_for_latex_markdown_and_figures():
    assert (
        escape_latex("a_b\\{~}^<")
        == r"a\_b\textbackslash{}\{\textasciitilde{}\}\textasciicircum{}\textless{}"
    )
    assert escape_markdown("<i>*a*|b\n#") == r"&lt;i&gt;\*a\*\|b \#"
    assert plain("$x$") == r"\$x\$"
