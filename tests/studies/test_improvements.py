"""Improvements tried on halves of DemoA, and what trained cross-attention does: the two scripts of that name."""

import json

import pytest
import torch
from flag_words import words

import train
import train_cross_attention
from dataset import constants
from dataset.custom import load_dataset_config
from dataset.jsonl import write_rows
from studies import attention_shares, explain_cross_attention, improvements
from studies.arm_runs import training_command
from studies.paired_report import METRICS


def test_the_halves_share_no_class_and_leave_none_out(tmp_path):
    rows = [
        {"image_path": f"{name}/0.png", "label": 0, "class_name": name}
        for name in constants.CLASS_NAMES["DemoA"]
    ]
    write_rows(rows, tmp_path / "DemoA" / "full-shot.jsonl")
    improvements.declare_halves(tmp_path)
    assert load_dataset_config(tmp_path / improvements.CONFIG) == list(improvements.HALVES)
    first, second = (constants.CLASS_NAMES[half] for half in improvements.HALVES)
    assert not set(first) & set(second) and sorted(first + second) == sorted(constants.CLASS_NAMES["DemoA"])
    for half in improvements.HALVES:
        kept = [json.loads(line) for line in (tmp_path / f"{half}.jsonl").read_text("utf-8").splitlines()]
        assert {row["class_name"] for row in kept} == set(constants.CLASS_NAMES[half])


def test_a_run_counts_once_both_halves_have_it_with_the_classes_it_was_not_trained_on():
    def run(half, name):
        return {"metrics": {half: {"classes": {name: dict.fromkeys(METRICS, 0.5)}}}}

    even, odd = improvements.HALVES
    results = {
        even: {("baseline", 1): run(odd, "wood"), ("baseline", 2): run(odd, "wood")},
        odd: {("baseline", 1): run(even, "tiles")},
    }
    merged = improvements.both_halves(results)
    assert list(merged) == [("baseline", 1)]
    assert set(merged["baseline", 1]["metrics"]["DemoA"]["classes"]) == {"wood", "tiles"}


def test_commands_name_the_dataset_file_below_the_data():
    words = training_command("train.py", [], 1, improvements.HALVES[0], config=improvements.CONFIG)
    assert words[words.index("--dataset_config") + 1] == "DATA/halves.json"
    assert "--dataset_config" not in training_command("train.py", [], 1, "DemoA")


def test_tokens_are_told_apart_by_what_they_say():
    kinds = attention_shares.token_kinds("MVTec", "screw")
    assert kinds.count("damage") == 2 * 5  # five abnormal states in two templates, a word each
    assert kinds.count("class") == 2 * (3 + 5)


def test_a_run_is_explained(cross_flags, data_root, tmp_path):
    train.main([*cross_flags, "--save_path", str(tmp_path / "baseline")])
    train_cross_attention.main(
        [*cross_flags, "--cross_attn_heads", "4", "--save_path", str(tmp_path / "cross_seed1")]
    )
    out = tmp_path / "explanation"
    where = words(
        runs=tmp_path / "cross_seed*",
        baselines=tmp_path / "baseline",
        dataset="MVTec",
        data=data_root,
        out=out,
    )
    explain_cross_attention.main(where)
    found = json.loads(out.with_suffix(".json").read_text("utf-8"))
    run = found["cross_seed1"]
    for region in ("inside", "outside", "tokens"):
        assert sum(run["shares"][region].values()) == pytest.approx(1, abs=1e-5)
    assert set(run["metrics"]) == {"own prompts", "another class's", "a constant", "nothing"}
    moved = {"text_adapter", "text_cross_attn", "image_adapter", "image_cross_attn"}
    assert set(run["displacement"]) == moved and all(share > 0 for share in run["displacement"].values())
    assert all(0.5 < run["entropy"][stage] <= 1 + 1e-6 for stage in ("text", "image"))
    assert run["anchor cosine"] != found["baseline"]["anchor cosine"]
    text = out.with_suffix(".md").read_text("utf-8")
    assert "| nothing |" in text and "(1 of 1 runs): text_adapter 0." in text
    older = {"cross_seed0": {key: run[key] for key in ("shares", "metrics", "anchor cosine")}}
    out.with_suffix(".json").write_text(json.dumps(older), encoding="utf-8")
    explain_cross_attention.main(where)  # a run that is not here any more
    assert set(json.loads(out.with_suffix(".json").read_text("utf-8"))) == {"cross_seed0", *found}
    assert "(1 of 2 runs): text_adapter 0." in out.with_suffix(".md").read_text("utf-8")
    with pytest.raises(FileNotFoundError, match="--runs .*no_such: no such folder"):
        explain_cross_attention.main(["--runs", str(tmp_path / "no_such"), "--data", str(data_root)])


def test_attention_that_looks_at_one_token_is_counted_where_that_token_is():
    class Model:
        @staticmethod
        def attending_tokens(image):
            return torch.zeros(1, 5, 3)

        class image_cross_attn:  # noqa: N801, an attribute of the model
            @staticmethod
            def attention_map(x, tokens):
                weights = torch.zeros(1, 4, len(tokens))
                weights[:, 0, kinds.index("damage")] = 1  # the first patch looks at a damage word
                weights[:, 1:, kinds.index("class")] = 1
                return weights

    kinds = attention_shares.token_kinds("MVTec", "screw")

    class Context:
        seen = torch.zeros(len(kinds), 3)

    mask = torch.zeros(1, 4, 4)
    mask[:, :2, :2] = 1  # the first patch of four
    items = [{"image": torch.zeros(3, 4, 4), "mask": mask, "mask_known": True}]
    shares = attention_shares.attention_shares(Model, "MVTec", {"screw": items}, {"screw": Context})
    assert shares["inside"]["damage"] == 1 and shares["outside"]["class"] == 1
