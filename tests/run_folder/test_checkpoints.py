"""Checkpoint files survive crashes, refuse what they should: run_folder/checkpoints.py, files/tensors.py."""

import os
import random
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from run_folder.checkpoints import (
    load_checkpoint,
    load_module,
    numbered_checkpoints,
    restore_rng,
    rng_state,
    save_checkpoint,
    versions,
)


@pytest.mark.bit_equality
def test_a_checkpoint_comes_back_as_it_was_saved_into_a_new_folder(tmp_path):
    content = {
        "epoch": 3,
        "text_adapter": {"0.fc.0.weight": torch.randn(2, 2)},
        "settings": {"milestones": [0.5]},
    }
    save_checkpoint(tmp_path / "new" / "a.pth", content)
    found = load_checkpoint(tmp_path / "new" / "a.pth", keys=["epoch", "text_adapter"])
    assert found["epoch"] == 3 and found["settings"] == content["settings"]
    assert torch.equal(found["text_adapter"]["0.fc.0.weight"], content["text_adapter"]["0.fc.0.weight"])
    assert (tmp_path / "new" / "a.pth").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("moment", ["torch.save", "os.fsync", "os.replace"])
def test_a_crash_while_saving_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"epoch": 1})

    def crash(*args, **kwargs):
        if moment == "torch.save":
            args[1].write(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(moment, crash)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, {"epoch": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: events.append("fsync") or fsync(handle))
    monkeypatch.setattr("os.replace", lambda a, b: events.append("replace") or replace(a, b))
    save_checkpoint(tmp_path / "a.pth", {})
    assert events == ["fsync", "replace", "fsync"]  # file, name, folder


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint .*a.pth: train first.*--save_path"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_file_with_code_in_it_is_refused_unexecuted(tmp_path):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"epoch": Code()}, tmp_path / "a.pth")
    with pytest.raises(
        RuntimeError, match=r"not a checkpoint \(Unsupported global: GLOBAL io.open [^;]*default\)"
    ):
        load_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "executed").exists()


def test_the_message_does_not_pass_on_torchs_advice_to_load_unsafely(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"P")
    with pytest.raises(RuntimeError) as error:
        load_checkpoint(tmp_path / "a.pth")
    assert "weights_only" not in str(error.value)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"epoch": 1, "weights": torch.arange(4000.0)})
    return path


@pytest.mark.parametrize("kept", [0, 1, 100, 5000, -1])
def test_a_truncated_file_is_named_with_size_and_remedy(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(
        RuntimeError, match=rf"a.pth \({saved.stat().st_size} bytes\) is damaged .*copy it again"
    ):
        load_checkpoint(saved)


def test_one_changed_bit_in_the_weights_is_found(saved):
    with zipfile.ZipFile(saved) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(saved.read_bytes())
    data[entry.header_offset + 2000] ^= 1
    saved.write_bytes(data)
    assert not torch.equal(torch.load(saved)["weights"], torch.arange(4000.0))  # torch does not look
    with pytest.raises(RuntimeError, match="(?i)bad (checksum|crc)"):
        load_checkpoint(saved)


def test_random_bytes_never_escape_the_message(tmp_path):
    generator, path = torch.Generator().manual_seed(1), tmp_path / "a.pth"
    for _ in range(200):
        path.write_bytes(b"\x80\x02" + bytes(torch.randint(0, 256, (40,), generator=generator).tolist()))
        with pytest.raises(RuntimeError, match="damaged or not a checkpoint"):
            load_checkpoint(path)


def test_a_file_of_another_kind_names_what_it_lacks_and_holds(tmp_path):
    torch.save({"epoch": 1, "image_adapter": {}}, tmp_path / "a.pth")
    with pytest.raises(
        RuntimeError, match=r"lacks \['text_adapter'\]; it holds \['epoch', 'image_adapter'\]"
    ):
        load_checkpoint(tmp_path / "a.pth", keys=["epoch", "text_adapter"])
    torch.save(torch.zeros(2), tmp_path / "a.pth")
    with pytest.raises(RuntimeError, match=r"lacks \['epoch'\]; it holds Tensor"):
        load_checkpoint(tmp_path / "a.pth", keys=["epoch"])


def test_a_state_that_does_not_fit_names_every_difference_and_changes_nothing():
    module, before = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2)), torch.ones(2, 2)
    nn.init.ones_(module[0].weight)
    state = {"0.weight": torch.zeros(2, 2), "1.weight": torch.zeros(3, 2), "2.weight": torch.zeros(1)}
    with pytest.raises(RuntimeError) as error:
        load_module(module, state, "run/a.pth")
    for part in (
        "run/a.pth",
        "1.bias is missing",
        "2.weight is not expected",
        "1.weight is (3, 2), expected (2, 2)",
        "other adapter settings",
        "--relu",
    ):
        assert part in str(error.value)
    assert torch.equal(module[0].weight.detach(), before)
    load_module(
        module, {name: torch.zeros_like(value) for name, value in module.state_dict().items()}, "a.pth"
    )
    assert not module[1].weight.any()


def test_the_random_generators_continue_where_they_were_saved(tmp_path):
    def draw():
        return random.random(), np.random.normal(), torch.rand(3).tolist()

    np.random.normal()  # leaves half a pair cached
    save_checkpoint(tmp_path / "a.pth", {"rng": rng_state()})
    first = draw()
    draw()
    restore_rng(load_checkpoint(tmp_path / "a.pth")["rng"])
    assert draw() == first


def test_numbered_checkpoints_are_ordered_by_number_and_strangers_are_left_out(tmp_path):
    for name in (
        "image_adapter_10.pth",
        "image_adapter_2.pth",
        "image_adapter_1.pth",
        "image_adapter.pth",
        "image_adapter_x.pth",
        "image_adapter_3.pth.tmp",
        "text_adapter_1.pth",
    ):
        (tmp_path / name).touch()
    assert [number for number, _ in numbered_checkpoints(tmp_path)] == [1, 2, 10]
    assert numbered_checkpoints(tmp_path)[2][1] == tmp_path / "image_adapter_10.pth"
    assert [number for number, _ in numbered_checkpoints(tmp_path, "text_adapter_")] == [1]


def test_versions_name_the_libraries_that_decide_the_numbers_in_plain_text_a_safe_load_accepts(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"versions": versions()})
    found = load_checkpoint(tmp_path / "a.pth")["versions"]
    assert found["torch"] == torch.__version__ and {"open_clip", "numpy"} <= set(found)
