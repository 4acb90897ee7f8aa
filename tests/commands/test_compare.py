"""compare.py as a user runs it: two seeds of a baseline and of a changed copy, on the tiny CLIP."""

import csv
import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flag_words import SHORT_TRAINING, run_words, words
from PIL import Image

import compare
import test as test_script
import train
from comparison import evaluations
from comparison.arms import read_arm, read_run
from comparison.evaluations import evaluate_missing, outdated
from comparison.hypotheses import Hypothesis
from comparison.paired import compare_arms
from comparison.replicates import METRICS
from evaluation import provenance
from evaluation.scores import read_about, read_scores, scores_file
from metrics import with_old_names

BAD = "<script>alert(1)"
GOOD_ONLY = "a_b & 50% $x$ | c"


@pytest.fixture(scope="module")
def world(tmp_path_factory, model_name, weights, data_root):
    """Folder with base_1, base_2 and loud_1, loud_2: runs of two seeds, and the same with noisy image adapters."""
    root = tmp_path_factory.mktemp("world")
    for seed in (1, 2):
        own = run_words(model_name, weights, data_root, root / f"base_{seed}")
        own += words(seed=seed, text_lr=1e-5)
        batches = words(text_batch_size=6, image_batch_size=6)
        train.main([*SHORT_TRAINING, *own, *batches])
        shutil.copytree(root / f"base_{seed}", root / f"loud_{seed}")
        shake(root / f"loud_{seed}" / "image_adapter.pth")
    rows = []
    for class_name, folder in ((BAD, "bottle"), (GOOD_ONLY, "screw")):
        rows += [
            {"image_path": f"{folder}/test/good/{file}", "label": 0, "class_name": class_name}
            for file in ("000.png", "001.jpg", "002.bmp")
        ]
        if class_name == BAD:
            rows += [
                {
                    "image_path": f"{folder}/test/broken/{name}",
                    "label": 1,
                    "class_name": class_name,
                    "mask_path": f"{folder}/ground_truth/broken/{name[:3]}_mask.png",
                }
                for name in ("000.png", "001.jpg", "002.bmp")
            ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = {
        "Odd_Set": {
            "path": "mvtec_ad",
            "domain": "Industrial",
            "metadata": str(root / "rows.jsonl"),
            "classes": {BAD: "bottle", GOOD_ONLY: "screw"},
        }
    }
    (root / "own.json").write_text(json.dumps(own), encoding="utf-8")
    return root


def shake(file):
    """Add noise to an image adapter's weights."""
    content = torch.load(file, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for value in content["image_adapter"].values():
        value += 0.3 * torch.randn(value.shape, generator=generator)
    del content["digests"]  # of the weights before
    torch.save(content, file)


ODD_ARM = "<b>a_b</b> & 50% #1|x"


@pytest.fixture(scope="module")
def compare_flags(world, data_root, weights):
    """Function (arms, out, *flags) -> command line against both seeds of the baseline on MVTec."""

    def build(arms, out, *flags, datasets=("MVTec",)):
        return [
            "--baseline",
            f"base={world}/base_*",
            "--runs",
            *arms,
            "--datasets",
            *datasets,
            "--data_root",
            str(data_root),
            "--replicates",
            "100",
            "--out",
            str(out),
            *flags,
            "--",
            "--clip_weights",
            str(weights),
        ]

    return build


@pytest.fixture(scope="module")
def compared(world, compare_flags, tmp_path_factory):
    """(result, output folder) of the baseline against itself and against the noisy runs, on MVTec and Odd_Set."""
    out = tmp_path_factory.mktemp("out")
    arms = [f"same={world}/base_*", f"{ODD_ARM}={world}/loud_2,{world}/loud_1"]
    flags = compare_flags(
        arms, out, "--dataset_config", str(world / "own.json"), datasets=("MVTec", "Odd_Set")
    )
    return compare.main(flags), out


def read(compared, ending):
    return (compared[1] / ending).read_text(encoding="utf-8")


def classes_of(run, dataset="MVTec"):
    """Metrics of every class in a run's metrics.json."""
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))[dataset]["image_adapter.pth"][
        "classes"
    ]


def test_a_run_compared_with_itself_differs_by_exactly_zero_with_p_one(compared):
    same, loud = (compared[0]["MVTec"]["arms"][name] for name in ("same", ODD_ARM))
    assert same["seeds"] == [1, 2]
    for metric in METRICS:
        row = same["metrics"][metric]
        assert (row["value"], row["low"], row["high"], row["p"], row["p_holm"]) == (0, 0, 0, 1, 1), metric
        assert (row["wins"], row["ties"], row["losses"]) == (0, 4, 0)
    assert any(row["value"] != 0 and row["low"] < row["high"] for row in loud["metrics"].values())


def test_values_and_differences_are_those_of_metrics_json_paired_by_seed(compared, world):
    row = compared[0]["MVTec"]["arms"][ODD_ARM]["metrics"]["pixel_ap"]
    base, loud = (
        np.array(
            [
                [classes_of(world / f"{arm}_{seed}")[name]["pixel_ap"] for seed in (1, 2)]
                for name in ("bottle", "screw")
            ]
        )
        for arm in ("base", "loud")
    )
    assert row["baseline"] == pytest.approx(base.mean(), abs=1e-15)
    assert row["value"] == pytest.approx((loud - base).mean(), abs=1e-15)
    assert [pair["difference"] for pair in row["pairs"]] == pytest.approx((loud - base).reshape(-1).tolist())
    assert row["classes"]["screw"]["arm"] == pytest.approx(loud[1].mean(), abs=1e-15)


def test_only_missing_and_outdated_evaluations_are_made(compared, world, tmp_path, monkeypatch):
    shutil.copytree(world / "base_1", tmp_path / "run")
    run, flags = read_run(tmp_path / "run"), ["--flag"]
    shutil.rmtree(tmp_path / "run" / "scores" / "Odd_Set")
    evaluated, told = [], []
    monkeypatch.setattr("comparison.evaluations.evaluate_run", lambda words: evaluated.append(words))
    monkeypatch.setattr("comparison.evaluations.parse", lambda about, groups, words, defaults: words)
    evaluate_missing([run], ["MVTec", "Odd_Set"], flags, told.append)
    assert len(evaluated) == 1 and evaluated[0][-1] == "--flag" and "not evaluated yet" in told[0]
    assert evaluated[0][evaluated[0].index("--dataset") + 1] == "Odd_Set"
    assert outdated(run, "MVTec") is None
    monkeypatch.setattr("comparison.evaluations.METRICS_VERSION", 2)
    assert outdated(run, "MVTec") == "evaluated with version 1 of the metrics, this is 2"
    monkeypatch.undo()
    about = read_about(scores_file(tmp_path / "run", "MVTec", run.checkpoint))
    about["tested_with"]["surgery_attention"] = "spatial"
    monkeypatch.setattr("comparison.evaluations.read_about", lambda path: about)
    assert (
        outdated(run, "MVTec") == "an ablation: tested with --surgery_attention spatial, trained with batch"
    )
    monkeypatch.undo()
    shake(tmp_path / "run" / "image_adapter.pth")
    assert outdated(run, "MVTec") == "image_adapter.pth is another file than the evaluated one"


def test_a_test_set_is_fingerprinted_once_for_all_runs(compared, world, data_root, monkeypatch):
    runs, asked = read_arm(f"base={world}/base_*").runs, []

    def counted(images):
        asked.append(1)
        return provenance.tested_rows(images)

    monkeypatch.setattr("comparison.evaluations.tested_rows", counted)
    told = []
    evaluate_missing(runs, ["MVTec"], ["--data_root", str(data_root)], told.append)
    assert len(runs) > 1 and asked == [1] and told == []


def test_a_folder_kept_without_checkpoints_is_compared_by_its_evaluations(compared, world, tmp_path):
    shutil.copytree(world / "loud_1", tmp_path / "kept", ignore=shutil.ignore_patterns("*.pth"))
    baseline, kept = read_arm(f"base={world}/base_*"), read_arm(f"{tmp_path}/kept")
    found = compare_arms(
        baseline, [kept], ["MVTec"], hypotheses=[Hypothesis("*", "pixel_ap")], replicates=100, seed=0
    )
    assert found["MVTec"]["arms"]["kept"]["seeds"] == [1] and found["MVTec"]["arms"]["kept"][
        "unpaired_seeds"
    ] == [2]
    with pytest.raises(FileNotFoundError, match="kept holds evaluations but no checkpoint"):
        evaluate_missing(kept.runs, ["VisA"], [], print)


def test_raw_clip_has_no_seed_and_goes_with_every_run(
    compared, world, compare_flags, tmp_path, model_name, weights, data_root
):
    own = words(
        raw_clip=True,
        model_name=model_name,
        clip_weights=weights,
        img_size=32,
        dataset="MVTec",
        data_root=data_root,
        save_path=tmp_path / "raw",
    )
    test_script.main(own)
    shutil.rmtree(tmp_path / "raw" / "scores")  # as if evaluated before there were scores
    flags = compare_flags([str(tmp_path / "raw")], tmp_path / "out", "--references", f"floor={tmp_path}/raw")
    found = compare.main(flags)
    assert found["MVTec"]["arms"]["raw"]["seeds"] == [1, 2]
    assert found["MVTec"]["abouts"]["raw"][0]["checkpoint"] == "raw_clip"
    assert list(found["MVTec"]["arms"]) == ["raw"]  # a reference is not tested
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r'<tr class="(reference|baseline|arm)"><td>(\w+)', page)
    assert rows == [("reference", "floor"), ("baseline", "base"), ("arm", "raw")]
    shown = {name: re.findall(rf"<td>{name}.*?</tr>", page)[0] for name in ("floor", "raw")}
    values = [re.findall(r"\d+\.\d\d(?=<br>)", line) for line in shown.values()]
    assert len(values[0]) == 2 and values[0] == values[1]


def test_runs_tested_at_other_sizes_or_on_other_files_are_refused_with_the_reason(
    compared, world, compare_flags, tmp_path, data_root, weights
):
    shutil.copytree(world / "base_1", tmp_path / "larger")
    test_script.main(
        [
            "--save_path",
            str(tmp_path / "larger"),
            "--dataset",
            "MVTec",
            "--data_root",
            str(data_root),
            "--clip_weights",
            str(weights),
            "--img_size",
            "40",
        ]
    )
    with pytest.raises(ValueError, match="img_size is 32 there and 40 here"):
        compare.main(compare_flags([f"{tmp_path}/larger"], tmp_path / "out"))
    shutil.copytree(data_root, tmp_path / "data")
    bottle = tmp_path / "data" / "mvtec_ad" / "bottle" / "test"
    shutil.copy(bottle / "good" / "000.png", bottle / "broken" / "000.png")
    shutil.copytree(world / "base_1", tmp_path / "edited")
    test_script.main(
        [
            "--save_path",
            str(tmp_path / "edited"),
            "--dataset",
            "MVTec",
            "--data_root",
            str(tmp_path / "data"),
            "--clip_weights",
            str(weights),
        ]
    )
    with pytest.raises(ValueError, match=r"other test files in class bottle: .*000.png \(other content\)"):
        compare.main(compare_flags([f"{tmp_path}/edited"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("older", [False, True])
def test_changed_images_masks_or_rows_are_evaluated_again(
    compared, world, compare_flags, tmp_path, data_root, monkeypatch, older
):
    """Both arms were evaluated on what the images were before; scores of older versions know whole contents alone."""
    shutil.copytree(data_root, tmp_path / "data")
    for name in ("base_1", "loud_1"):
        shutil.copytree(world / name, tmp_path / name)
    if older:
        read = evaluations.read_about
        monkeypatch.setattr(
            evaluations,
            "read_about",
            lambda path: {key: value for key, value in read(path).items() if key != "rows"},
        )
    flags = compare_flags([f"{tmp_path}/loud_1"], tmp_path / "out", "--data_root", str(tmp_path / "data"))
    flags[1] = f"base={tmp_path}/base_1"
    evaluated = []
    evaluate = evaluations.evaluate_run
    monkeypatch.setattr(evaluations, "evaluate_run", lambda given: evaluated.append(given) or evaluate(given))
    compare.main(flags)
    assert not evaluated
    mask = tmp_path / "data" / "mvtec_ad" / "bottle" / "ground_truth" / "broken" / "000_mask.png"
    Image.open(mask).transpose(Image.Transpose.ROTATE_180).save(mask)
    compare.main(flags)
    assert len(evaluated) == 2


def test_kept_evaluations_of_other_images_are_refused(compared, world, tmp_path, data_root):
    shutil.copytree(data_root, tmp_path / "data")
    shutil.copytree(world / "loud_1", tmp_path / "kept", ignore=shutil.ignore_patterns("*.pth"))
    kept, flags = read_arm(f"{tmp_path}/kept"), ["--data_root", str(tmp_path / "data")]
    evaluate_missing(kept.runs, ["MVTec"], flags, print)
    image = tmp_path / "data" / "mvtec_ad" / "bottle" / "test" / "good" / "000.png"
    shutil.copy(image.with_name("001.jpg"), image)
    with pytest.raises(
        FileNotFoundError, match="no checkpoint, .*other contents of images.*put the checkpoint"
    ):
        evaluate_missing(kept.runs, ["MVTec"], flags, print)
    image.unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint, .*rows: 12 there, 11"):
        evaluate_missing(kept.runs, ["MVTec"], flags, print)


def test_one_label_classes_are_null_and_left_out_of_means(compared):
    stored = json.loads(read(compared, "comparison.json"))["datasets"]["Odd_Set"]["arms"][ODD_ARM]
    row = stored["metrics"]["image_ap"]
    assert row["classes"][GOOD_ONLY]["value"] is None and row["classes"][GOOD_ONLY]["baseline"] is None
    assert row["value"] == row["classes"][BAD]["value"] and row["ties"] + row["wins"] + row["losses"] == 2
    lines = list(csv.DictReader(io.StringIO(read(compared, "comparison.csv"))))
    odd = [line for line in lines if line["class"] == GOOD_ONLY and line["metric"] == "image_ap"]
    assert len(odd) == 2 and all(line["value"] == line["baseline"] == line["low"] == "" for line in odd)


def test_csv_and_json_carry_full_precision(compared):
    stored = json.loads(read(compared, "comparison.json"))["datasets"]["MVTec"]["arms"][ODD_ARM]
    rows = csv.DictReader(io.StringIO(read(compared, "comparison.csv")))
    lines = {
        (row["class"], row["metric"]): row
        for row in rows
        if (row["arm"], row["dataset"]) == (ODD_ARM, "MVTec")
    }
    assert len(lines) == 3 * len(METRICS)
    for metric, row in compared[0]["MVTec"]["arms"][ODD_ARM]["metrics"].items():
        assert (
            stored["metrics"][metric]["low"] == row["low"]
            and stored["metrics"][metric]["p_holm"] == row["p_holm"]
        )
        for key, column in (("value", "value"), ("arm", "arm_value"), ("high", "high"), ("p", "p")):
            assert float(lines["mean", metric][column]) == row[key]
        assert float(lines["bottle", metric]["value"]) == row["classes"]["bottle"]["value"]


def test_the_page_is_self_contained_and_everything_the_user_named_is_escaped(compared):
    page = read(compared, "report.html")
    assert "<script" not in page and "<b>" not in page
    assert "&lt;script&gt;alert(1)" in page and "&lt;b&gt;a_b&lt;/b&gt; &amp; 50% #1|x" in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert all(
        source.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for source in sources
    )
    assert sum(source.startswith("data:image/png") for source in sources) >= 2 * 5  # a grid for both datasets
    assert not re.search(r'(?:href|action)="|url\(|@import', page)
    assert page.index('class="headline"') < page.index("<strong>Note.</strong>") < page.index("<h2>Verdicts")
    assert "above 100 % of normal</figcaption>" in page and "Image ROC curves on MVTec" in page
    assert "img-src data:" in page and "This table scrolls sideways" in page
    for text in (
        "Worst misses",
        "Verdicts",
        "Settings that differ",
        "Learning curves",
        "Where the heatmaps disagree most",
    ):
        assert f"{text}<" in page
    # Two files of six runs, counting the baseline's twice, and the rows of two datasets.
    assert len(re.findall(r"\b[0-9a-f]{64}\b", page)) == 14


def test_latex_and_markdown_escape_names(compared):
    tex, text = read(compared, "comparison.tex"), read(compared, "comparison.md")
    assert r"Odd\_Set" in tex
    assert r"\textless{}b\textgreater{}a\_b\textless{}/b\textgreater{} \& 50\% \#1\textbar{}x" in tex
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 2 * 3
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [3] + 6 * [5]
    assert r"Odd\_Set" in text and r"&lt;b&gt;a\_b&lt;/b&gt; &amp; 50% \#1\|x" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {9}


def test_scores_hold_what_the_metrics_were_computed_from(compared, world):
    classes, about = read_scores(scores_file(world / "base_1", "MVTec", "image_adapter.pth"))
    one = classes["bottle"]
    assert list(one.files) == sorted(one.files) and len(one.files) == 6
    assert one.positive.sum() + one.negative.sum() == 6 * 32 * 32
    assert one.overlap.sum() == pytest.approx(one.regions.sum()) and one.regions.sum() == 3
    stored = {name: with_old_names(row) for name, row in about["classes"].items()}
    assert stored == classes_of(world / "base_1")
    assert set(about["checkpoints"]) == {"image_adapter.pth", "text_adapter.pth"}


def test_arms_that_share_a_name_and_too_few_replicates_are_refused(compare_flags, world, tmp_path):
    with pytest.raises(ValueError, match="two arms are called loud: give them names"):
        compare.main(compare_flags([f"loud={world}/loud_1", f"loud={world}/loud_2"], tmp_path))
    with pytest.raises(ValueError, match="--replicates 10: "):
        compare.main(compare_flags([f"{world}/loud_1"], tmp_path, "--replicates", "10"))


def test_without_its_images_a_comparison_has_no_grid_and_says_so(compared, world, tmp_path):
    notes, arms = [], (read_arm(f"base={world}/base_*"), [read_arm(f"{world}/loud_1")])
    assert compare.galleries_of({"MVTec": {"img_size": 32}}, *arms, str(tmp_path), notes) == {}
    assert notes[0].startswith("No image grid of MVTec, its images are not here: ")


def test_images_that_are_not_the_evaluated_ones_are_not_drawn(compared, world, data_root, tmp_path):
    shutil.copytree(data_root / "mvtec_ad", tmp_path / "mvtec_ad")
    for file in tmp_path.glob("mvtec_ad/*/test/good/000.png"):
        shutil.copy(file.parents[1] / "broken" / "000.png", file)
    for file in tmp_path.glob("mvtec_ad/*/test/*/00[12].*"):
        file.unlink()
    arms = (read_arm(f"base={world}/base_*"), [read_arm(f"{world}/loud_1")])
    with pytest.raises(ValueError, match="is not the image the runs were evaluated on"):
        compare.galleries_of({"MVTec": {"img_size": 32}}, *arms, str(tmp_path), [])


def test_the_notes_name_training_sets_few_seeds_and_arms_that_took_more_steps():
    def about(**settings):
        return {"settings": settings, "checkpoints": {"a.pth": "0"}}

    abouts = {
        "base": [about(dataset="A")],
        "on": [about(dataset="A", load_base_text_adapter="x")],
        "seen": [about(dataset="B")],
    }
    compared = {
        "on": {"seeds": [1, 2], "unpaired_seeds": [3]},
        "seen": {"seeds": [1, 2], "unpaired_seeds": []},
    }
    baseline, *arms = (SimpleNamespace(name=name) for name in abouts)
    notes = compare.notes_on({"B": {"abouts": abouts, "arms": compared}}, baseline, arms)
    assert [note.split(":")[0] for note in notes] == [
        "seen was trained on B",
        "on went on from a baseline's checkpoints",
        "Seeds [3] of on or base have no partner and are left out.",
        "With fewer than 3 seeds the intervals say nothing about other training seeds.",
    ]
