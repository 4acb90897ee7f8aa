"""Checkpoint files survive crashes, refuse what they should: run_folder/checkpoints.py, files/tensors.py."""

import os
import random
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from damaged_files import CONTENT, flipped, is_content, member_marked_as_directory, rewritten
from torch import nn

from files.atomic import sha256
from files.tensors import DamagedFile
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


def test_a_member_marked_as_a_directory_is_refused_in_our_files_and_in_aa_clips(tmp_path):
    path = tmp_path / "a.pth"
    for save in (save_checkpoint, lambda path, content: torch.save(content, path)):
        save(path, CONTENT)
        path.write_bytes(member_marked_as_directory(path.read_bytes()))
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None  # a check of checksums does not see it
        with pytest.raises(DamagedFile, match="a.pth .*data/0 is marked as a directory.*copy it again"):
            load_checkpoint(path)


def test_compressed_unexpected_doubled_and_missing_members_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(CONTENT, path)
    data = path.read_bytes()
    for message, changed in {
        "is compressed": rewritten(data, dict, zipfile.ZIP_DEFLATED),
        "unexpected member a/code.py": rewritten(data, lambda members: members | {"a/code.py": b""}),
        "not all of one folder": rewritten(data, lambda members: members | {"other/data.pkl": b""}),
        "it has no data.pkl": rewritten(data, lambda members: {"a/data/0": members["a/data/0"]}),
    }.items():
        path.write_bytes(changed)
        with pytest.raises(DamagedFile, match=message):
            load_checkpoint(path)
    path.write_bytes(rewritten(data, dict))
    assert is_content(load_checkpoint(path))


@pytest.mark.parametrize("protected", [True, False])
def test_no_changed_bit_of_a_checkpoint_is_used(tmp_path, protected):
    """Every 29th bit; tests/promises/readers.py has all of them."""
    path = tmp_path / "a.pth"
    save_checkpoint(path, CONTENT) if protected else torch.save(CONTENT, path)
    data, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(data), 29):
        path.write_bytes(flipped(data, bit))
        try:
            assert is_content(load_checkpoint(path)), bit
        except DamagedFile:
            refused += 1
    assert refused > len(data) // 29


def test_a_tensor_or_value_other_than_the_digests_say_is_named(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, CONTENT)
    sealed = torch.load(path)
    for place, change in {
        "text_adapter/0.fc.0.weight": {"text_adapter": {"0.fc.0.weight": torch.zeros(2, 3)}},
        "values of epoch": {"epoch": 4},
        "values of text_adapter": {"text_adapter": {}},
    }.items():
        torch.save(sealed | change, path)  # the zip file's own checksums are right
        with pytest.raises(DamagedFile, match=f"a.pth .*digests differ: {place}"):
            load_checkpoint(path)
    torch.save({key: sealed[key] for key in ("epoch", "text_adapter", "digests")} | {"note": "mine"}, path)
    assert load_checkpoint(path)["note"] == "mine"  # keys may be taken away and added
    torch.save(sealed | {"digests": 3}, path)
    with pytest.raises(DamagedFile, match="digests differ: the digests themselves"):
        load_checkpoint(path)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="rng/1 is ndarray"):
        save_checkpoint(tmp_path / "a.pth", {"rng": [1, np.zeros(2)]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64]
)
def test_tensors_of_every_kind_shape_and_layout_come_back(tmp_path, dtype):
    whole = (torch.arange(24).reshape(2, 3, 4) % 5).to(dtype)
    content = {"all": whole, "view": whole[:, 1].T, "scalar": whole[0, 0, 1], "none": whole[:0]}
    save_checkpoint(tmp_path / "a.pth", content)
    found = load_checkpoint(tmp_path / "a.pth")
    assert all(torch.equal(found[name], value) for name, value in content.items())


def test_a_file_of_old_torch_is_refused_with_a_command_that_converts_it(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=False)
    with pytest.raises(DamagedFile, match="before torch 1.6, which has no checksums") as error:
        load_checkpoint(path)
    command = re.search(r'python -c "(.*?)"', str(error.value))[1]
    subprocess.run([sys.executable, "-c", command], check=True)
    assert is_content(load_checkpoint(tmp_path / "old_zip.pth"))


@pytest.mark.bit_equality
def test_names_of_wrapped_adapters_are_read_as_the_adapters_own(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2))
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "model."):
        state = {f"{prefix}{name}": torch.full_like(value, 2) for name, value in module.state_dict().items()}
        nn.init.zeros_(module[0].weight)
        load_module(module, state, "a.pth")
        assert module[0].weight.eq(2).all(), prefix
    own = nn.ModuleDict({"module": nn.Linear(2, 2)})  # whose names begin so without a wrapper
    load_module(own, {name: torch.zeros_like(value) for name, value in own.state_dict().items()}, "a.pth")


def test_the_hash_is_of_the_file_that_was_read_though_another_has_its_name_since(tmp_path, monkeypatch):
    path, read = tmp_path / "a.pth", torch.load
    save_checkpoint(path, {"epoch": 1})
    first = sha256(path)

    def replaced_while_reading(*args, **kwargs):
        save_checkpoint(path, {"epoch": 2})
        return read(*args, **kwargs)

    monkeypatch.setattr("torch.load", replaced_while_reading)
    found = load_checkpoint(path)
    assert (found["epoch"], found.sha256) == (1, first) and sha256(path) != first
