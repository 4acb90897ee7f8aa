"""AA-CLIP's checkpoints, as it writes them, and its test.py command lines: docs/drop-in.md."""

import json
import zipfile

import pytest
import torch
from torch import nn

import test
import train
from files.atomic import sha256
from model.adapter import AdaptedCLIP
from run_folder.loaded_run import load_run

EPOCHS = (1, 2, 9, 10)


def trained_by_aa_clip(clip, folder, parallel):
    """Write text_adapter.pth and image_adapter_{n}.pth with AA-CLIP's three keys each, tensors tagged cuda:0.

    Returns:
        the model whose weights the files of the last epoch hold.
    """
    torch.manual_seed(5)
    model = AdaptedCLIP(clip, text_adapt_until=2, image_adapt_until=2)

    def state(module):
        wrapped = nn.DataParallel(module) if parallel else module
        return wrapped.state_dict()

    def save(name, content):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
            torch.save(content, folder / name)
        with zipfile.ZipFile(folder / name) as archive:
            (pickled,) = [entry for entry in archive.namelist() if entry.endswith("data.pkl")]
            assert b"cuda:0" in archive.read(pickled)

    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.Adam(model.text_adapter.parameters(), lr=1e-5, betas=(0.5, 0.999))
    text = {"epoch": 5, "text_adapter": state(model.text_adapter), "text_optimizer": optimizer.state_dict()}
    save("text_adapter.pth", text)
    optimizer = torch.optim.Adam(model.image_adapter.parameters(), lr=5e-4, betas=(0.5, 0.999))
    for epoch in EPOCHS:
        with torch.no_grad():
            for parameter in model.image_adapter.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        image = {
            "epoch": epoch,
            "image_adapter": state(model.image_adapter),
            "image_optimizer": optimizer.state_dict(),
        }
        save(f"image_adapter_{epoch}.pth", image)
    return model


@pytest.fixture(params=[False, True], ids=["plain", "DataParallel"])
def from_cuda(request, clip, tmp_path):
    """(folder of a run of AA-CLIP's, its model after the last epoch)."""
    folder = tmp_path / "run"
    return folder, trained_by_aa_clip(clip, folder, request.param)


@pytest.fixture
def run(clip, tmp_path):
    """Folder of a run of AA-CLIP's."""
    trained_by_aa_clip(clip, tmp_path / "run", parallel=False)
    return tmp_path / "run"


def log_of(folder):
    return (folder / "test.log").read_text(encoding="utf-8")


def evaluated(folder):
    """Names of the checkpoints in metrics.json."""
    return list(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["MVTec"])


@pytest.mark.bit_equality
def test_a_run_saved_on_a_gpu_is_tested_without_one(from_cuda, flags):
    folder, model = from_cuda
    test.main([*flags, "--device", "cpu"])
    assert evaluated(folder) == ["image_adapter_10.pth"]  # the last by number, not by name
    options = ["--model_name", "--clip_weights", "--text_adapt_until", "--image_adapt_until", "--img_size"]
    typed = [word for option in options for word in (option, flags[flags.index(option) + 1])]
    found = load_run(folder, flags=test.parse("", test.GROUPS, typed), device="cpu").model
    for own, loaded in ((model.text_adapter, found.text_adapter), (model.image_adapter, found.image_adapter)):
        assert own.state_dict().keys() == loaded.state_dict().keys()
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in own.state_dict().items())


def test_a_run_saved_on_a_gpu_goes_on_without_one(from_cuda, train_flags):
    folder, _ = from_cuda
    (folder / "image_adapter_10.pth").rename(folder / "image_adapter.pth")
    train.main([*train_flags, "--device", "cpu", "--text_epoch", "6", "--image_epoch", "11"])
    content = torch.load(folder / "image_adapter_11.pth", weights_only=True)
    assert content["epoch"] == 11 and not any(key.startswith("module.") for key in content["image_adapter"])
    assert torch.load(folder / "text_adapter.pth", weights_only=True)["epoch"] == 6


def test_a_prefix_on_some_keys_alone_is_no_data_parallel(run, flags):
    content = torch.load(run / "image_adapter_10.pth", weights_only=True, map_location="cpu")
    state = content["image_adapter"]
    state["module.det_proj.fc.weight"] = state.pop("det_proj.fc.weight")
    torch.save(content, run / "image_adapter_10.pth")
    with pytest.raises(RuntimeError, match="module.det_proj.fc.weight is not expected"):
        test.main(flags)


def test_test_log_keeps_the_lines_others_scripts_read(run, flags):
    test.main(flags)
    log = log_of(run)
    messages = [line.split(" INFO ", 1)[1] for line in log.splitlines() if " INFO " in line]
    (arguments,) = [line for line in messages if line.startswith("args: ")]
    assert "'dataset': 'MVTec'" in arguments and f"'save_path': '{run}'" in arguments
    assert "load model from epoch 10: image_adapter_10.pth" in messages
    assert "MVTec with image_adapter_10.pth @32px" in messages
    rows = log.split(" INFO final results:\n")[1].splitlines()
    assert rows[0].split()[:2] == ["class", "name"]
    assert [row.split()[0] for row in rows[1:4]] == ["bottle", "screw", "Average"]


def test_epoch_evaluates_that_numbered_checkpoint_and_says_so(run, flags):
    hashes = sha256(run / "image_adapter_9.pth")
    (result,) = test.main([*flags, "--epoch", "9"])
    assert evaluated(run) == ["image_adapter_9.pth"] and sha256(run / "image_adapter_9.pth") == hashes
    assert "load model from epoch 9: image_adapter_9.pth" in log_of(run)
    assert "load model from epoch 10" not in log_of(run)
    (named,) = test.main([*flags, "--checkpoint", str(run / "image_adapter_9.pth")])
    assert named["classes"] == result["classes"] != test.main(flags)[0]["classes"]


def test_an_epoch_that_is_not_there_is_refused_with_those_that_are(run, flags, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image_adapter_15.pth .* n in \[1, 2, 9, 10\]"):
        test.main([*flags, "--epoch", "15"])
    with pytest.raises(FileNotFoundError, match="no numbered checkpoint .a feedback run takes --loop."):
        test.main([*flags, "--save_path", str(tmp_path / "empty"), "--epoch", "1"])


@pytest.mark.parametrize("other", [["--all"], ["--loop", "1"], ["--checkpoint", "image_adapter_1.pth"]])
def test_an_epoch_and_another_choice_of_checkpoints_are_refused(run, flags, other):
    with pytest.raises(ValueError, match="--epoch 9 chooses one checkpoint"):
        test.main([*flags, "--epoch", "9", *other])


def test_raw_clip_has_no_epochs(run, flags):
    with pytest.raises(ValueError, match="--epoch 9: --raw_clip has no epochs"):
        test.main([*flags, "--epoch", "9", "--raw_clip"])


@pytest.mark.bit_equality
def test_text_norm_weight_is_accepted_at_test_and_changes_nothing(run, flags):
    (without,), (typed,) = (test.main([*flags, *more]) for more in ([], ["--text_norm_weight", "0.7"]))
    assert typed["classes"] == without["classes"]
    assert "without effect" not in log_of(run)  # AA-CLIP's files do not say what they were trained with


def test_a_text_norm_weight_other_than_the_trainings_is_said_to_do_nothing(train_flags, flags, tmp_path):
    train.main([*train_flags, "--text_norm_weight", "0.3"])
    test.main([*flags, "--text_norm_weight", "0.3"])
    assert "without effect" not in log_of(tmp_path / "run")
    test.main(flags)
    assert "without effect" not in log_of(tmp_path / "run")
    test.main([*flags, "--text_norm_weight", "0.1"])
    assert "--text_norm_weight 0.1: a weight of training, without effect here; this run has 0.3" in log_of(
        tmp_path / "run"
    )
