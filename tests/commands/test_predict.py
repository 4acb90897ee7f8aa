"""predict.py as a user runs it: photographs of every size in, heatmaps, scores and decisions out."""

import csv
import json

import cv2
import numpy as np
import pytest
from flag_words import words
from PIL import Image

import calibrate
import predict
import train_cross_attention
from evaluation import load_scorer
from evaluation.photographs import command, results
from evaluation.photographs.command import GROUPS
from evaluation.photographs.tiles import Tiling
from files.command import REFUSED
from model import matrix_products as products
from run_folder.flags import parse

TURNED = "por<b>trait.jpg"  # stored 60 x 40, seen 40 x 60
SIZES = {"wide.png": (90, 34), TURNED: (40, 60), "sub/small.bmp": (20, 24)}


@pytest.fixture
def photographs(tmp_path):
    """A folder of three pictures, one of them turned by its EXIF, one file that is none, and one of another ending."""
    folder, random = tmp_path / "photographs", np.random.default_rng(3)
    (folder / "sub").mkdir(parents=True)
    for name, (width, height) in SIZES.items():
        pixels = random.integers(0, 255, (height // 2, width // 2, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((width, height))
        if name == TURNED:
            exif = Image.Exif()
            exif[0x0112] = 6
            picture.transpose(Image.Transpose.ROTATE_90).save(folder / name, exif=exif, quality=95)
        else:
            picture.save(folder / name)
    (folder / "damaged.png").write_bytes((folder / "wide.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def raw(model_name, weights):
    """Flags of unadapted CLIP."""
    return words(raw_clip=True, model_name=model_name, clip_weights=weights, img_size=32)


def rows(out):
    with open(out / "scores.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores(out):
    """{file below the folder of photographs: score}"""
    return {row["file"].split("photographs/")[-1]: float(row["score"]) for row in rows(out)}


def predicted(out, *flags):
    assert predict.main([*map(str, flags), "--out", str(out)]) in (0, REFUSED)
    return scores(out)


def test_every_photograph_gets_a_score_heatmaps_of_its_size_and_a_mask(photographs, raw, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [*raw, *words(input=photographs, text="steel bolt", threshold=0.2, out=out)]
    assert predict.main(flags) == REFUSED  # one file cannot be read
    found, content = rows(out), json.loads((out / "scores.json").read_text())
    assert {row["file"] for row in found} == {str(photographs / name) for name in SIZES}
    assert [float(row["score"]) for row in found] == sorted(
        (float(row["score"]) for row in found), reverse=True
    )
    for row, stored in zip(found, content["pictures"], strict=True):
        width, height = SIZES[row["file"].split("photographs/")[-1]]
        assert (int(row["width"]), int(row["height"])) == (width, height)
        assert stored["score"] == float(row["score"]) and float(row["seconds"]) > 0
        assert row["decision"] == stored["decision"] == ("anomalous" if stored["score"] >= 0.2 else "normal")
        mask = cv2.imread(str(out / row["mask"]), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (height, width) and set(np.unique(mask)) <= {0, 255}
        for folder in ("heatmaps", "heatmaps_common_scale"):
            drawn = cv2.imread(str(out / folder / row["heatmap"].split("/")[-1]))
            assert drawn.shape[0] >= height and drawn.shape[1] > width
            assert (drawn[height:, :width] == 255).all()  # the photograph is not stretched
    assert [one["file"] for one in content["skipped"]] == [str(photographs / "damaged.png")]
    assert "take its line out" not in content["skipped"][0]["reason"]  # a picture has none
    assert not (out / results.MAPS).exists()
    shown = capsys.readouterr().out
    for words_of_log in (
        "1 left out, of ending .txt",
        "images/s",
        "ms per picture",
        "damaged.png: ",
        "(exit status 2)",
    ):
        assert words_of_log in shown


def test_the_page_is_self_contained_and_escapes_names(photographs, raw, tmp_path):
    out = tmp_path / "out"
    predicted(out, *raw, *words(input=photographs, text="a <i>bolt</i>"))
    page = (out / "index.html").read_text()
    assert "por&lt;b&gt;trait.jpg" in page and "<b>" not in page and "a &lt;i&gt;bolt" in page
    assert page.count("data:image/jpeg;base64,") == 3 * len(SIZES)
    assert 'src="http' not in page and "damaged.png" in page and "ranked, not decided" in page
    order = [page.index(f"{row['width']} × {row['height']}") for row in rows(out)]
    assert order == sorted(order)


def test_the_page_can_show_the_highest_scores_alone(photographs, raw, tmp_path):
    out = tmp_path / "out"
    predicted(out, *raw, *words(input=photographs, text="bolt", page_pictures=1))
    page = (out / "index.html").read_text()
    assert page.count('<li class="card">') == 1 and "all 3 are in scores.csv" in page
    assert len(list((out / "heatmaps").iterdir())) == 3


def test_the_library_gives_the_commands_scores_and_maps_of_the_photographs_size(photographs, raw, tmp_path):
    found = predicted(tmp_path / "out", *raw, *words(input=photographs, text="steel bolt", batch_size=1))
    scorer = load_scorer(settings=parse("", GROUPS, raw))
    for name, (width, height) in SIZES.items():
        result = scorer(photographs / name, "steel bolt")
        assert result.score == found[name] and result.text == "steel bolt"
        assert result.map.shape == (height, width) and result.map.dtype == np.float32
    other = scorer(photographs / "wide.png", "sliced bread")
    assert other.score != found["wide.png"]
    pixels = np.asarray(Image.open(photographs / "wide.png"))
    assert scorer(pixels, "steel bolt").score == found["wide.png"]  # as does an array


def test_scores_do_not_depend_on_batch_size_workers_or_the_other_pictures(photographs, raw, tmp_path):
    own = [*raw, "--text", "steel bolt"]
    alone = predicted(tmp_path / "1", *own, "--batch_size", 1, "--input", photographs)
    for number, more in enumerate((["--batch_size", 2], ["--batch_size", 5, "--workers", 2])):
        found = predicted(tmp_path / f"more{number}", *own, *more, "--input", photographs)
        assert found == pytest.approx(alone, abs=1e-5)
    one = predicted(tmp_path / "one", *own, "--input", photographs / "wide.png")
    assert one == pytest.approx({"wide.png": alone["wide.png"]}, abs=1e-5)


@pytest.mark.parametrize("text_context", ["none", "image"])
def test_a_run_with_cross_attention_and_self_reference_scores_as_test_does(
    train_loops, evaluate, cross_weights, data_root, tmp_path, text_context
):
    more = words(self_reference=0.3, self_reference_head=0.3, text_context=text_context)
    run = train_loops("run", *more, script=train_cross_attention)
    same_as_test(run, evaluate, cross_weights, data_root, tmp_path)


def test_a_feedback_run_scores_as_test_does(train_loops, evaluate, cross_weights, data_root, tmp_path):
    same_as_test(train_loops("run"), evaluate, cross_weights, data_root, tmp_path)


def same_as_test(run, evaluate, weights, data_root, tmp_path):
    evaluate(run)
    (table,) = (run / "scores" / "MVTec").glob("*.csv")
    with open(table, encoding="utf-8", newline="") as file:
        wanted = {
            row["file"]: float(row["own_score"]) for row in csv.DictReader(file) if row["class"] == "bottle"
        }
    pictures = data_root / "mvtec_ad" / "bottle" / "test"
    flags = words(run=run, clip_weights=weights, class_name="bottle", input=pictures)
    predicted(tmp_path / "out", *flags)
    found = {row["file"]: float(row["score"]) for row in rows(tmp_path / "out")}
    assert len(found) == 6
    assert found == pytest.approx({str(data_root / file): value for file, value in wanted.items()}, abs=1e-5)
    assert all(row["text"] == "dark bottle" for row in rows(tmp_path / "out"))
    free = load_scorer(run, settings=parse("", GROUPS, words(clip_weights=weights)))
    picture = next(pictures.glob("good/*"))
    assert (
        np.isfinite(free(picture, "red thing").score)
        and free(picture, "red thing").score != found[str(picture)]
    )


def test_pictures_larger_than_the_model_are_cut_into_tiles(photographs, raw, tmp_path):
    own = [*raw, *words(text="steel bolt", input=photographs)]
    whole = predicted(tmp_path / "whole", *own)
    for number, batch_size in enumerate((1, 3, 50)):
        tiled = predicted(
            tmp_path / f"tiled{number}", *own, "--tile", "--batch_size", batch_size, "--workers", 2
        )
        assert tiled["sub/small.bmp"] == pytest.approx(whole["sub/small.bmp"], abs=1e-5)
        assert abs(tiled["wide.png"] - whole["wide.png"]) > 1e-4
        scorer = load_scorer(settings=parse("", GROUPS, raw))
        result = scorer(photographs / "wide.png", "steel bolt", Tiling(32))
        assert result.score == pytest.approx(tiled["wide.png"], abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text", "bolt"], "--run RUN or --raw_clip"),
        (["--raw_clip", "--run", "x", "--text", "bolt"], "--run RUN or --raw_clip"),
        (["--raw_clip"], "--class_name NAME or --text"),
        (["--raw_clip", "--class_name", "botle"], "do you mean bottle"),
        (["--raw_clip", "--class_name", "bottle", "--dataset", "visa"], "--dataset visa: expected one of"),
        (["--raw_clip", "--text", " "], "--text ' ': expected words"),
        (["--raw_clip", "--text", "long " * 80], "tokens"),
        (["--raw_clip", "--text", "bolt", "--batch_size", "0"], "--batch_size 0: expected 1 or more"),
        (["--raw_clip", "--text", "bolt", "--threshold", "nan"], "--threshold nan: expected a number"),
        (
            ["--raw_clip", "--text", "bolt", "--tile_overlap", "0.5"],
            "--tile_overlap: does nothing without --tile",
        ),
        (["--raw_clip", "--text", "bolt", "--epoch", "3"], "--epoch: does nothing without --run"),
        (["--raw_clip", "--text", "bolt", "--input", "missing"], "--input missing: no such file"),
        (["--raw_clip", "--text", "bolt", "--device", "warp"], "--device warp"),
        (["--run", "missing", "--text", "bolt"], "no image_adapter.pth"),
    ],
)
def test_flags_and_names_are_checked_before_weights_are_looked_for(
    flags, message, photographs, tmp_path, monkeypatch
):
    monkeypatch.setattr(command, "load_scorer", None)
    given = flags if "--input" in flags else [*flags, "--input", str(photographs)]
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("(", r"\(")):
        predict.main([*given, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_written_to_and_an_earlier_prediction_is_replaced(
    photographs, raw, tmp_path
):
    own, out = [*raw, "--text", "bolt", "--input"], photographs / "out"
    with pytest.raises(ValueError, match="no earlier prediction"):
        predict.main([*own, str(photographs), "--out", str(photographs)])
    predicted(out, *own, photographs)
    found = predicted(out, *own, photographs / "*.png", photographs / "**/*.bmp")
    assert set(found) == {"wide.png", "sub/small.bmp"}  # and no heatmap of the first
    assert len(list((out / "heatmaps").iterdir())) == 2


def test_a_picture_that_is_taken_away_before_it_is_drawn_keeps_its_score(
    photographs, raw, tmp_path, monkeypatch
):
    write = command.write_tables

    def written_and_taken(*arguments):
        write(*arguments)
        (photographs / "wide.png").unlink(missing_ok=True)

    monkeypatch.setattr(command, "write_tables", written_and_taken)
    found = predicted(tmp_path / "out", *raw, *words(text="bolt", input=photographs))
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert "wide.png" in found
    assert "scored but not drawn" in next(
        one["reason"] for one in content["skipped"] if one["file"].endswith("wide.png")
    )


def test_a_calibrated_threshold_decides_as_calibration_said(
    raw, photographs, tmp_path, data_root, monkeypatch
):
    normal, file = data_root / "mvtec_ad" / "bottle" / "test" / "good", tmp_path / "thresholds.json"
    own = [*raw, *words(text="bottle", thresholds=file)]
    assert calibrate.main([*own, *words(input=normal, false_positive_rate=0.3)]) == 0  # 3 pictures allow 0.25
    stored = json.loads(file.read_text())[0]
    predicted(tmp_path / "normal", *own, "--calibrated", "--input", normal)
    assert {row["decision"] for row in rows(tmp_path / "normal")} == {"normal"}  # the rank is the highest's
    assert json.loads((tmp_path / "normal" / "scores.json").read_text())["threshold"] == stored["threshold"]
    with pytest.raises(ValueError, match="differ in tile; calibrate with the same flags"):
        predict.main([*own, *words(calibrated=True, tile=True, input=normal, out=tmp_path / "other")])
    with pytest.raises(ValueError, match="needs 19 normal pictures, got 3"):
        calibrate.main([*own, *words(input=normal)])
    with pytest.raises(ValueError, match="two thresholds"):
        predict.main([*own, *words(calibrated=True, threshold=0.1, input=normal, out=tmp_path / "other")])
    monkeypatch.setattr(command, "load_scorer", lambda *_, **__: pytest.fail("weights were looked for"))
    with pytest.raises(ValueError, match="no threshold for 'nut' .* it has 'bottle'"):
        predict.main([*own, *words(calibrated=True, text="nut", input=normal, out=tmp_path / "other")])


@pytest.mark.skipif(products.why_not("cpu") is not None, reason="this torch was built without oneDNN")
def test_products_are_chosen_as_in_test_py_and_back_afterwards(
    raw, photographs, data_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(products, "compare_products", lambda: products.Comparison(2.0, 3e-7))
    scored = []
    score_files = command.PhotographScorer.score_files

    def noted(self, *arguments, **more):
        scored.append(products.by_onednn())
        return score_files(self, *arguments, **more)

    monkeypatch.setattr(command.PhotographScorer, "score_files", noted)
    own, normal = [*raw, *words(text="bolt")], data_root / "mvtec_ad" / "bottle" / "test" / "good"
    found = predicted(tmp_path / "auto", *own, *words(input=photographs, matmul="auto"))
    assert found == pytest.approx(predicted(tmp_path / "plain", *own, "--input", photographs), abs=1e-5)
    calibration = words(input=normal, false_positive_rate=0.3, thresholds=tmp_path / "t.json", matmul="auto")
    assert calibrate.main([*own, *calibration]) == 0
    assert scored == [True, False, True] and not products.by_onednn()
    assert "matrix products by oneDNN, 2.00 times" in (tmp_path / "auto" / command.LOG).read_text()
