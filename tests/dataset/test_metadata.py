"""Metadata rows, few-shot choice and the user's own datasets: dataset.jsonl, paths, few_shot, custom, constants."""

import json
import logging
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dataset import constants, get_dataset
from dataset.custom import load_dataset_config, load_real_names, register_dataset
from dataset.few_shot import select
from dataset.image_files import read_pair
from dataset.jsonl import PROBLEMS_SHOWN, read_rows, write_rows
from forward_utils import class_prompts
from model.tokenizer import tokenize

NORMAL = {"image_path": "bottle/test/good/000.png", "label": 0, "class_name": "bottle"}
BROKEN = {
    "image_path": "bottle/test/broken/000.png",
    "label": 1,
    "class_name": "bottle",
    "mask_path": "bottle/ground_truth/broken/000_mask.png",
}


@pytest.fixture
def root(tmp_path):
    for path in (NORMAL["image_path"], BROKEN["image_path"], BROKEN["mask_path"]):
        path = tmp_path / "data" / "mvtec_ad" / path
        path.parent.mkdir(parents=True)
        Image.new("L", (6, 5), 255).save(path)
    return tmp_path / "data"


def load(root, *lines):
    """Every sample of a metadata file with these lines (text, or rows to be written as JSON)."""
    path = root / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return get_dataset("MVTec", 8, "full_shot", 0, "train", data_root=root, meta_path=path)[0].samples


def test_a_row_becomes_a_sample_with_paths_name_and_source(root):
    normal, broken = load(root, NORMAL, "", BROKEN)
    assert (normal.label, normal.class_name, normal.mask_path) == (0, "bottle", None)
    assert normal.image_path == str(root / "mvtec_ad" / NORMAL["image_path"])
    assert broken.mask_path == str(root / "mvtec_ad" / BROKEN["mask_path"])
    assert broken.file_name == "mvtec_ad/bottle/test/broken/000.png"
    assert broken.source == f"{root / 'rows.jsonl'}:3"


def test_labels_may_be_floats_and_paths_relative_to_the_data_root_or_absolute(root):
    from_root = {**NORMAL, "label": 0.0, "image_path": "mvtec_ad/" + NORMAL["image_path"]}
    absolute = {**BROKEN, "label": 1.0, "image_path": str(root / "mvtec_ad" / BROKEN["image_path"])}
    samples = load(root, from_root, absolute)
    assert [(sample.label, type(sample.label)) for sample in samples] == [(0, int), (1, int)]
    assert [sample.file_name for sample in samples] == [
        "mvtec_ad/bottle/test/good/000.png",
        "mvtec_ad/bottle/test/broken/000.png",
    ]


def test_a_path_is_read_relative_to_the_datasets_folder_before_the_data_root(root):
    shadow = root / NORMAL["image_path"]
    shadow.parent.mkdir(parents=True)
    Image.new("L", (3, 3)).save(shadow)
    assert load(root, NORMAL)[0].image_path == str(root / "mvtec_ad" / NORMAL["image_path"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"image_path": ', r"not JSON \(.*\): expected one object a line"),
        ('{"a": ' * 100_000, "not JSON"),
        ("[1, 2]", r"expected a JSON object, got \[1, 2\]"),
        ({key: value for key, value in NORMAL.items() if key != "image_path"}, "key 'image_path' is missing"),
        ({key: value for key, value in NORMAL.items() if key != "class_name"}, "key 'class_name' is missing"),
        ({**NORMAL, "label": 2}, r"label is 2: expected the number 0 \(normal\) or 1 \(anomalous\)"),
        ({**NORMAL, "label": "1"}, "label is '1': expected the number"),
        ({**NORMAL, "label": 0.5}, "label is 0.5: expected the number"),
        ({**NORMAL, "label": float("nan")}, "label is nan: expected the number"),
        ({**NORMAL, "label": True}, "label is True: expected the number"),
        ({**NORMAL, "image_path": 7}, "image_path is 7: expected a path"),
        ({**NORMAL, "image_path": ""}, "image_path is '': expected a path"),
        ({**NORMAL, "image_path": "a\0b"}, "image_path is .*: expected a path"),
        ({**NORMAL, "image_path": "\ud800.png"}, "image_path is .*: expected a path"),
        ({**NORMAL, "class_name": "jar"}, "class_name is 'jar': the dataset's classes are bottle, cable"),
        ({**NORMAL, "class_name": ["bottle"]}, r"class_name is \['bottle'\]"),
        ({**BROKEN, "label": None}, "mask_path is given but label is missing: add label 1"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_field_and_remedy(root, line, expected):
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: {expected}"):
        load(root, NORMAL, line)


@pytest.mark.parametrize("field", ["image_path", "mask_path"])
def test_a_missing_file_is_refused_with_both_places_looked_at(root, field):
    with pytest.raises(FileNotFoundError) as error:
        load(root, {**BROKEN, field: "bottle/gone.png"})
    message = str(error.value)
    assert f"rows.jsonl:1: {field} 'bottle/gone.png'" in message and "--data_root" in message
    assert str(root / "mvtec_ad" / "bottle/gone.png") in message and str(root / "bottle/gone.png") in message


@pytest.mark.parametrize("field", ["image_path", "mask_path"])
@pytest.mark.parametrize("way", ["dots", "absolute", "link"])
def test_a_path_outside_the_data_root_is_refused(root, field, way):
    outside = root.parent / "outside.png"
    Image.new("L", (6, 5)).save(outside)
    link = root / "mvtec_ad" / "link.png"
    link.symlink_to(outside)
    path = {"dots": "../../outside.png", "absolute": str(outside), "link": "link.png"}[way]
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: {field} .* outside the data root .*--data_root"):
        load(root, {**BROKEN, field: path})


def test_a_path_outside_the_data_root_is_refused_whether_or_not_a_file_is_there(root):
    with pytest.raises(ValueError, match="outside the data root"):
        load(root, {**NORMAL, "image_path": "/nowhere/at/all.png"})


def test_dots_that_stay_under_the_data_root_are_allowed(root):
    assert load(root, {**NORMAL, "image_path": "bottle/../bottle/test/good/000.png"})[0].file_name == (
        "mvtec_ad/bottle/test/good/000.png"
    )


def test_the_datasets_folder_may_be_a_link_to_another_disk(root):
    disk = root.parent / "disk"
    (root / "mvtec_ad").rename(disk)
    (root / "mvtec_ad").symlink_to(disk)
    absolute = {**BROKEN, "image_path": str(disk / BROKEN["image_path"])}
    assert [sample.file_name for sample in load(root, NORMAL, absolute)] == [
        "mvtec_ad/bottle/test/good/000.png",
        "mvtec_ad/bottle/test/broken/000.png",
    ]
    with pytest.raises(ValueError, match="outside the data root"):
        load(root, {**NORMAL, "image_path": "../disk.png"})


def test_all_problems_of_a_file_are_reported_at_once_whatever_their_kind(root):
    rows = [
        {**NORMAL, "label": 2, "class_name": "jar", "image_path": "a\nb.png"},
        '{"image_path": ',
        {**BROKEN, "mask_path": BROKEN["image_path"]},
        {**NORMAL, "image_path": "bottle/gone.png"},
        '{"image_path": "a.png", "label": 0, "label": 1}',
        {"label": 0},
    ]
    with pytest.raises(ValueError) as error:
        load(root, NORMAL, *rows)
    lines = str(error.value).splitlines()
    assert [line.removeprefix(f"{root / 'rows.jsonl'}:").split(":")[0] for line in lines[:-1]] == list(
        "222345677"
    )
    assert lines[-1] == "9 problems in all"


def test_of_many_problems_so_many_are_reported_in_full_and_all_are_counted(root):
    with pytest.raises(ValueError) as error:
        load(root, *[{**NORMAL, "label": 2}] * (PROBLEMS_SHOWN + 3))
    lines = str(error.value).splitlines()
    assert len(lines) == PROBLEMS_SHOWN + 2 and lines[PROBLEMS_SHOWN] == "… and 3 more problems"
    assert lines[-1] == f"{PROBLEMS_SHOWN + 3} problems in all"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"label": 1}, r"label is 1, .*rows\.jsonl:1 says 0 of the same image"),
        ({"label": None}, r"label is None, .*rows\.jsonl:1 says 0 of the same image"),
        ({"class_name": "cable"}, "class_name is 'cable', .* says 'bottle' of the same image"),
    ],
)
def test_one_image_with_two_labels_or_two_classes_is_refused(root, change, expected):
    again = {**NORMAL, "image_path": "mvtec_ad/" + NORMAL["image_path"], **change}
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: {expected}"):
        load(root, NORMAL, again)


def test_an_image_named_as_its_own_mask_is_refused_whatever_it_is_called(root):
    (root / "mvtec_ad" / "link.png").symlink_to(root / "mvtec_ad" / BROKEN["image_path"])
    for path in (BROKEN["image_path"], "mvtec_ad/" + BROKEN["image_path"], "link.png"):
        with pytest.raises(ValueError, match=r"rows\.jsonl:1: mask_path .* is the image itself"):
            load(root, {**BROKEN, "mask_path": path})


def test_several_masks_of_an_image_are_united(root):
    folder = root / "mvtec_ad"
    for column in (0, 3):
        Image.fromarray(np.eye(1, 6, column, dtype=np.uint8).repeat(5, 0) * 255).save(
            folder / f"{column}.png"
        )
    (sample,) = load(root, {**BROKEN, "mask_path": ["0.png", "3.png"]})
    assert sample.mask_paths == (str(folder / "0.png"), str(folder / "3.png")) and sample.mask_known
    assert read_pair(sample)[1].tolist() == [[True, False, False, True, False, False]] * 5
    with pytest.raises(FileNotFoundError, match=r"mask_path 'gone\.png' is neither"):
        load(root, {**BROKEN, "mask_path": ["0.png", "gone.png"]})


def test_rows_written_on_windows_are_read(root):
    rows = [
        {key: value.replace("/", "\\") if key.endswith("path") else value for key, value in row.items()}
        for row in (NORMAL, BROKEN)
    ]
    names = [sample.file_name for sample in load(root, *rows)]
    assert names == ["mvtec_ad/bottle/test/good/000.png", "mvtec_ad/bottle/test/broken/000.png"]
    with pytest.raises(ValueError, match="outside the data root"):
        load(root, {**NORMAL, "image_path": "..\\..\\outside.png"})
    with pytest.raises(FileNotFoundError, match="a path of a Windows machine"):
        load(root, {**NORMAL, "image_path": "D:\\data\\000.png"})


@pytest.mark.parametrize(("on_disk", "in_rows"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_the_other_unicode_form_are_found(root, on_disk, in_rows):
    place = unicodedata.normalize(on_disk, "größe/é 1.png")
    (root / "mvtec_ad" / place).parent.mkdir()
    Image.new("L", (6, 5)).save(root / "mvtec_ad" / place)
    (sample,) = load(root, {**NORMAL, "image_path": unicodedata.normalize(in_rows, "größe/é 1.png")})
    assert sample.image_path == str(root / "mvtec_ad" / place)
    mixed = unicodedata.normalize(in_rows, "größe") + "/" + unicodedata.normalize(on_disk, "é 1.png")
    assert load(root, {**NORMAL, "image_path": mixed})[0].image_path == sample.image_path


def test_a_name_in_other_capitals_is_named_as_the_reason(root):
    with pytest.raises(FileNotFoundError, match=r"there is 'bottle/test/good/000\.png': capitals differ"):
        load(root, {**NORMAL, "image_path": "bottle/test/GOOD/000.PNG"})


def test_a_class_may_be_a_link_to_another_disk_and_what_lies_in_it_may_not(root):
    disk = root.parent / "disk"
    (root / "mvtec_ad" / "bottle").rename(disk)
    (root / "mvtec_ad" / "bottle").symlink_to(disk)
    assert [
        sample.file_name
        for sample in load(root, NORMAL, {**BROKEN, "image_path": str(disk / "test/broken/000.png")})
    ] == [
        "mvtec_ad/bottle/test/good/000.png",
        "mvtec_ad/bottle/test/broken/000.png",
    ]
    (root / "mvtec_ad" / "jar").symlink_to(root.parent)  # no class of the dataset
    Image.new("L", (6, 5)).save(root.parent / "outside.png")
    (disk / "link.png").symlink_to(root.parent / "outside.png")
    for path in ("jar/outside.png", "bottle/link.png"):
        with pytest.raises(ValueError, match="outside the data root"):
            load(root, {**NORMAL, "image_path": path})


def test_an_empty_or_missing_or_foreign_file_is_refused(root):
    with pytest.raises(ValueError, match=r"rows\.jsonl: no rows"):
        load(root, "", "  ")
    with pytest.raises(FileNotFoundError, match="no metadata file .*gone.jsonl"):
        read_rows(root / "gone.jsonl")
    (root / "latin.jsonl").write_bytes(b'{"class_name": "caf\xe9"}\n')
    with pytest.raises(
        ValueError, match=r"latin\.jsonl:1: byte 20 of the line, 0xe9, is not UTF-8 \(it would be 'é' in Win"
    ):
        read_rows(root / "latin.jsonl")


def test_a_byte_order_mark_and_windows_line_ends_are_read(root):
    (root / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(NORMAL).encode() + b"\r\n\r\n")
    assert [row for _, row in read_rows(root / "rows.jsonl")] == [NORMAL]


def test_images_listed_twice_are_warned_about_once(root, caplog):
    with caplog.at_level(logging.WARNING):
        load(root, NORMAL, {**NORMAL, "image_path": "mvtec_ad/" + NORMAL["image_path"]}, NORMAL, BROKEN)
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "2 images are listed twice, the first is mvtec_ad/bottle/test/good/000.png "
        f"({root / 'rows.jsonl'}:1 and {root / 'rows.jsonl'}:2)"
    ]


def test_the_mask_of_a_normal_image_is_not_read(root):
    assert load(root, {**NORMAL, "mask_path": "nowhere.png"})[0].mask_path is None
    assert load(root, {**NORMAL, "mask_path": None})[0].mask_path is None


def test_written_rows_are_read_back(tmp_path):
    write_rows([NORMAL, {**BROKEN, "class_name": "größe"}], tmp_path / "new" / "full-shot.jsonl")
    assert [row for _, row in read_rows(tmp_path / "new" / "full-shot.jsonl")] == [
        NORMAL,
        {**BROKEN, "class_name": "größe"},
    ]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["full-shot.jsonl"]


def many_rows(**counts):
    return [
        {"image_path": f"{name}/{label}/{number:02}.png", "label": label, "class_name": name}
        for name, (normal, broken) in counts.items()
        for label, count in ((0, normal), (1, broken))
        for number in range(count)
    ]


@pytest.mark.parametrize(("shot", "normal", "broken"), [(1, 1, 0), (2, 1, 1), (5, 3, 2), (8, 4, 4)])
def test_k_shot_is_half_normal_rounded_up_and_half_anomalous(shot, normal, broken):
    chosen = select(many_rows(a=(9, 9), b=(5, 4)), shot, seed=0)
    counts = Counter((row["class_name"], row["label"]) for row in chosen)
    assert counts == Counter({("a", 0): normal, ("a", 1): broken, ("b", 0): normal, ("b", 1): broken})


def test_the_few_shot_choice_depends_on_seed_and_rows_but_not_on_their_order():
    rows = many_rows(a=(30, 30), b=(30, 30))
    shuffled = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
    assert select(rows, 8, seed=1) == select(shuffled, 8, seed=1) != select(rows, 8, seed=2)
    of_a = [row for row in select(rows, 8, seed=1) if row["class_name"] == "a"]
    assert of_a == select([row for row in rows if row["class_name"] == "a"], 8, seed=1)
    assert all(row in select(rows, 8, seed=1) for row in select(rows, 4, seed=1))  # growing shots are nested
    assert select(rows, 0, seed=1) == rows


def test_more_shots_than_a_class_has_are_refused_with_counts_and_the_largest_that_works():
    rows = many_rows(a=(9, 9), b=(3, 9), c=(9, 1))
    with pytest.raises(ValueError) as error:
        select(rows, 8, seed=0)
    message = str(error.value)
    assert "--shot 8 needs 4 normal and 4 anomalous images per class" in message
    assert (
        "b has 3 normal and 9 anomalous; c has 9 normal and 1 anomalous" in message and "a has" not in message
    )
    assert "use --shot 3 or less" in message and len(select(rows, 3, seed=0)) == 9
    with pytest.raises(ValueError, match="write your own <k>-shot.jsonl"):
        select(many_rows(polyp=(0, 9)), 2, seed=0)
    with pytest.raises(ValueError, match="--shot is -1: expected 0"):
        select(rows, -1, seed=0)


def test_training_with_more_shots_than_a_class_has_is_refused(root):
    with pytest.raises(
        ValueError, match="--shot 4 needs 2 normal .* but bottle has 1 normal and 1 anomalous"
    ):
        get_dataset("MVTec", 8, "few_shot", 4, "train", data_root=root)


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_an_own_dataset_is_a_jsonl_and_an_entry_in_a_small_file(root, registries, ending):
    (root / "mvtec_ad").rename(root / "jars")
    (root.parent / "jars.jsonl").write_text(json.dumps({**BROKEN, "class_name": "jam"}) + "\n")
    classes = {"jam": "jam jar", "tea": "tea jar"}
    entry = {"path": "jars", "domain": "Medical", "classes": classes, "metadata": "jars.jsonl"}
    config = root.parent / f"own.{ending}"
    config.write_text(json.dumps({"Jars": entry}) if ending == "json" else yaml.safe_dump({"Jars": entry}))
    assert load_dataset_config(config) == load_dataset_config(config) == ["Jars"]
    assert constants.CLASS_NAMES["Jars"] == ["jam", "tea"] and constants.DOMAINS["Jars"] == "Medical"
    assert constants.REAL_NAMES["Jars"]["jam"] == "jam jar"
    sets = get_dataset("Jars", 8, "full_shot", 0, "test", data_root=root)
    assert list(sets) == ["jam"] and sets["jam"][0]["file_name"] == "jars/bottle/test/broken/000.png"


def test_an_own_dataset_without_a_jsonl_is_scanned_in_mvtecs_layout(root, registries):
    register_dataset("Jars", "mvtec_ad", "Industrial", {"bottle": "glass bottle"})
    assert len(get_dataset("Jars", 8, "full_shot", 0, "test", data_root=root)["bottle"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "Kitchen"}, "domain is 'Kitchen': expected Industrial or Medical"),
        ({"path": "../jars"}, r"path is '../jars': expected a folder relative to the data root"),
        ({"path": "/jars"}, "path is '/jars'"),
        ({"classes": {}}, "classes is {}: expected"),
        ({"classes": ["jam"]}, r"classes is \['jam'\]: expected"),
        ({"classes": {"jam": ""}}, "classes is"),
        ({"classes": {"../jam": "jar"}}, "the name '../jam' cannot be a folder's"),
        ({"classes": {"..": "jar"}}, r"the name '\.\.' cannot be a folder's"),
        ({"classes": {"a\nb": "jar"}}, "cannot be a folder's: take out .* control characters"),
        ({"classes": {"jam": "jar\nerror: x"}}, "classes is .*: expected"),
        ({"path": "C:\\jars"}, "path is"),
        ({"path": "..\\jars"}, "path is"),
        ({"metadata": "a\0b"}, "metadata is"),
        ({"metadata": 7, "domain": None}, "domain is None"),
        ({"colour": "red"}, "has .*'colour'.*: expected the keys path, domain, classes"),
    ],
)
def test_a_bad_dataset_entry_is_refused_with_file_and_field(tmp_path, registries, change, message):
    config = tmp_path / "own.json"
    entry = {"path": "jars", "domain": "Industrial", "classes": {"jam": "jar"}, **change}
    config.write_text(json.dumps({"Jars": entry}))
    with pytest.raises(ValueError, match=rf"own\.json: dataset 'Jars'.*{message}"):
        load_dataset_config(config)
    assert "Jars" not in constants.DATA_PATH


def test_all_problems_of_a_dataset_file_are_reported_and_nothing_is_registered(tmp_path, registries):
    config = tmp_path / "own.json"
    good = {"path": "jars", "domain": "Industrial", "classes": {"jam": "jar"}}
    bad = {"path": "/jars", "domain": "Kitchen", "classes": {}}
    config.write_text(json.dumps({"Jars": good, "Cups": bad, "MVTec": good, "Pots": {"path": "pots"}}))
    with pytest.raises(ValueError) as error:
        load_dataset_config(config)
    assert len(str(error.value).splitlines()) == 5
    for text in (
        "domain is 'Kitchen'",
        "path is '/jars'",
        "classes is {}",
        "'MVTec' is built in",
        "'Pots' has ['path']",
    ):
        assert text in str(error.value)
    assert "Jars" not in constants.DATA_PATH


def test_a_key_that_stands_twice_in_a_dataset_file_is_refused(tmp_path):
    entry = '{"path": "jars", "domain": "Medical", "classes": {"jam": "a", "jam": "b"}}'
    for name, text in (
        ("own.json", f'{{"Jars": {entry}}}'),
        ("own.yaml", "Jars: {path: a}\nJars: {path: b}\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}: neither .*stands twice"):
            load_dataset_config(tmp_path / name)


def test_a_built_in_dataset_is_not_replaced(registries):
    with pytest.raises(ValueError, match="'MVTec' is built in"):
        register_dataset("MVTec", "mine", "Industrial", {"bolt": "bolt"})


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_dataset_file_that_is_no_mapping_is_refused(tmp_path, text):
    config = tmp_path / "own.json"
    config.write_text(text)
    with pytest.raises(ValueError, match=r"own\.json"):
        load_dataset_config(config)
    with pytest.raises(FileNotFoundError, match="no file .*gone.json"):
        load_dataset_config(tmp_path / "gone.json")


def test_real_names_are_overridden_from_a_file(tmp_path, registries):
    names = tmp_path / "names.json"
    names.write_text('{"BTAD": {"01": "brass disc"}}')
    before = dict(constants.REAL_NAMES["BTAD"])
    load_real_names(names)
    assert constants.REAL_NAMES["BTAD"] == {**before, "01": "brass disc"}
    for text, message in (
        ('{"BTAX": {"01": "disc"}}', "unknown dataset 'BTAX'"),
        ('{"BTAD": {"09": "disc"}}', "BTAD has no class '09': its classes are 01, 02, 03"),
        ('{"BTAD": "disc"}', "BTAD is 'disc': expected"),
    ):
        names.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_real_names(names)


def test_every_real_name_of_aa_clips_eleven_sets_is_its_own_to_the_letter():
    names = json.loads((Path(__file__).parent / "real_names.json").read_text(encoding="utf-8"))
    assert len(names) == 11
    for dataset, classes in names.items():
        assert constants.REAL_NAMES[dataset] == classes and constants.CLASS_NAMES[dataset] == list(classes)
        for real_name in classes.values():  # the longest fit the text tower
            assert tokenize([one for state in class_prompts(real_name) for one in state]).shape == (16, 77)


def test_the_registries_agree_and_keep_the_orders_and_names_checkpoints_depend_on():
    assert constants.CLASS_NAMES.keys() == constants.REAL_NAMES.keys() == constants.DATA_PATH.keys()
    assert constants.CLASS_NAMES.keys() == constants.DOMAINS.keys()
    assert set(constants.DOMAINS.values()) == {"Industrial", "Medical"}
    assert all(list(constants.REAL_NAMES[name]) == classes for name, classes in constants.CLASS_NAMES.items())
    mvtec = constants.CLASS_NAMES["MVTec"]
    assert len(mvtec) == 15 and mvtec[11:13] == ["transistor", "toothbrush"]
    assert sorted(mvtec) == [*mvtec[:11], "toothbrush", "transistor", *mvtec[13:]]
    assert constants.CLASS_NAMES["VisA"] == (
        "candle pcb3 capsules pipe_fryum pcb4 macaroni2 pcb2 chewinggum macaroni1 cashew fryum pcb1".split()
    )
    assert constants.REAL_NAMES["Colon_Kvasir"] == {"Kvasir": "colon endoscopy image"}
    assert constants.DATA_PATH["Retina"] == "MedAD/Retina_RESC_AD"
    prompts = constants.PROMPTS
    assert len(prompts["prompt_normal"]) * len(prompts["prompt_templates"]) == 6
    assert len(prompts["prompt_abnormal"]) * len(prompts["prompt_templates"]) == 10
