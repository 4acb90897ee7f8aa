"""Files that semantic fill is given: pipes do not stop it, links do not lead it out, damage is named, no code runs."""

import json
import os
import shutil
import signal

import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from damaged_files import CALLS, flipped, payload
from semantic_fill_world import CONFIG, flags, tiny_system, triptychs, write_folders, write_model_folder

from files.tensors import DamagedFile
from synthesis import train_semantic_fill
from synthesis.backbone import load_backbone, load_prompts
from synthesis.data import INDEX, PANELS, Triptychs
from synthesis.sample_inputs import files_of, read_picture
from synthesis.weights import (
    ATTENTION_FILE,
    CONFIG_FILE,
    LORA_FILE,
    OPTIMISER_FILE,
    PROMPTS_FILE,
    load_optimizer,
    load_system,
    newest_intact_checkpoint,
    read_config,
    save_system,
)


@pytest.fixture(autouse=True)
def nothing_waits():
    """A reader that waits on a pipe is an error after ten seconds."""

    def stop(*_):
        raise AssertionError("it waited")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path / "data", triptychs(2))


def strips_of(folders):
    """The visible panels as a folder of strips; what they show does not matter here."""
    return folders / "visible"


@pytest.mark.parametrize("panel", PANELS)
def test_a_pipe_among_the_pictures_is_refused_by_name_and_nobody_waits_on_it(folders, panel):
    os.mkfifo(folders / panel / "002.png")
    with pytest.raises(ValueError, match=f"{panel}/002.png.*named pipe.*regular file"):
        Triptychs(folders, 32)
    with pytest.raises(ValueError, match="named pipe"):
        Triptychs(folders / panel, 32)  # as strips
    with pytest.raises(ValueError, match="named pipe"):
        files_of("visible", str(folders / panel), str(folders / panel))


def test_a_picture_that_becomes_a_pipe_or_a_folder_is_refused_when_it_is_read(folders):
    found, path = Triptychs(folders, 32), folders / "target" / "001.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="target/001.png.*named pipe"):
        found[1]
    with pytest.raises(ValueError, match="synthesis.sample: .*named pipe"):
        read_picture(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="target/001.png.*a folder"):
        found[1]
    path.rmdir()
    with pytest.raises(FileNotFoundError, match="target/001.png.*no file"):
        found[1]


def test_pictures_that_link_out_of_their_folder_are_refused_and_those_inside_are_read(folders, tmp_path):
    secret = shutil.copy(folders / "visible" / "000.png", tmp_path / "secret.png")
    for panel in PANELS:
        (folders / panel / "002.png").symlink_to(folders / panel / "000.png")
    assert [item["name"] for item in Triptychs(folders, 32)] == ["000", "001", "002"]
    (folders / "target" / "002.png").unlink()
    (folders / "target" / "002.png").symlink_to(secret)
    with pytest.raises(ValueError, match="target/002.png' leads to .*secret.png', outside .*copy the file"):
        Triptychs(folders, 32)
    with pytest.raises(ValueError, match="outside"):
        files_of("target", str(folders / "target"), str(folders / "visible"))
    (folders / "target" / "002.png").unlink()
    (folders / "target" / "002.png").symlink_to("nowhere.png")
    with pytest.raises(FileNotFoundError, match="target/002.png' is a link that leads to no file"):
        Triptychs(folders, 32)


def test_a_panels_folder_or_an_index_elsewhere_is_refused_and_the_data_folder_may_be_a_link(
    folders, tmp_path
):
    (tmp_path / "link").symlink_to(folders)
    assert len(Triptychs(tmp_path / "link", 32)) == 2
    shutil.move(folders / "semantic", tmp_path / "elsewhere")
    (folders / "semantic").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="semantic/000.png' leads to .*elsewhere"):
        Triptychs(folders, 32)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (folders / INDEX).symlink_to(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=f"{INDEX}' leads to .*rows.jsonl"):
        Triptychs(folders, 32)


def test_hidden_files_are_no_pictures(folders):
    for panel in PANELS:
        (folders / panel / "._000.png").write_bytes(b"what macOS leaves beside a file")
    assert len(Triptychs(folders, 32)) == 2
    assert list(files_of("visible", str(strips_of(folders)), str(strips_of(folders)))) == ["000", "001"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with all its files."""
    system = tiny_system(scale=0.5)
    optimizer = torch.optim.SGD(system.trainable())
    return save_system(tmp_path_factory.mktemp("run"), 1, system, CONFIG, optimizer)


@pytest.mark.parametrize("file", [CONFIG_FILE, ATTENTION_FILE, LORA_FILE, PROMPTS_FILE, OPTIMISER_FILE])
def test_a_pipe_in_place_of_a_checkpoints_file_is_refused_by_name(checkpoint, tmp_path, file, lines):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-0000001")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(DamagedFile, match=r"checkpoint-0000001.*No intact checkpoint is left"):
        newest_intact_checkpoint(tmp_path, lines[0])
    assert any(file in line for line in lines[1])
    system = tiny_system()
    with pytest.raises((DamagedFile, FileNotFoundError), match=file):
        load_system("tiny", folder if file != CONFIG_FILE else tmp_path)
        load_optimizer(torch.optim.SGD(system.trainable()), folder)


@pytest.mark.parametrize("file", [CONFIG_FILE, ATTENTION_FILE, LORA_FILE, PROMPTS_FILE])
def test_a_flipped_bit_anywhere_in_a_checkpoint_is_refused_by_name(checkpoint, tmp_path, file):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-0000001")
    data, silent = (folder / file).read_bytes(), []
    step = max(1, 8 * len(data) // 40)
    for bit in range(5, 8 * len(data), step | 1):  # an odd stride: every bit of a byte gets its turn
        (folder / file).write_bytes(flipped(data, bit))
        try:
            load_system("tiny", folder)
            silent.append(bit)
        except DamagedFile as error:
            assert file in str(error)
    assert not silent


@pytest.mark.parametrize("key", ["files_sha256", "config_sha256"])
def test_a_config_whose_hashes_were_taken_away_is_refused(checkpoint, tmp_path, key):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-0000001")
    content = json.loads((folder / CONFIG_FILE).read_text())
    del content[key]
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(DamagedFile, match="not as it was written"):
        read_config(folder)


def test_a_models_folder_may_name_no_code_to_import(tmp_path, monkeypatch):
    model = write_model_folder(tmp_path / "model")
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((model / "model_index.json").read_text())
    index["text_encoder"] = ["hostile", "Encoder"]
    (model / "model_index.json").write_text(json.dumps(index))
    for read in (lambda: load_backbone(model), lambda: load_prompts(model).encode(["a defect"])):
        with pytest.raises(ValueError, match="text_encoder is of 'hostile', which would be imported"):
            read()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_models_pickled_weights_are_not_read(tmp_path, part):
    model = write_model_folder(tmp_path / "model")
    for path in (model / part).glob("*.safetensors"):
        path.unlink()
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        (model / part / name).write_bytes(payload(*CALLS[0][:2], (str(tmp_path / "ran"), "w"), "REDUCE"))
    with pytest.raises(RuntimeError, match="cannot load this folder"):
        load_backbone(model)
        load_prompts(model).encode(["a defect"])
    assert not (tmp_path / "ran").exists()


def test_a_pipe_in_a_models_folder_is_refused(tmp_path, folders):
    model = write_model_folder(tmp_path / "model")
    (model / "vae" / "config.json").unlink()
    os.mkfifo(model / "vae" / "config.json")
    with pytest.raises(ValueError, match="--model: .*vae/config.json' is a named pipe"):
        train_semantic_fill.main(flags(folders, tmp_path / "run", 1, "--model", str(model)))
