"""train_semantic_fill.py as a user runs it."""

import ast
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from safetensors.torch import load_file
from semantic_fill_world import flags, items, triptychs, write_folders

import synthesis
from studies import semantic_fill_toy, toy_arm
from synthesis import train_semantic_fill
from synthesis.fill_run import natural_fill_mask
from synthesis.latents import fill_mask_of
from synthesis.sampling import load_filler
from synthesis.weights import find_checkpoint, read_config

ROOT = Path(synthesis.__file__).resolve().parents[1]
DETECTOR = ("files", "model", "dataset", "metrics", "run_folder", "training", "evaluation", "comparison")
OPTIONAL = {"synthesis", "diffusers", "peft", "accelerate", "transformers", "prodigyopt"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("triptychs"), triptychs(3))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of 3 steps."""
    folder = tmp_path_factory.mktemp("run")
    train_semantic_fill.main(flags(data, folder, 3))
    return folder


def test_a_run_leaves_its_files_and_samples_from_them(run):
    folder = find_checkpoint(run)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "optimizer.pth",
        "prompt_embeddings.safetensors",
        "pytorch_lora_weights.safetensors",
        "semantic_cross_attention.safetensors",
    ]
    assert read_config(folder)["fill_mask"] == "semantic"
    batch = triptychs(1)
    target = load_filler("tiny", run).fill(
        batch["visible"], batch["semantic"], torch.ones(1, 1, 32, 32), None, [0], steps=1
    )
    assert target.shape == (1, 3, 32, 32)


def test_a_run_keeps_its_settings_and_every_start(data, tmp_path):
    folder = tmp_path / "fill"
    train_semantic_fill.main(flags(data, folder, 1))
    first, settings = json.loads((folder / "manifest.json").read_text()), (folder / "config.yaml").read_text()
    assert first["rows"]["rows"] == 3 and len(first["starts"]) == 1
    train_semantic_fill.main(["--config", str(folder / "config.yaml")])
    again = json.loads((folder / "manifest.json").read_text())
    assert len(again.pop("starts")) == 2 and again == {key: first[key] for key in again}
    assert (folder / "config.yaml").read_text() == settings and "fill_mask: " in settings


def test_the_log_counts_what_is_trained_and_shows_the_scale(run):
    log = (run / "train.log").read_text()
    assert "Added 33088 semantic cross-attention parameters to optimizer" in log
    assert "layout 33k, positions local" in log
    assert "LoRA (rank 4) parameters to optimizer" in log
    lines = [line for line in log.splitlines() if "semantic scale" in line]
    assert len(lines) == 3 and "step 3/3 loss" in lines[-1]
    scale = float(lines[-1].split("semantic scale ")[1].split()[0])
    assert 0 < scale < 1


def test_the_scripts_resume_is_the_uninterrupted_run(data, run, tmp_path):
    for steps in (1, 3):
        train_semantic_fill.main(flags(data, tmp_path, steps))
    for name in ("semantic_cross_attention.safetensors", "pytorch_lora_weights.safetensors"):
        resumed, whole = load_file(find_checkpoint(tmp_path) / name), load_file(find_checkpoint(run) / name)
        assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert "resumed checkpoint-0000001" in (tmp_path / "train.log").read_text()


def test_a_finished_run_is_left_alone(data, run):
    before = find_checkpoint(run).stat().st_mtime_ns
    train_semantic_fill.main(flags(data, run, 2))
    assert "nothing to do: 3 steps are trained" in (run / "train.log").read_text()
    assert find_checkpoint(run).stat().st_mtime_ns == before


def test_a_resume_with_other_flags_or_data_is_refused(data, run, tmp_path):
    with pytest.raises(ValueError, match="other settings .*semantic_layout 33k -> source"):
        train_semantic_fill.main(flags(data, run, 5, "--semantic_layout", "source"))
    more = write_folders(tmp_path / "more", triptychs(4))
    with pytest.raises(ValueError, match="examples 3 -> 4"):
        train_semantic_fill.main(flags(more, run, 5))


def test_a_cosine_run_cannot_be_given_another_end(data, tmp_path):
    cosine = ("--lr_schedule", "cosine", "--fill_share", "0.5")
    train_semantic_fill.main(flags(data, tmp_path, 2, *cosine))
    rates = [
        line.split(" lr ")[1].split()[0]
        for line in (tmp_path / "train.log").read_text().splitlines()
        if "semantic scale" in line
    ]
    assert rates == ["1.00e-03", "5.00e-04"]
    with pytest.raises(ValueError, match="other settings .*steps 2 -> 3"):
        train_semantic_fill.main(flags(data, tmp_path, 3, *cosine))


@pytest.mark.parametrize(
    ("more", "count"),
    [
        (("--semantic_layout", "source", "--semantic_pos", "none"), "Added 16897 semantic"),
        (("--semantic_layers", "2"), "Added 66176 semantic"),
        (("--semantic_layers", "0"), "Added 0 semantic"),
        (("--optimizer", "prodigy", "--lr", "1"), "Added 33088 semantic"),
        (("--dtype", "bfloat16", "--gradient_checkpointing"), "Added 33088 semantic"),
        (("--train_backbone", "--fill_mask", "panel"), "LoRA (rank 4) and backbone parameters"),
    ],
    ids=["source", "two layers", "no semantics", "prodigy", "bfloat16", "backbone"],
)
def test_every_variant_trains_and_its_log_says_so(data, tmp_path, more, count):
    train_semantic_fill.main(flags(data, tmp_path, 1, *more))
    assert count in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--size", "40", "--size 40: .*multiple of 16"),
        ("--steps", "0", "--steps 0: expected 1 or more"),
        ("--batch_size", "0", "--batch_size 0"),
        ("--text_drop", "1.5", "--text_drop 1.5: expected a share"),
        ("--semantic_drop", "-0.1", "--semantic_drop -0.1"),
        ("--fill_share", "1.5", "--fill_share 1.5: expected a share"),
        ("--gradient_clip", "0", "--gradient_clip 0.0: expected a positive"),
        ("--lr", "nan", "--lr nan"),
        ("--semantic_heads", "5", "--semantic_heads 5: must divide"),
        ("--lora_rank", "0", "--lora_rank 0"),
        ("--data", "no/such/folder", "no/such/folder"),
    ],
)
def test_bad_input_is_refused_with_flag_and_remedy(data, tmp_path, flag, value, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_semantic_fill.main(flags(data, tmp_path, 1, f"{flag}={value}"))


def test_weights_that_cannot_be_reached_stop_the_script_with_the_licence_notice(data, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="(?s)FLUX.1-Fill-dev: cannot load.*gated.*non-commercial"):
        train_semantic_fill.main(flags(data, tmp_path, 1, "--model", "black-forest-labs/FLUX.1-Fill-dev"))


def test_the_help_has_the_licence_notice(capsys):
    with pytest.raises(SystemExit):
        train_semantic_fill.main(["--help"])
    assert "non-commercial" in "".join(capsys.readouterr().out.split())


def test_black_and_white_maps_are_fill_masks_and_others_are_not():
    batch = triptychs(2)
    assert natural_fill_mask(items(batch)) == "semantic"
    coloured = {**batch, "semantic": batch["semantic"] * torch.tensor([1.0, 0.4, 1.0]).view(3, 1, 1)}
    assert natural_fill_mask(items(coloured)) == "panel"
    grey = {**batch, "semantic": batch["semantic"] * 0.4}
    assert natural_fill_mask(items(grey)) == "panel"
    one_empty = {**batch, "semantic": torch.stack((-torch.ones(3, 32, 32), batch["semantic"][1]))}
    assert natural_fill_mask(items(one_empty)) == "semantic"
    empty = {**batch, "semantic": -torch.ones_like(batch["semantic"])}
    assert natural_fill_mask(items(empty)) == "panel"


def test_without_the_optional_libraries_the_script_names_their_file(data, tmp_path, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("synthesis.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(
        ModuleNotFoundError, match="needs diffusers: pip install -r requirements-synthesis.txt"
    ):
        train_semantic_fill.main(flags(data, tmp_path, 1))


def test_the_toy_study_continues_arm_by_arm_and_keeps_its_settings(tmp_path):
    flags = [
        "--steps",
        "1",
        "--batch_size",
        "2",
        "--size",
        "16",
        "--train_pictures",
        "2",
        "--test_pictures",
        "2",
    ]
    flags += ["--out", str(tmp_path)]
    semantic_fill_toy.main([*flags, "--arms", "none"])
    before = (tmp_path / "none_seed0.json").stat().st_mtime_ns
    semantic_fill_toy.main([*flags, "--arms", "none", "source"])
    assert (tmp_path / "none_seed0.json").stat().st_mtime_ns == before
    table = (tmp_path / "table_seed0.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table] == ["arm", "--", "none", "source"]
    assert float(table[2].split("|")[3]) == 1
    with pytest.raises(ValueError, match="give another --out"):
        semantic_fill_toy.main([*flags, "--arms", "none", "--batch_size", "1"])


def test_the_toy_places_the_defect_at_random_and_overlap_measures_it():
    batch, mask = toy_arm.draw(64, 32, 0)
    assert torch.equal(fill_mask_of(batch["semantic"], "semantic"), mask)
    assert torch.equal(batch["visible"] * (1 - mask), batch["target"] * (1 - mask))
    assert mask.mean(0).max() < 0.5  # no place is a safe guess
    assert toy_arm.overlap(batch["target"], batch["visible"], mask) > 0.99
    assert toy_arm.overlap(batch["visible"], batch["visible"], mask) == 0


def imported_by(file):
    """First parts of the modules a source file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def test_the_detector_imports_nothing_of_semantic_fill():
    own = {"train_semantic_fill.py", "make_triptychs.py", "generate_anomalies.py"}
    files = [file for file in ROOT.glob("*.py") if file.name not in own]
    files += [file for room in DETECTOR for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 30 and "synthesis" in imported_by(ROOT / "train_semantic_fill.py")
    # Several processes alone import it, where they are joined; one process imports nothing.
    joined = ROOT / "training" / "acceleration.py"
    assert imported_by(joined) & OPTIONAL == {"accelerate"}
    others = [file for file in files if file != joined]
    assert {str(file): imported_by(file) & OPTIONAL for file in others if imported_by(file) & OPTIONAL} == {}
