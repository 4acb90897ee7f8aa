"""`python -m synthesis.sample` as a user types it, and the pictures it draws."""

import runpy
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from PIL import Image
from semantic_fill_world import flags, tiny_system, triptychs, write_folders, write_model_folder

from synthesis import sample, train_semantic_fill
from synthesis.attention import SemanticCrossAttention, places
from synthesis.attention_pictures import most_changed
from synthesis.injection import semantic_injection
from synthesis.latents import diptych_mask, diptych_of, fill_mask_of
from synthesis.sample_run import SHEET_CELL
from synthesis.sampling import Filler
from synthesis.semantic_maps import canny_map, luminance_map
from synthesis.sheets import fitted, titled_sheet


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("triptychs"), triptychs(3))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """{mode: folder} of runs of one step."""
    folder = tmp_path_factory.mktemp("runs")
    for mode in ("cross_attention", "fusion"):
        train_semantic_fill.main(flags(data, folder / mode, 1, "--semantic_mode", mode, "--lr", "0.1"))
    return {mode: folder / mode for mode in ("cross_attention", "fusion")}


@pytest.fixture
def command(data, runs, tmp_path):
    """Runs the command on the first triptych; returns the folder of its output."""

    def run(*more, visible=data / "visible/000.png", out="result.png", mode="cross_attention"):
        own = ["--checkpoint", str(runs[mode]), "--visible", str(visible), "--out", str(tmp_path / out)]
        sample.main([*own, "--steps", "2", "--device", "cpu", *map(str, more)])
        return tmp_path

    return run


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_it_is_typed_as_a_module(runs, data, tmp_path, monkeypatch):
    words = f"synthesis.sample --checkpoint {runs['cross_attention']} --visible {data}/visible/000.png"
    words += f" --semantic {data}/semantic/000.png --out {tmp_path}/a.png --steps 1 --device cpu"
    monkeypatch.setattr(sys, "argv", words.split())
    monkeypatch.delitem(sys.modules, "synthesis.sample")
    runpy.run_module("synthesis.sample", run_name="__main__", alter_sys=True)
    assert Image.open(tmp_path / "a.png").size == (32, 32)
    assert (tmp_path / "a_sheet.png").is_file()


def test_one_picture_gets_a_result_of_its_own_size_and_a_sheet_with_a_column_for_the_target(
    command, data, tmp_path
):
    wide = tmp_path / "wide.png"
    Image.open(data / "visible/000.png").resize((60, 40)).save(wide)
    semantic = ("--semantic", data / "semantic/000.png")
    out = command(*semantic, visible=wide)
    assert Image.open(out / "result.png").size == (60, 40)
    narrow = Image.open(out / "result_sheet.png").size
    command(*semantic, "--target", data / "target/000.png", visible=wide)
    column = SHEET_CELL + 8
    assert narrow[0] == 8 + 3 * column and Image.open(out / "result_sheet.png").width == 8 + 4 * column


def test_folders_are_paired_by_stem_and_a_result_depends_on_its_own_picture_alone(command, data):
    folders = ("--semantic", data / "semantic", "--target", data / "target")
    out = command(*folders, visible=data / "visible", out="all") / "all"
    assert sorted(path.name for path in out.iterdir()) == [
        "000.png",
        "001.png",
        "002.png",
        "contact_sheet.png",
    ]
    command("--semantic", data / "semantic/001.png", visible=data / "visible/001.png", out="one.png")
    assert np.array_equal(pixels(out / "001.png"), pixels(out.parent / "one.png"))


@pytest.mark.parametrize("kind", [("canny",), ("luminance",), ("mask", "MASK")])
def test_a_map_can_be_made_from_the_picture_or_a_mask(command, data, kind):
    mask = data / "semantic/000.png"
    out = command("--semantic_map", *(str(mask) if word == "MASK" else word for word in kind))
    assert Image.open(out / "result.png").size == (32, 32)
    sheet = pixels(out / "result_sheet.png")
    shown = sheet[50 : 50 + SHEET_CELL, 8 + 264 : 8 + 264 + SHEET_CELL]  # second column
    if kind[0] == "mask":
        command("--semantic", mask, out="given.png")
        assert np.array_equal(pixels(out / "given.png"), pixels(out / "result.png"))
    elif kind[0] == "luminance":
        assert shown.std(axis=-1).max() == 0 and 20 < shown[128, 128, 0] < 240
    else:
        assert shown.max() == 0  # a plain ground has no edges


def test_edges_are_white_on_black_and_brightness_grey():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, 16:] = 255
    edges = np.asarray(canny_map(Image.fromarray(picture)))
    assert edges[8:24, 14:18].max() == 255 and edges[:, :12].max() == 0
    assert np.asarray(luminance_map(Image.fromarray(picture)))[0, 20].tolist() == [255, 255, 255]


def test_the_attention_is_drawn_for_cross_attention_and_refused_for_fusion(command, data, tmp_path):
    semantic = ("--semantic", data / "semantic/000.png", "--attention_out", tmp_path / "looks.png")
    out = command(*semantic)
    drawn = pixels(out / "looks.png")
    assert drawn.shape[1] == 8 + 11 * (160 + 8)  # who looks, the map, all heads and eight heads
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20
    with pytest.raises(ValueError, match="--semantic_mode fusion: there is no attention to draw"):
        command(*semantic, mode="fusion")
    command("--semantic", data / "semantic/000.png", mode="fusion")


def test_the_drawn_weights_are_those_of_the_forward():
    torch.manual_seed(3)
    layer = SemanticCrossAttention(layout="source")
    layer.scale.data.fill_(0.7)
    tokens, semantic = torch.randn(2, 8, 64), torch.randn(2, 4, 64)
    where = places(2, 2, panels=2), places(2, 2)
    weights = layer.weights(tokens, semantic, *where)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 8, 8), atol=1e-6)
    seen = weights @ layer._split(layer.value(layer.norm_semantic(semantic)))
    expected = tokens + 0.7 * layer.out(seen.transpose(1, 2).flatten(2))
    assert torch.allclose(layer(tokens, semantic, *where), expected, atol=1e-5)


def test_the_example_tokens_are_the_most_changed_and_lie_apart():
    change = torch.zeros(8, 8)
    change[1, 1], change[1, 2], change[6, 6] = 3, 2, 1
    assert most_changed(change) == [(1, 1), (6, 6)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "give either --semantic FILE or --semantic_map"),
        (("--semantic", "S", "--semantic_map", "canny"), "give either"),
        (("--semantic_map", "mask"), "--semantic_map mask: expected canny, luminance, or mask FILE"),
        (("--semantic_map", "edges"), "--semantic_map edges: expected"),
        (("--semantic", "no.png"), "--semantic no.png: no such file"),
        (("--semantic", "D"), "is a folder and --visible .* a file"),
        (("--semantic", "S", "--out", "x.txt"), "--out x.txt: expected a file that ends in"),
        (("--semantic", "S", "--out", "S"), "would be overwritten"),
        (("--semantic", "S", "--steps", "0"), "--steps 0"),
        (("--semantic", "S", "--size", "40"), "multiple of 16"),
    ],
)
def test_flags_that_do_not_fit_are_refused_with_a_remedy(command, data, more, message):
    stand_for = {"S": str(data / "semantic/000.png"), "D": str(data / "semantic")}
    before = pixels(data / "semantic/000.png")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        command(*(stand_for.get(word, word) for word in more))
    assert np.array_equal(pixels(data / "semantic/000.png"), before)


def test_a_picture_without_partner_is_named(command, data, tmp_path):
    (tmp_path / "few").mkdir()
    Image.open(data / "semantic/000.png").save(tmp_path / "few/000.png")
    with pytest.raises(FileNotFoundError, match="no picture of stem '001'"):
        command("--semantic", tmp_path / "few", visible=data / "visible", out="all")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["tiny", "folder"])
def test_a_sample_is_the_unmodified_pipelines_bit_for_bit(dtype, model, tmp_path):
    """With a codec that draws noise too (a folder's), so that the order of the draws counts."""
    name = "tiny" if model == "tiny" else str(write_model_folder(tmp_path))
    system, data = tiny_system(dtype=dtype, model=name, scale=0.5), triptychs(2)
    filler, mask = Filler(system, "a defect"), fill_mask_of(data["semantic"], "semantic")
    ours = filler.fill(data["visible"], data["semantic"], mask, seeds=[3, 4], steps=3)
    encoded = filler.start(data["visible"], data["semantic"], mask, None, [3, 4]).encoded
    prompt, filler.pipeline._progress_bar_config = system.prompts.batch(["a defect"] * 2), {"disable": True}
    places_of_both = encoded.token_places, encoded.semantic_places
    with (
        torch.no_grad(),
        semantic_injection(system.backbone.transformer, system.attention, encoded.semantic, *places_of_both),
    ):
        theirs = filler.pipeline(
            image=(diptych_of(data["visible"], data["visible"]) + 1) / 2,
            mask_image=diptych_mask(mask.float()),
            height=32,
            width=64,
            num_inference_steps=3,
            guidance_scale=system.backbone.sampling_guidance,
            prompt_embeds=prompt.tokens,
            pooled_prompt_embeds=prompt.pooled,
            generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
            output_type="pt",
        ).images
    assert torch.equal(ours, theirs[..., 32:].float() * 2 - 1)


def test_a_map_in_a_sheet_stays_black_and_white():
    mask = np.zeros((20, 20, 3), np.uint8)
    mask[5:9, 5:9] = 255
    assert set(np.unique(fitted(mask, 64))) == {0, 255}


def test_a_sheet_has_its_words_and_shortens_what_is_too_long():
    cell = fitted(np.full((20, 40, 3), 7, np.uint8), 64)
    assert cell[32, 32].tolist() == [7, 7, 7] and cell[2, 2].tolist() == [255, 255, 255]
    short, long = (titled_sheet(("one", "two"), [(name, [cell, None])]) for name in ("a", "a" * 300))
    assert short.shape == long.shape == (28 + 22 + 72, 8 + 2 * 72, 3)
    assert short[:28].min() < 100 and (long[28:50, -8:] == 255).all()
