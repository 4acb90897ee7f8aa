"""Files that belong to another run, backbone, data or prompts are refused before they make a number."""

import json
import shutil

import numpy as np
import pytest
import torch
from cross_attention_world import MODEL, write_world
from PIL import Image

import test as test_script
import train
import train_cross_attention
from dataset import constants
from dataset.jsonl import Sample
from files import fingerprints
from files.fingerprints import BLOCK, WHOLE, fingerprint
from model.adapter import AdaptedCLIP
from run_folder import identity
from run_folder.checkpoints import load_checkpoint
from run_folder.identity import (
    Identity,
    compare_identity,
    differing_rows,
    identity_in,
    rows_identity,
    weights_digest,
)

CLASSES = {"ring": "steel ring", "bolt": "brass bolt"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of a data set Own of two classes, and its configuration."""
    root, random = tmp_path_factory.mktemp("own_data"), np.random.default_rng(3)
    rows = []
    for name in CLASSES:
        for i in range(4):
            pixels, mask = random.integers(60, 120, (40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
            row = {"image_path": f"{name}/{i}.png", "label": i % 2, "class_name": name}
            if i % 2:
                mask[8:20, 8 : 20 + i] = 255
                pixels[mask > 0] = (230, 20, 20)
                row["mask_path"] = f"{name}/mask{i}.png"
            (root / "own" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "own" / row["image_path"])
            if i % 2:
                Image.fromarray(mask).save(root / "own" / row["mask_path"])
            rows.append(row)
    (root / "own" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"path": "own", "domain": "Industrial", "classes": CLASSES, "metadata": "own/rows.jsonl"}
    (root / "own.json").write_text(json.dumps({"Own": entry}))
    return root


@pytest.fixture(scope="module")
def command(world, data):
    """Function (script, folder, *flags) that runs train.py, train_cross_attention.py or test.py on Own."""

    def run(script, folder, *flags, root=data, weights=world):
        words = ["--model_name", MODEL, "--clip_weights", str(weights), "--img_size", "32"]
        words += ["--text_adapt_until", "2", "--image_adapt_until", "2", "--surgery_until_layer", "3"]
        words += ["--dataset", "Own", "--data_root", str(root), "--dataset_config", str(root / "own.json")]
        if script is not test_script:
            words += ["--training_mode", "full_shot", "--text_epoch", "1", "--image_epoch", "2"]
            words += ["--text_batch_size", "4", "--image_batch_size", "4", "--text_lr", "1e-2"]
        if script is train_cross_attention:
            words += ["--cross_attn_heads", "4"]
        return script.main([*words, "--save_path", str(folder), *flags])

    return run


@pytest.fixture(scope="module")
def made(command, tmp_path_factory):
    """Function (name, script, *flags) -> folder of a run that is trained once."""
    root, runs = tmp_path_factory.mktemp("runs"), {}

    def build(name, script=train, *flags):
        if name not in runs:
            command(script, root / name, *flags)
            runs[name] = root / name
        return runs[name]

    return build


@pytest.fixture
def run(made, tmp_path):
    """A baseline run of this test's own."""
    return shutil.copytree(made("baseline"), tmp_path / "run")


def edited(file, change):
    """Change a checkpoint's content by a function and seal it again."""
    content = torch.load(file, weights_only=True)
    content.pop("digests", None)
    change(content)
    torch.save(content, file)


def test_every_file_of_a_run_says_what_it_was_made_of(made, world):
    folder = made("baseline")
    files = ["text_adapter.pth", "image_adapter_1.pth", "image_adapter_2.pth", "image_adapter.pth"]
    found = [identity_in(load_checkpoint(folder / file)) for file in files]
    assert len({one.run for one in found}) == 1 and len(found[0].run) == 16
    assert {one.kind for one in found} == {"baseline"}
    assert all(one.rows["rows"] == 8 and one.rows["classes"] == {"ring": 4, "bolt": 4} for one in found)
    assert all(one.prompts["names"] == CLASSES for one in found)
    text = load_checkpoint(folder / files[0])
    digest = weights_digest({"text_adapter": text["text_adapter"]})
    assert [one.text for one in found] == [None, digest, digest, digest]
    crossed = made("crossed", train_cross_attention)
    for file in ("text_adapter_cross_attn.pth", "image_adapter_cross_attn.pth", "text_context_dict.pth"):
        one = identity_in(load_checkpoint(crossed / file))
        assert one.kind == "cross-attention" and one.run != found[0].run


@pytest.mark.parametrize(
    ("name", "flags", "told"),
    [
        ("seed", ["--seed", "5"], "--seed was 5, expected 111.*other text side"),
        ("relu", ["--relu"], "--relu was True, expected False"),
        ("weight", ["--text_adapt_weight", "0.3"], "--text_adapt_weight was 0.3, expected 0.1"),
    ],
)
def test_a_text_file_of_another_run_is_refused(made, run, command, name, flags, told):
    other = made(name, train, *flags)
    shutil.copy(other / "text_adapter.pth", run / "text_adapter.pth")
    with pytest.raises(RuntimeError, match=f"text_adapter.pth does not belong here: .*{told}"):
        command(test_script, run)
    assert not (run / "metrics.json").exists()


def test_a_text_file_of_a_cross_attention_run_or_none_at_all_is_refused(made, run, command):
    crossed = made("crossed", train_cross_attention)
    shutil.copy(crossed / "text_adapter_cross_attn.pth", run / "text_adapter.pth")
    with pytest.raises(RuntimeError, match="it is of a cross-attention run, expected one of a baseline run"):
        command(test_script, run)
    (run / "text_adapter.pth").unlink()
    with pytest.raises(RuntimeError, match="trained with the anchors of a text_adapter.pth, which is not"):
        command(test_script, run)


def test_cross_attention_files_in_a_baselines_place_are_refused_with_and_without_an_identity(
    made, tmp_path, command
):
    crossed, run = made("crossed", train_cross_attention), tmp_path / "run"
    run.mkdir()
    for side in ("text_adapter", "image_adapter"):
        shutil.copy(crossed / f"{side}_cross_attn.pth", run / f"{side}.pth")
    with pytest.raises(RuntimeError, match="of a cross-attention run, expected one of a baseline run"):
        command(test_script, run)
    for side in ("text_adapter", "image_adapter"):
        for key in ("identity", "settings"):
            edited(run / f"{side}.pth", lambda content, key=key: content.pop(key))
    with pytest.raises(RuntimeError, match="of a cross-attention run, expected one of a baseline run"):
        command(test_script, run)


def test_a_run_without_text_epochs_refuses_a_text_file(made, tmp_path, command):
    plain = shutil.copytree(made("plain", train, "--text_epoch", "0"), tmp_path / "plain")
    command(test_script, plain)
    shutil.copy(made("baseline") / "text_adapter.pth", plain)
    with pytest.raises(RuntimeError, match="other text side: .* there, none expected"):
        command(test_script, plain)


def test_contexts_of_another_run_are_refused(made, tmp_path, command):
    means = ["--text_context", "train_mean"]
    folder = shutil.copytree(made("means", train_cross_attention, *means), tmp_path / "run")
    command(test_script, folder)
    other = made("other means", train_cross_attention, *means, "--seed", "5")
    shutil.copy(other / "text_context_dict.pth", folder)
    with pytest.raises(RuntimeError, match="text_context_dict.pth does not belong here: .*it is of run"):
        command(test_script, folder)


def named(path, **names):
    path.write_text(json.dumps({"Own": names}))
    return ["--real_names", str(path)]


def test_other_real_names_are_refused_by_testing_and_resuming_and_the_same_ones_in_another_file_are_not(
    run, command, tmp_path
):
    other = named(tmp_path / "other.json", ring="copper ring")
    told = "class ring was called 'steel ring', is 'copper ring'.*--real_names"
    with pytest.raises(RuntimeError, match=told):
        command(test_script, run, *other)
    with pytest.raises(RuntimeError, match=told):
        command(train, run, "--image_epoch", "3", *other)
    same = named(tmp_path / "same.json", ring="steel ring")
    command(test_script, run, *same)
    command(train, run, "--image_epoch", "3", *same)


def test_other_prompt_templates_are_refused(run, command, monkeypatch):
    monkeypatch.setitem(constants.PROMPTS, "prompt_normal", ["perfect {}"])
    with pytest.raises(RuntimeError, match="other prompt templates"):
        command(test_script, run)


def fewer(root):
    path = root / "own" / "rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def reordered(root):
    path = root / "own" / "rows.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def repainted(root):
    file = root / "own" / "ring" / "0.png"
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(file)


def redrawn(root):
    file = root / "own" / "ring" / "mask1.png"
    Image.fromarray(np.asarray(Image.open(file)).T.copy()).save(file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (fewer, "rows: 8 there, 7 here; class ring: 4 rows there, 3 here"),
        (reordered, "other files, labels or another order"),
        (repainted, "other contents of images"),
        (redrawn, "other contents of masks"),
    ],
)
def test_going_on_with_other_rows_images_or_masks_is_refused(run, command, data, tmp_path, change, told):
    root = shutil.copytree(data, tmp_path / "moved")
    command(train, run, root=root)  # the same data elsewhere
    change(root)
    before = {path.name: path.read_bytes() for path in run.glob("*.pth")}
    with pytest.raises(RuntimeError, match=f"other rows .*{told}"):
        command(train, run, "--image_epoch", "3", root=root)
    assert before == {path.name: path.read_bytes() for path in run.glob("*.pth")}


def test_every_stages_file_is_looked_at_before_the_first_step(run, command, made):
    before = {path.name: path.read_bytes() for path in run.glob("*.pth")}
    with pytest.raises(RuntimeError, match="image_adapter.pth belongs to .*--text_epoch was 1, is 3"):
        command(train, run, "--text_epoch", "3")
    with pytest.raises(ValueError, match="--image_epoch 0 in .*holds a image_adapter.pth"):
        command(train, run, "--image_epoch", "0")
    assert before == {path.name: path.read_bytes() for path in run.glob("*.pth")}
    other = made("seed", train, "--seed", "5")
    for file in other.glob("image_adapter*.pth"):
        shutil.copy(file, run)
        edited(run / file.name, lambda content: content["settings"].update(seed=111))
    with pytest.raises(RuntimeError, match="image_adapter.pth does not belong here: it is of run"):
        command(train, run, "--image_epoch", "3")


def test_images_go_on_with_the_text_side_they_began_with(run, command):
    """A lost text checkpoint is made again, the same; another one, as here from another adapter, is no ground."""
    text = (run / "text_adapter.pth").read_bytes()
    (run / "text_adapter.pth").unlink()
    command(train, run, "--image_epoch", "3")
    edited(run / "text_adapter.pth", lambda content: content["text_adapter"]["0.fc.0.weight"].add_(1))
    with pytest.raises(RuntimeError, match="image_adapter.pth does not belong here: other text side"):
        command(train, run, "--image_epoch", "4")
    (run / "text_adapter.pth").write_bytes(text)
    command(train, run, "--image_epoch", "4")


def test_a_resumed_run_keeps_its_name(run, command):
    command(train, run, "--image_epoch", "3")
    names = {identity_in(load_checkpoint(file)).run for file in run.glob("*.pth")}
    assert len(names) == 1 and names != {None}


def as_aa_clip(folder):
    """Files that hold what AA-CLIP's do."""
    for file in folder.glob("*.pth"):
        stage = file.name.partition("_")[0]
        kept = ("epoch", f"{stage}_adapter", f"{stage}_optimizer")
        edited(file, lambda content, kept=kept: [content.pop(key) for key in [*content] if key not in kept])


def test_files_of_aa_clip_are_taken_with_one_warning_that_says_what_was_not_checked(run, command):
    as_aa_clip(run)
    results = command(test_script, run, "--all")
    warnings = [line for line in (run / "test.log").read_text().splitlines() if " WARNING " in line]
    assert len(results) == 2 and len(warnings) == 1
    for words in ("its backbone (image_adapter", "its prompts", "kind of run", "text side of the images"):
        assert words in warnings[0]
    command(train, run, "--image_epoch", "3")
    (said,) = [line for line in (run / "train.log").read_text().splitlines() if "not checked" in line]
    assert "the images it was trained on (text_adapter.pth)" in said
    (run / "text_adapter.pth").unlink()
    (run / "image_adapter.pth").unlink()
    (run / "image_adapter_3.pth").unlink()
    command(test_script, run)  # anchors of plain CLIP, as AA-CLIP's folders without a text adapter


def test_a_run_of_an_older_version_is_compared_by_its_settings(run, command, made):
    for file in run.glob("*.pth"):
        edited(file, lambda content: content.pop("identity"))
    command(test_script, run)
    warnings = [line for line in (run / "test.log").read_text().splitlines() if " WARNING " in line]
    assert len(warnings) == 1 and "its prompts" in warnings[0] and "its backbone" not in warnings[0]
    shutil.copy(made("seed", train, "--seed", "5") / "text_adapter.pth", run)
    edited(run / "text_adapter.pth", lambda content: content.pop("identity"))
    with pytest.raises(RuntimeError, match="text_adapter.pth does not belong here: .*--seed was 5"):
        command(test_script, run)
    (run / "text_adapter.pth").unlink()
    with pytest.raises(RuntimeError, match="trained with the anchors of a text_adapter.pth, which is not"):
        command(test_script, run)


def test_all_never_evaluates_what_an_older_longer_run_left(run, command, made):
    longer = made("seed", train, "--seed", "5")
    shutil.copy(longer / "image_adapter_2.pth", run / "image_adapter_3.pth")
    with pytest.raises(
        RuntimeError, match="image_adapter_3.pth does not belong here.*it is of run .*--check"
    ):
        command(test_script, run, "--all")
    assert not (run / "metrics.json").exists()
    (run / "image_adapter_3.pth").unlink()
    assert len(command(test_script, run, "--all")) == 2


def test_base_weights_of_another_backbone_or_other_adapter_flags_are_refused(made, command, tmp_path, world):
    base = made("baseline")
    flags = [f"--load_base_{side}_adapter" for side in ("text", "image")]
    both = [flags[0], str(base / "text_adapter.pth"), flags[1], str(base / "image_adapter.pth")]
    command(train_cross_attention, tmp_path / "right", *both)
    with pytest.raises(RuntimeError, match="--image_adapt_weight was 0.1, expected 0.2"):
        command(train_cross_attention, tmp_path / "a", *both, "--image_adapt_weight", "0.2")
    seed = made("seed", train, "--seed", "5")
    with pytest.raises(RuntimeError, match="image_adapter.pth does not belong here: other text side"):
        command(train_cross_attention, tmp_path / "b", *both[:3], str(seed / "image_adapter.pth"))
    moved = [flags[0], str(tmp_path / "text.pth"), *both[2:]]
    shutil.copy(base / "text_adapter.pth", tmp_path / "text.pth")
    command(train_cross_attention, tmp_path / "moved", *moved)
    for file in (tmp_path / "moved").glob("image_adapter*.pth"):
        file.unlink()
    # As it is, but from another program, so that no identity tells it apart.
    edited(tmp_path / "text.pth", lambda content: [content.pop("identity"), content.pop("settings")])
    with pytest.raises(RuntimeError, match="its text_adapter started from another --load_base file"):
        command(train_cross_attention, tmp_path / "moved", *moved)
    assert not list((tmp_path / "a").glob("*.pth")) and not list((tmp_path / "b").glob("*.pth"))


def test_a_checkpoint_replaced_while_it_is_read_is_refused(run, command, monkeypatch, made):
    from run_folder import loaded_run

    other, build = made("weight", train, "--text_adapt_weight", "0.3"), loaded_run.create_adapted_model

    def replaced(*args):
        for file in other.glob("*.pth"):
            shutil.copy(file, run)
        return build(*args)

    monkeypatch.setattr(loaded_run, "create_adapted_model", replaced)
    with pytest.raises(RuntimeError, match="image_adapter.pth was replaced .* while it was read"):
        command(test_script, run)


def test_all_differences_are_named_at_once_and_what_is_not_said_is_returned():
    stored = {"identity": {"run": "a", "kind": "baseline", "rows": None, "prompts": None, "text": "1" * 64}}
    with pytest.raises(RuntimeError) as error:
        compare_identity("x.pth", stored, Identity(run="b", kind="feedback", text="2" * 64))
    for words in ("x.pth", "of run a", "of run b", "a baseline run", "a feedback run", "other text side"):
        assert words in str(error.value)
    assert compare_identity("x.pth", stored, Identity(run="a", prompts={"templates": "1"})) == ["its prompts"]
    assert compare_identity("x.pth", {}, Identity()) == []


def test_one_changed_byte_of_a_small_file_and_a_changed_size_of_a_large_one_change_the_fingerprint(tmp_path):
    file = tmp_path / "a"
    for size, places in ((10, (0, 9)), (WHOLE, (0, WHOLE // 3)), (WHOLE * 4, (0, WHOLE * 2, WHOLE * 4 - 1))):
        content = bytearray(size)
        file.write_bytes(content)
        first = fingerprint(file)
        assert first[0] == size and first == fingerprint(file)
        for place in places:
            changed = bytearray(content)
            changed[place] = 1
            file.write_bytes(changed)
            assert fingerprint(file) != first
        file.write_bytes(content + b"\0")
        assert fingerprint(file) != first
    assert BLOCK * 3 < WHOLE


def test_of_a_large_data_set_three_blocks_of_every_file_are_read(tmp_path, monkeypatch):
    samples = []
    for i in range(60):
        path = tmp_path / f"{i}.png"
        path.write_bytes(bytes(20 * WHOLE + i))
        samples.append(Sample(str(path), str(path) if i % 2 else None, i % 2, "x", path.name, "here"))
    reads = []
    read = fingerprints.os.pread

    def counted(file, length, start):
        reads.append(length)
        return read(file, length, start)

    monkeypatch.setattr(fingerprints.os, "pread", counted)
    rows = rows_identity(samples)
    assert reads == [BLOCK] * 3 * (60 + 30) and rows["masks"] == 30  # every image and every mask, once
    assert differing_rows(rows, rows_identity(samples)) is None


def test_the_digest_of_weights_does_not_depend_on_a_wrapper_or_the_order_of_names(clip):
    model = AdaptedCLIP(clip, text_adapt_until=2, image_adapt_until=2)
    state = model.text_adapter.state_dict()
    wrapped = {f"module.{name}": state[name] for name in reversed(state)}
    assert weights_digest({"text_adapter": state}) == weights_digest({"text_adapter": wrapped})
    assert weights_digest({"text_adapter": state}) != weights_digest({"other": state})
    assert len(identity.new_run_id()) == 16 and identity.new_run_id() != identity.new_run_id()
