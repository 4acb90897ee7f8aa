"""config.yaml and manifest.json of real runs: written at the start, one start more when the run goes on."""

import json
import shutil

import pytest
import torch
import yaml

import test as test_script
import train as train_script
from files.command import Refusal
from run_folder import manifest


def content(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_a_run_keeps_every_flag_and_what_it_was_made_of(trained, weights):
    config = yaml.safe_load((trained / "config.yaml").read_text(encoding="utf-8"))
    stored = torch.load(trained / "image_adapter.pth", weights_only=True)
    assert config == stored["settings"]
    told, (start,) = content(trained), content(trained)["starts"]
    assert {key: told[key] for key in ("run", "kind", "rows", "prompts", "base")} == {
        key: stored["identity"][key] for key in ("run", "kind", "rows", "prompts", "base")
    }
    assert told["backbone"] == stored["backbone"]
    assert (
        start["versions"].items() >= stored["versions"].items()
        and start["threads"] == torch.get_num_threads()
    )
    assert start["flags"][:2] == ["--model_name", config["model_name"]] and "--image_epoch" in start["flags"]
    assert start["machine"]["device"] == config["device"] or config["device"] is None
    assert len(start["git"].get("commit", "")) == 40 or "unknown" in start["git"]


def test_a_run_goes_on_from_its_own_configuration_and_its_manifest_has_one_start_more(trained_copy):
    config = str(trained_copy / "config.yaml")
    before = content(trained_copy)
    train_script.main(["--config", config, "--save_path", str(trained_copy), "--image_epoch", "3"])
    now = content(trained_copy)
    assert now["starts"][:1] == before.pop("starts") and len(now.pop("starts")) == 2 and now == before
    assert yaml.safe_load((trained_copy / "config.yaml").read_text(encoding="utf-8"))["image_epoch"] == 3
    assert torch.load(trained_copy / "image_adapter.pth", weights_only=True)["epoch"] == 3


def test_a_configuration_of_another_run_is_refused_and_leaves_both_files(trained_copy):
    config = str(trained_copy / "config.yaml")
    before = [(trained_copy / name).read_bytes() for name in ("config.yaml", "manifest.json")]
    with pytest.raises(Refusal, match="--text_lr was 0.001, is 0.5"):
        train_script.main(["--config", config, "--save_path", str(trained_copy), "--text_lr", "0.5"])
    assert [(trained_copy / name).read_bytes() for name in ("config.yaml", "manifest.json")] == before


def test_a_test_takes_its_flags_from_a_file(trained_copy, data_root, weights, model_name, tmp_path):
    values = {"dataset": "MVTec", "data_root": str(data_root), "clip_weights": str(weights), "epoch": 1}
    values |= {"model_name": model_name, "save_path": str(trained_copy)}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    test_script.main(["--config", str(tmp_path / "test.yaml")])
    metrics = json.loads((trained_copy / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["MVTec"]) == ["image_adapter_1.pth"]


def test_a_damaged_manifest_is_begun_anew_with_a_warning_and_another_runs_is_replaced(tmp_path, lines):
    logger, messages = lines
    made_of, path = {"run": "one", "kind": "baseline"}, tmp_path / "manifest.json"
    for number, text in enumerate(("{", "[]", '{"starts": 3}')):
        path.write_text(text, encoding="utf-8")
        manifest.add_start(tmp_path, dict(made_of), {"at": number}, logger)
        assert "is no manifest" in messages.pop() and content(tmp_path)["starts"] == [{"at": number}]
    manifest.add_start(tmp_path, dict(made_of), {"at": 9}, logger)
    assert [start["at"] for start in content(tmp_path)["starts"]] == [2, 9]
    manifest.add_start(tmp_path, {"run": "two"}, {"at": 10}, logger)
    assert content(tmp_path) == {"run": "two", "starts": [{"at": 10}]} and not messages


def test_git_is_asked_for_commit_and_changes_and_its_absence_is_said(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    manifest.git(tmp_path, "init", "-q")
    assert "fatal" in manifest.git_state(tmp_path)["unknown"]  # no commit yet
    (tmp_path / "a.py").write_text("one\n")
    manifest.git(tmp_path, "add", "a.py")
    names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    manifest.git(tmp_path, *names, "commit", "-q", "-m", "one")
    clean = manifest.git_state(tmp_path)
    assert clean["changed"] == [] and "diff_sha256" not in clean and len(clean["commit"]) == 40
    (tmp_path / "a.py").write_text("two\n")
    (tmp_path / "new.py").write_text("new\n")
    changed = manifest.git_state(tmp_path)
    assert changed["changed"] == ["a.py", "new.py"] and len(changed["diff_sha256"]) == 64
    (tmp_path / "environment").mkdir()  # of which the repository around it holds nothing
    assert "does not hold it" in manifest.git_state(tmp_path / "environment")["unknown"]
    monkeypatch.setenv("PATH", "")
    assert "FileNotFoundError" in manifest.git_state(tmp_path)["unknown"]
