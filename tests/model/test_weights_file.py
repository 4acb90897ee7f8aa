"""Where the backbone's weights come from, and what happens to files that are no good: model/weights_file.py."""

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from damaged_files import Tower, WithTrap, payloads, rewritten, torch_file, torchscript_file
from open_clip.model import resize_pos_embed
from safetensors.torch import save_file
from torch import nn

import model.weights_file as weights_file
from files.atomic import sha256
from files.tensors import DamagedFile
from model.clip import create_model
from model.names import architecture_name
from model.settings import ModelSettings
from model.weights_file import find_weights, foreign_layout, published_as, read_state_dict
from run_folder.flags import parse

ROOT = Path(__file__).resolve().parents[2]


class Tree(nn.Module):
    """A module tree whose state dict has given names, as OpenAI's archives have."""

    def __init__(self, tensors):
        super().__init__()
        branches = {}
        for name, value in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                branches.setdefault(head, {})[rest] = value
            else:
                self.register_buffer(head, value)
        for head, inner in branches.items():
            self.add_module(head, Tree(inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def state(open_clip_model):
    return {name: value.clone() for name, value in open_clip_model.state_dict().items()}


@pytest.fixture
def load(model_name):
    """Function file -> the loaded tiny CLIP's state."""
    return lambda path, img_size=32: create_model(
        model_name, img_size, "openai", clip_weights=path
    ).state_dict()


def assert_same(got, want, **tolerance):
    for name, value in got.items():
        torch.testing.assert_close(value, want[name].float(), **tolerance)


def test_a_torchscript_archive_with_openais_integers_loads(state, load, tmp_path):
    half = {name: value.half() if value.ndim else value for name, value in state.items()}
    integers = {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.jit.script(Tree(half | integers)).save(tmp_path / "openai.pt")
    assert_same(load(tmp_path / "openai.pt"), half, rtol=0, atol=0)


def test_a_plain_state_dict_loads(state, load, tmp_path):
    torch.save(state, tmp_path / "plain.pt")
    assert_same(load(tmp_path / "plain.pt"), state, rtol=0, atol=0)


def test_a_training_checkpoint_with_module_prefixes_loads(state, load, tmp_path):
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}},
        tmp_path / "trained.pt",
    )
    assert_same(load(tmp_path / "trained.pt"), state, rtol=0, atol=0)


def test_an_fp16_safetensors_file_is_used_in_float32(state, load, tmp_path):
    half = {name: value.half() for name, value in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    got = load(tmp_path / "half.safetensors")
    assert all(value.dtype == torch.float32 for value in got.values())
    assert_same(got, half, rtol=0, atol=0)


def test_positions_are_resized_to_the_image_size_as_open_clip_does(state, load, model_name, weights):
    got = load(weights, img_size=48)["visual.positional_embedding"]
    assert got.shape == (37, 32)
    reference = open_clip.CLIP(
        **{
            **open_clip.get_model_config(model_name),
            "vision_cfg": open_clip.get_model_config(model_name)["vision_cfg"] | {"image_size": 48},
        }
    )
    resize_pos_embed(state, reference)
    torch.testing.assert_close(got, state["visual.positional_embedding"], rtol=0, atol=0)


@pytest.fixture
def places(monkeypatch, tmp_path, model_name):
    """One empty file for each place weights can come from, best first: {place: path}."""
    files = {name: tmp_path / f"{name}.pt" for name in ("flag", "variable", "tag", "local", "download")}
    for file in files.values():
        file.touch()
    monkeypatch.setitem(weights_file.LOCAL_FILES, model_name, files["local"])
    monkeypatch.setenv("AACLIP_CLIP_WEIGHTS", str(files["variable"]))
    monkeypatch.setattr(
        open_clip.pretrained, "get_pretrained_cfg", lambda name, tag: {"url": tag} if tag == "openai" else {}
    )
    monkeypatch.setattr(
        open_clip.pretrained, "download_pretrained", lambda config, cache_dir: str(files["download"])
    )
    return files


def test_the_flag_goes_before_the_variable_before_the_local_file_before_a_download(
    places, model_name, monkeypatch
):
    tag = str(places["tag"])
    assert find_weights(model_name, tag, clip_weights=places["flag"]) == places["flag"]
    assert find_weights(model_name, tag) == places["variable"]
    monkeypatch.delenv("AACLIP_CLIP_WEIGHTS")
    assert find_weights(model_name, tag) == places["tag"]
    assert find_weights(model_name, "openai") == places["local"]
    places["local"].unlink()
    assert find_weights(model_name, "openai") == places["download"]


def test_the_local_file_of_the_default_model_is_where_aa_clip_keeps_it():
    where = weights_file.LOCAL_FILES["ViT-L-14-336"]
    assert (where.parent.name, where.name) == ("model", "ViT-L-14-336px.pt")


def test_the_download_uses_the_given_cache(places, model_name, monkeypatch, tmp_path):
    asked = []
    monkeypatch.delenv("AACLIP_CLIP_WEIGHTS")
    places["local"].unlink()
    monkeypatch.setattr(
        open_clip.pretrained,
        "download_pretrained",
        lambda config, cache_dir: asked.append((config, cache_dir)) or "x.pt",
    )
    find_weights(model_name, "openai", cache_dir=tmp_path)
    assert asked == [({"url": "openai"}, tmp_path)]


def test_without_any_weights_the_message_says_where_it_looked_and_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(weights_file.LOCAL_FILES, "ViT-L-14-336", tmp_path / "ViT-L-14-336px.pt")
    with pytest.raises(FileNotFoundError) as error:  # the download is refused by conftest.py
        find_weights("ViT-L-14-336")
    for part in (
        "--clip_weights",
        "AACLIP_CLIP_WEIGHTS",
        str(tmp_path / "ViT-L-14-336px.pt"),
        "download",
        "tests have no network",
        "Remedy",
    ):
        assert part in str(error.value)


def test_a_tag_open_clip_does_not_know_is_named(model_name):
    with pytest.raises(FileNotFoundError, match=f"open_clip has no weights 'nobody' for {model_name}"):
        find_weights(model_name, "nobody")


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_a_path_that_is_no_file_is_refused_with_the_way_it_came(model_name, tmp_path, monkeypatch, way):
    if way == "variable":
        monkeypatch.setenv("AACLIP_CLIP_WEIGHTS", str(tmp_path))
    given = tmp_path if way == "flag" else None
    with pytest.raises(
        FileNotFoundError, match="--clip_weights names" if way == "flag" else "AACLIP_CLIP_WEIGHTS na"
    ):
        find_weights(model_name, clip_weights=given)


def damaged_files(folder, state):
    """{kind: path} of weight files that cannot be read."""
    torch.save(state, folder / "whole.pt")
    save_file(state, folder / "whole.safetensors")
    torch.jit.script(Tree(state)).save(folder / "whole_archive.pt")
    found = {}
    for name in ("whole.pt", "whole.safetensors", "whole_archive.pt"):
        path = folder / f"truncated_{name}"
        path.write_bytes((folder / name).read_bytes()[:-5000])
        found[path.name] = path
    contents = {
        "empty.pt": b"",
        "page.pt": b"<html>404: not found</html>",
        "noise.pt": bytes(range(256)) * 20,
        "page.safetensors": b"<html>404: not found</html>",
        "noise.safetensors": b"\xff" * 5000,
        "empty.safetensors": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        found[name] = folder / name
    torch.save([1, 2], folder / "list.pt")
    torch.save({"epoch": 3}, folder / "numbers.pt")
    return found | {name: folder / name for name in ("list.pt", "numbers.pt")}


def test_damaged_files_are_named_with_size_and_remedy(state, load, tmp_path):
    for kind, path in damaged_files(tmp_path, state).items():
        with pytest.raises(RuntimeError) as error:
            load(path)
        assert f"{path} ({path.stat().st_size} bytes)" in str(error.value), kind
        assert "--clip_weights" in str(error.value) and "weights_only" not in str(error.value), kind


def test_random_bytes_never_escape_the_message(tmp_path):
    generator = torch.Generator().manual_seed(1)
    path = tmp_path / "noise.pt"
    for _ in range(200):
        path.write_bytes(b"\x80\x02" + bytes(torch.randint(0, 256, (40,), generator=generator).tolist()))
        with pytest.raises(RuntimeError, match="truncated, damaged"):
            read_state_dict(path)


def test_a_file_with_code_in_it_is_refused_unexecuted(tmp_path):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"weight": Code()}, tmp_path / "code.pt")
    with pytest.raises(RuntimeError, match="cannot be read"):
        read_state_dict(tmp_path / "code.pt")
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_architecture_are_refused_with_the_tensors_that_differ(
    state, load, tmp_path, model_name
):
    wrong = {name: value for name, value in state.items() if not name.startswith("transformer.resblocks.3.")}
    wrong["visual.proj"] = torch.zeros(48, 16)
    wrong["visual.head.bias"] = torch.zeros(2)
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(RuntimeError) as error:
        load(tmp_path / "wrong.pt")
    text = str(error.value)
    assert "transformer.resblocks.3.attn.in_proj_bias is missing" in text
    assert "and 9 more" in text and f"no weights of {model_name}" in text and "--model_name" in text


def test_a_wrong_shape_and_an_unknown_tensor_are_named(state, load, tmp_path):
    state["visual.proj"], state["visual.head.bias"] = torch.zeros(48, 16), torch.zeros(2)
    torch.save(state, tmp_path / "wrong.pt")
    wanted = r"visual.head.bias is unknown; visual.proj is \(48, 16\), .* has \(32, 16\)"
    with pytest.raises(RuntimeError, match=wanted):
        load(tmp_path / "wrong.pt")


def test_a_demo_config_lies_beside_the_code():
    config = json.loads(
        (weights_file.HERE / "model_configs" / "ViT-Tiny-8-demo.json").read_text(encoding="utf-8")
    )
    assert config["vision_cfg"]["patch_size"] == 8 and config["text_cfg"]["vocab_size"] == 49408


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A TorchScript archive of a little tower in half precision."""
    path = tmp_path_factory.mktemp("archives") / "tower.pt"
    torch.manual_seed(0)
    torch.jit.script(Tower().half()).save(path)
    return path


@pytest.mark.bit_equality
def test_the_weights_of_an_archive_are_those_torch_would_load(archive, tmp_path):
    traced = tmp_path / "traced.pt"
    torch.jit.trace(Tower().eval(), torch.zeros(1, 3, 4, 4)).save(traced)
    for path in (archive, traced):
        found, wanted = read_state_dict(path), torch.jit.load(path).state_dict()
        assert set(found) == set(wanted) and len(wanted) > 10 and found.sha256 == sha256(path)
        for name, value in wanted.items():
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_code_in_an_archive_never_runs(tmp_path):
    written = tmp_path / "written"
    torch.jit.script(WithTrap(str(written))).save(tmp_path / "trap.pt")
    with pytest.raises(DamagedFile, match=r"WithTrap|Trap packs its values by code of its own"):
        read_state_dict(tmp_path / "trap.pt")
    assert not written.exists()
    torch.jit.load(tmp_path / "trap.pt")
    assert written.exists()  # the archive is one that would have


def test_an_archive_given_as_the_backbone_by_flag_or_variable_runs_no_code(model_name, tmp_path, monkeypatch):
    torch.jit.script(WithTrap(str(tmp_path / "written"))).save(tmp_path / "trap.pt")
    monkeypatch.setenv("AACLIP_CLIP_WEIGHTS", str(tmp_path / "trap.pt"))
    for given in (None, tmp_path / "trap.pt"):
        with pytest.raises(DamagedFile, match="trap.pt .*--clip_weights"):
            create_model(model_name, 32, "openai", clip_weights=given)
    assert not (tmp_path / "written").exists()


def test_pickles_that_call_are_refused_in_every_kind_of_file(archive, tmp_path):
    """Every ninth payload; tests/promises/payloads.py has all of them."""
    written, path = tmp_path / "written", tmp_path / "payload.pt"
    whole = archive.read_bytes()
    for name, data in list(payloads(written))[::9]:
        for content in (torch_file(data), torchscript_file(whole, data), data):
            path.write_bytes(content)
            with pytest.raises(DamagedFile, match="payload.pt"):
                read_state_dict(path)
            assert not written.exists(), name


def storage(dtype, key, count):
    return f"(X\x07\0\0\0storagectorch\n{dtype}\n".encode() + text(key) + text("cpu") + integer(count) + b"tQ"


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def integer(value):
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def tower_with(archive, data_pkl):
    """The archive with another data.pkl, whose class is M."""
    source = b'class M(Module):\n  __parameters__ = ["weight", ]\n  __buffers__ = []\n'

    def with_source(members):
        return members | {"tower/code/__torch__.py": source}

    return rewritten(torchscript_file(archive.read_bytes(), data_pkl), with_source)


def module_with(record, offset, size, stride):
    """data.pkl of a module whose one tensor `weight` is described so."""
    numbers = b"(" + b"".join(map(integer, size)) + b"t(" + b"".join(map(integer, stride)) + b"t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + record + integer(offset) + numbers
    return b"\x80\x02c__torch__\nM\n)\x81}" + text("weight") + tensor + b"\x89NtRsb."


@pytest.mark.parametrize(
    ("record", "offset", "size", "stride"),
    [
        (storage("FloatStorage", "0", 1 << 40), 0, [1], [1]),
        (storage("HalfStorage", "../0", 1), 0, [1], [1]),
        (storage("HalfStorage", "99", 1), 0, [1], [1]),
        (storage("UntypedStorage", "0", 1), 0, [1], [1]),
        (storage("HalfStorage", "0", 1), 1, [1], [1]),
        (storage("HalfStorage", "0", 1), 0, [2], [1]),
        (storage("HalfStorage", "0", 1), 0, [1 << 40], [0]),
        (storage("HalfStorage", "0", 1), -1, [1], [1]),
        (storage("HalfStorage", "0", 1), 0, [1], [-1]),
        (storage("HalfStorage", "0", 1), 0, [1, 1], [1]),
        (b"N", 0, [1], [1]),
    ],
)
def test_a_described_tensor_stays_inside_its_record(archive, tmp_path, record, offset, size, stride):
    path = tmp_path / "a.pt"
    path.write_bytes(tower_with(archive, module_with(storage("HalfStorage", "0", 1), 0, [1], [1])))
    assert read_state_dict(path)["weight"].shape == (1,)  # the description itself is right
    path.write_bytes(tower_with(archive, module_with(record, offset, size, stride)))
    with pytest.raises(DamagedFile, match="cannot be read as CLIP weights"):
        read_state_dict(path)


def test_a_changed_value_in_an_archive_is_seen(archive, tmp_path):
    data = bytearray(archive.read_bytes())
    data[data.index(b"/data/1") + 64 + 8] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(DamagedFile, match="(?i)bad crc"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"model_state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {name.replace("visual.", "visual._orig_mod."): value for name, value in state.items()},
        lambda state: {
            name.replace("resblocks.0.", "resblocks.0._checkpoint_wrapped_module."): value
            for name, value in state.items()
        },
        lambda state: {f"_forward_module.module.{name}": value for name, value in state.items()},
        lambda state: (
            {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in state.items()}
        ),
        lambda state: {"module": {f"clip_model.{name}": value for name, value in state.items()}},
        lambda state: {
            name if name.startswith(("visual.", "logit")) else f"text.{name}": value
            for name, value in state.items()
        },
    ],
    ids=[
        "compiled",
        "compiled in DDP",
        "DDP compiled",
        "Lightning",
        "model",
        "nested",
        "one tower",
        "activation checkpoints",
        "Fabric",
        "average of weights",
        "holder of a CLIP",
        "custom text",
    ],
)
def test_a_backbone_saved_from_a_wrapper_loads(state, load, tmp_path, wrap):
    torch.save(wrap(state), tmp_path / "wrapped.pt")
    assert_same(load(tmp_path / "wrapped.pt"), state, rtol=0, atol=0)


def test_two_tensors_that_a_prefix_kept_apart_are_refused(state, load, tmp_path):
    torch.save(state | {"_orig_mod.logit_scale": state["logit_scale"]}, tmp_path / "twice.pt")
    with pytest.raises(DamagedFile, match="two of its tensors have one name"):
        load(tmp_path / "twice.pt")


def test_another_librarys_layout_is_named(load, tmp_path):
    torch.save({"vision_model.embeddings.class_embedding": torch.zeros(2)}, tmp_path / "hf.pt")
    with pytest.raises(
        RuntimeError, match="has Hugging Face's CLIPModel layout, which is not read here: give"
    ):
        load(tmp_path / "hf.pt")
    assert "timm" in foreign_layout(["blocks.0.attn.qkv.weight"]) and foreign_layout(["visual.proj"]) is None
    assert "timm" in foreign_layout(["visual.trunk.blocks.0.attn.qkv.weight"])
    assert "two encoders apart" in foreign_layout(["text_encoder.transformer.resblocks.0.ln_1.weight"])


def test_openais_published_files_are_known_by_their_hash_and_both_names_of_one_find_it(monkeypatch, tmp_path):
    known = published_as("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02")
    assert known == "ViT-L-14-336px.pt" and published_as("0" * 64) is None
    monkeypatch.setitem(weights_file.LOCAL_FILES, "ViT-L-14-336", tmp_path / "ViT-L-14-336px.pt")
    (tmp_path / "ViT-L-14-336px.pt").touch()
    for name in ("ViT-L-14-336-quickgelu", "ViT-L/14@336px", "ViT-L-14-336px", "ViT-L-14@336"):
        assert find_weights(name) == tmp_path / "ViT-L-14-336px.pt", name


def test_names_of_one_architecture_are_one_name():
    for name in ("ViT-L/14@336px", "ViT-L-14-336px", "ViT-L-14-336", "ViT-L-14@336px.pt"):
        assert architecture_name(name) == "ViT-L-14-336"
    assert architecture_name("ViT-L/14@336px-quickgelu") == "ViT-L-14-336-quickgelu"
    assert [architecture_name(name) for name in ("ViT-B/32", "ViT-Tiny-8-demo", "hf-hub:a/b")] == [
        "ViT-B-32",
        "ViT-Tiny-8-demo",
        "hf-hub:a/b",
    ]
    settings = parse("", {"model": ModelSettings}, ["--model_name", "ViT-L/14@336px"])
    assert settings.model.model_name == "ViT-L-14-336"


def test_a_misspelled_architecture_is_answered_with_the_one_meant():
    with pytest.raises(ValueError, match=r"unknown to open_clip \(do you mean .*ViT-L-14-336"):
        create_model("vit_l_14_336", 28)


def test_a_safetensors_file_replaced_while_it_is_read_is_refused(weights, load, tmp_path, monkeypatch):
    path, read = tmp_path / "a.safetensors", weights_file.load_safetensors
    path.write_bytes(weights.read_bytes())

    def replaced(*args):
        state = read(*args)
        (tmp_path / "new").write_bytes(weights.read_bytes())
        (tmp_path / "new").replace(path)
        return state

    monkeypatch.setattr(weights_file, "load_safetensors", replaced)
    with pytest.raises(ValueError, match="a.safetensors was replaced or written to while it was read"):
        load(path)


def test_the_network_lives_in_the_memory_its_file_was_read_into(weights, model_name, state, monkeypatch):
    read, places = weights_file.read_state_dict, {}

    def noted(path):
        found = read(path)
        places.update({name: value.data_ptr() for name, value in found.items()})
        return found

    monkeypatch.setattr(weights_file, "read_state_dict", noted)
    clip = create_model(model_name, 32, "openai", clip_weights=weights)
    assert {name: value.data_ptr() for name, value in clip.named_parameters()} == places
    assert not any(value.is_meta for value in (*clip.parameters(), *clip.buffers()))
    assert torch.equal(clip.attn_mask, open_clip.create_model(model_name).attn_mask)


def test_a_file_changed_after_it_was_read_changes_no_weight(weights, load, state, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(weights.read_bytes())
    found = load(path)
    with open(path, "r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert_same(found, state, rtol=0, atol=0)


def test_transposed_and_shared_tensors_of_a_file_become_weights_of_their_own(load, state, tmp_path):
    odd = {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in state.items()}
    flat = torch.cat([torch.zeros(1), state["ln_final.weight"]])
    torch.save(odd | {"ln_final.weight": flat[1:]}, tmp_path / "odd.pt")
    found = load(tmp_path / "odd.pt")
    assert_same(found, state, rtol=0, atol=0)
    for value in found.values():
        assert value.is_contiguous() and value.data_ptr() % 64 == 0
        assert value.untyped_storage().nbytes() == value.nbytes


LOADED = """
import json, re, sys, time
from model.clip import create_model

def memory(kind):
    return int(re.search(kind + r":\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024

start, begin = memory("VmRSS"), time.process_time()
clip = create_model("ViT-L-14-336", 518, "openai", clip_weights=sys.argv[1])
size = sum(value.nbytes for value in clip.parameters())
print(json.dumps([(memory("VmHWM") - start) / size, time.process_time() - begin]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["safetensors", "half.pt"])
def test_a_vit_l_loads_in_1_3_times_its_memory_and_5_seconds(tmp_path, kind):
    path = tmp_path / f"large.{kind}"
    values = open_clip.create_model("ViT-L-14-336").state_dict()
    if kind == "safetensors":
        save_file(values, path)
    else:
        torch.save({name: value.half() for name, value in values.items()}, path)
    del values
    run = [sys.executable, "-c", LOADED, str(path)]
    told = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    path.unlink()
    peak, cpu_seconds = json.loads(told.splitlines()[-1])
    assert peak < 1.3 and cpu_seconds < 5
