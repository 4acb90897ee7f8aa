"""python -m scripts.export: one file that scores as PyTorch does, and a folder to share."""

import dataclasses
import json
import runpy
import sys

import numpy as np
import pytest
import torch
from cross_attention_world import MODEL as MODEL_WITH_EQUAL_WIDTHS
from flag_words import words
from PIL import Image
from safetensors.torch import load_file

from evaluation import load_scorer
from files.command import Refusal
from run_folder.settings import CROSS_ATTENTION_GROUPS
from scripts.export import __main__ as command
from scripts.export import formats
from scripts.export.hub import PRIVATE, load_hub

SIZE = 32


@pytest.fixture(scope="module")
def attending(tmp_path_factory, cross_weights, data_root):
    """A run with cross-attention and self-reference."""
    import train_cross_attention

    folder = tmp_path_factory.mktemp("attending") / "run"
    flags = words(
        model_name=MODEL_WITH_EQUAL_WIDTHS,
        clip_weights=cross_weights,
        img_size=SIZE,
        text_adapt_until=2,
        image_adapt_until=2,
        surgery_until_layer=3,
        training_mode="full_shot",
        text_epoch=1,
        image_epoch=1,
        self_reference=0.3,
        dataset="MVTec",
        data_root=data_root,
        save_path=folder,
    )
    train_cross_attention.main(flags)
    return folder


@pytest.fixture
def photograph(tmp_path):
    pixels = np.random.default_rng(4).integers(0, 255, (30, 44, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def export(out, run, weights, *more, **flags):
    command.main([*words(run=run, clip_weights=weights, out=out, **flags), *more])
    return out


def scored_by_example(out, photograph, monkeypatch, capsys, *more):
    """What the lines beside an exported file print, from whatever folder they are started."""
    monkeypatch.setattr(sys, "argv", ["example", str(photograph), *more])
    capsys.readouterr()
    runpy.run_path(str(out.with_suffix(".example.py")))
    return capsys.readouterr().out.split(maxsplit=1)


@pytest.mark.parametrize("format", ["exported_program", "onnx"])
def test_the_lines_beside_a_file_score_a_picture_as_the_run_does(
    format, attending, cross_weights, photograph, tmp_path, monkeypatch, capsys
):
    for package in formats.INSTALL.get(format, "").split():
        pytest.importorskip(package)
    out = tmp_path / "export" / f"bolt{formats.ENDINGS[format]}"
    export(out, attending, cross_weights, text="steel bolt", format=format, threshold=0.1)
    wanted = load_scorer(attending, device="cpu")(photograph, "steel bolt")
    score, decision = scored_by_example(out, photograph, monkeypatch, capsys)
    assert float(score) == pytest.approx(wanted.score, abs=1e-5)
    assert decision.strip() == ("anomalous" if wanted.score >= 0.1 else "normal")
    run, about = formats.READ[format](out)
    assert about["threshold"] == 0.1 and about["text"] == "steel bolt" and about["img_size"] == SIZE
    assert about["model"]["kind"] == "cross-attention" and str(tmp_path) not in json.dumps(about)
    assert run(np.zeros((5, 3, SIZE, SIZE), np.float32))[0].shape == (5, SIZE, SIZE)  # any batch


@pytest.mark.slow
def test_openvino_scores_as_the_run_does(attending, cross_weights, photograph, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")
    out = export(tmp_path / "bolt.xml", attending, cross_weights, text="steel bolt", format="openvino")
    wanted = load_scorer(attending, device="cpu")(photograph, "steel bolt")
    score, decision = scored_by_example(out, photograph, monkeypatch, capsys)
    assert float(score) == pytest.approx(wanted.score, abs=1e-5) and decision.strip() == "no threshold"


def test_anchors_as_an_input_serve_any_words(
    attending, cross_weights, photograph, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "any.pt2"
    more = ["--anchors_of", "steel bolt", "bottle"]
    export(out, attending, cross_weights, *more, format="exported_program")
    run, about = formats.READ["exported_program"](out)
    given = np.load(tmp_path / "any.anchors.npz")
    scorer = load_scorer(attending, device="cpu")
    from evaluation.photographs.views import Views, read_photograph

    ((_, image),) = Views([], SIZE).views_of(read_photograph(photograph))
    for text in ("steel bolt", "bottle"):
        _, (score,) = run(image[None].numpy(), given[text], given[f"{text} context"])
        assert score == pytest.approx(scorer(photograph, text).score, abs=1e-5)
        printed, _ = scored_by_example(out, photograph, monkeypatch, capsys, text)
        assert float(printed) == pytest.approx(score, abs=1e-6)
    assert about["text"] is None and about["threshold"] is None


def test_a_file_holds_the_image_side_alone(trained, weights, tmp_path):
    out = export(
        tmp_path / "a.pt2", trained, weights, class_name="bottle", dataset="MVTec", format="exported_program"
    )
    names = set(torch.export.load(out).state_dict)
    assert names and not any("text" in name or "token_embedding" in name for name in names)
    assert any("image_adapter" in name for name in names)


@pytest.mark.slow
def test_half_is_half_the_size_and_within_a_thousandth(trained, weights, tmp_path):
    flags = {"text": "bolt", "format": "exported_program"}
    whole = export(tmp_path / "a.pt2", trained, weights, **flags)
    half = export(tmp_path / "b.pt2", trained, weights, half=True, **flags)
    kinds = {
        value.dtype for value in torch.export.load(half).state_dict.values() if value.is_floating_point()
    }
    assert torch.float16 in kinds and half.stat().st_size < whole.stat().st_size
    assert formats.READ["exported_program"](half)[1]["half"] is True


def test_a_file_that_differs_from_pytorch_never_gets_its_name(trained, weights, tmp_path, monkeypatch):
    read = formats.read_exported_program

    def shifted(path):
        run, about = read(path)
        return lambda *arrays: tuple(one + 0.01 for one in run(*arrays)), about

    monkeypatch.setitem(formats.READ, "exported_program", shifted)
    with pytest.raises(Refusal, match="differ from PyTorch's by .* allowed are 1e-06"):
        export(tmp_path / "a.pt2", trained, weights, text="bolt", format="exported_program")
    assert list(tmp_path.glob("*.pt2")) == [] and list(tmp_path.glob(".export*")) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"out": "a.onnx"}, "give either --run RUN or --raw_clip"),
        ({"run": "x"}, "give either --out FILE or --hub_layout FOLDER"),
        ({"run": "x", "out": "a.pt2"}, r"--out a.pt2: expected a file ending in .onnx"),
        ({"run": "x", "out": "a.onnx", "threshold": 1}, "--threshold: holds for one subject"),
        ({"raw_clip": True, "out": "a.onnx", "text": "b", "calibrated": True}, "raw CLIP has no folder"),
        ({"raw_clip": True, "hub_layout": "hub"}, "raw CLIP has trained nothing"),
        ({"run": "x", "out": "a.onnx", "text": "b", "class_name": "c"}, "two subjects"),
        ({"run": "x", "out": "a.onnx", "text": "b", "anchors_of": ["c"]}, "the anchors are baked in"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        command.main(words(**flags))


def test_a_format_that_is_not_installed_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(formats.INSTALL, "openvino", "no_such_package")
    with pytest.raises(Refusal, match="needs no_such_package: pip install"):
        command.main(words(run="x", out="a.xml", format="openvino"))


def test_a_shared_adapter_scores_as_its_run_and_says_what_it_is(
    attending, cross_weights, photograph, tmp_path
):
    metrics = {"VisA": {"image_adapter_cross_attn.pth": {"classes": {"a": {"images": 3, "pixel_ap": 0.5}}}}}
    run = tmp_path / "run"
    run.mkdir()
    for file in attending.glob("*.pth"):
        (run / file.name).write_bytes(file.read_bytes())
    files = load_scorer(run, device="cpu").origin["files"]
    entry = metrics["VisA"]["image_adapter_cross_attn.pth"]
    entry |= {"mean": {}, "img_size": SIZE, "metrics_version": 1, "checkpoints": files}
    entry["classes"]["b"] = {"images": 4, "pixel_ap": 0.7}
    metrics["Old"] = {
        "image_adapter_cross_attn.pth": entry | {"checkpoints": {}}
    }  # of other files of that name
    metrics["Begun"] = {"image_adapter_cross_attn.pth": entry | {"unfinished": ["c"]}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    command.main(words(run=run, clip_weights=cross_weights, hub_layout=tmp_path / "hub"))
    shared = load_hub(tmp_path / "hub", cross_weights)
    ours, theirs = (one(photograph, "steel bolt") for one in (shared, load_scorer(run, device="cpu")))
    assert ours.score == pytest.approx(theirs.score, abs=1e-6)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "hub").iterdir()} == {0o644}  # to be shared
    card = (tmp_path / "hub" / "README.md").read_text()
    assert (
        "| pixel_ap | 60.0 [-67.1, 187.1] |" in card
        and "(2 classes, 7 images)" in card
        and "**Old**" not in card
        and "**Begun**" not in card
    )
    assert "cross-attention adapter" in card and "trained on MVTec" in card
    everything = card + (tmp_path / "hub" / "config.json").read_text()
    assert str(tmp_path) not in everything and any(
        "text" in name for name in load_file(tmp_path / "hub/adapter.safetensors")
    )
    (tmp_path / "hub" / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match="holds mine.txt"):
        command.main(words(run=run, clip_weights=cross_weights, hub_layout=tmp_path / "hub"))


def test_no_setting_that_can_be_a_path_is_shared():
    free = {
        one.name
        for group in CROSS_ATTENTION_GROUPS.values()
        for one in dataclasses.fields(group)
        if one.type in (str, str | None) and "choices" not in one.metadata["argparse"]
    }
    assert free - set(PRIVATE) == {"model_name", "dataset"}
