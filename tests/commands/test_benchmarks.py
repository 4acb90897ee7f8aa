"""The benchmarks run; what they measure is looked at where they are used."""

import json

import pytest
import torch

from benchmarks import cross_attention_cost, interruption_cost, loader, training_step
from benchmarks import metrics as metrics_benchmark


def test_the_cost_benchmark_counts_parameters_and_times_both_stages(capsys):
    cross_attention_cost.main(["--random_weights", "--img_size", "64", "--repeats", "1", "--device", "cpu"])
    told = json.loads(capsys.readouterr().out)
    assert (told["text_cross_attn parameters"], told["image_cross_attn parameters"]) == (66048, 82496)
    assert told["stage 1"]["ratio"] > 0 and told["stage 2"]["ratio"] > 0
    assert told["stage 2"]["and self-reference ratio"] > 0


def test_the_metrics_benchmark_sets_the_three_side_by_side_and_states_every_difference(
    tmp_path, monkeypatch, capsys
):
    peaks = iter([100, 150, 200, 204])
    monkeypatch.setattr(metrics_benchmark, "peak_of", lambda *_: {"start": 50.0, "peak": next(peaks)})
    flags = ["--images", "6", "--side", "96", "--repeats", "1", "--few", "100", "--many", "1100"]
    metrics_benchmark.main([*flags, "--out", str(tmp_path)])
    told = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    speed, memory = told["speed"], told["memory"]
    assert set(speed["cpu seconds"]) == {"scikit-learn", "exact", "binned"}
    assert max(speed["exact minus scikit-learn"].values()) < 1e-12
    for key, error in speed["binned minus exact"].items():
        assert error <= speed["bound"][key] < 1e-3
    assert (
        memory["binned"]["growth percent"] == 2
        and memory["binned"]["bytes per image"] == 4 * 2**20 / 1000 // 1
    )
    table = (tmp_path / "metrics.md").read_text(encoding="utf-8")
    assert (
        table in capsys.readouterr().out and f"`python -m benchmarks.metrics {' '.join(flags)} --out" in table
    )


@pytest.mark.parametrize("way", ["exact", "binned"])
def test_the_metrics_benchmarks_process_tells_its_peak_before_and_after(way, capsys):
    metrics_benchmark.main(["--child", way, "6", "64"])
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["start"] <= told["peak"]


def test_waits_can_only_be_looked_for_on_a_gpu():
    with pytest.raises(ValueError, match="--sync_debug on cpu: only CUDA can tell who waits for it"):
        cross_attention_cost.main(["--random_weights", "--img_size", "64", "--device", "cpu", "--sync_debug"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_training_step_waits_for_the_gpu(capsys):
    flags = ["--random_weights", "--img_size", "64", "--repeats", "1", "--device", "cuda", "--sync_debug"]
    cross_attention_cost.main(flags)
    told = json.loads(capsys.readouterr().out)
    assert (told["stage 1 steps without a wait"], told["stage 2 steps without a wait"]) == (2, 3)


def test_the_interruption_benchmark_times_guard_and_save(capsys):
    interruption_cost.main(["--random_weights", "--img_size", "64", "--quick", "--device", "cpu"])
    told = json.loads(capsys.readouterr().out)
    assert told["step s"] > 0 and told["save s"] > 0 and told["save MB"] > 0


def test_the_step_benchmark_compares_aa_clips_operations_with_the_same_losses(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(training_step, "peak_of", lambda args, stage, way: 1.0)
    training_step.main(["--quick", "--device", "cpu", "--memory", "--out", str(tmp_path)])
    assert "| stage 2 | with `--activation_checkpointing full` |" in capsys.readouterr().out
    told = json.loads((tmp_path / "training_step.json").read_text())
    for stage in ("stage 1", "stage 2"):
        theirs, ours = (told[stage]["ways"][way] for way in training_step.WAYS[:2])
        assert told[stage]["losses apart"] < 1e-5
        assert theirs["TFLOP"] > ours["TFLOP"] > 0 and ours["seconds"] > 0
    none, _, full = (told["stage 2"]["ways"][way]["TFLOP"] for way in training_step.WAYS[1:])
    assert full > none  # the forward pass once more


def test_a_matrix_product_counts_two_flops_a_multiplication():
    left = torch.ones(2, 3, device="meta", requires_grad=True)
    right = torch.ones(3, 4, device="meta")
    counted = training_step.counted(lambda: (left @ right.detach()).sum(), [left, right])
    assert counted == 2 * (2 * 2 * 3 * 4)  # forward, and the gradient to the left one alone


def test_the_loader_benchmark_times_every_step_and_says_what_was_measured_and_what_computed(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(loader, "timed_rates", lambda *_: {loader.FILES: {4: 15.0}, loader.CACHED: {4: 40.0}})
    flags = ["--images", "4", "--side", "64", "--img_size", "48", "--repeats", "1", "--out", str(tmp_path)]
    loader.main(flags)
    told = json.loads((tmp_path / "loader.json").read_text(encoding="utf-8"))
    assert len(told["steps"]) == 12 and min(told["steps"].values()) > 0
    table = (tmp_path / "loader.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out and f"`python -m benchmarks.loader {' '.join(flags)}`" in table
    assert "15.0 images/s measured with 4 workers" in table and "(computed)" in table
    slow = {"whole item, from files": 250.0, "whole item, with --image_cache": 50.0}
    rates = {loader.FILES: {4: 15.0}, loader.CACHED: {4: 40.0}}
    files, cached = loader.verdict({"steps": slow, "rates": rates, "cores": 2})
    assert files.count("not enough") == 2 and "would give 16 (computed)" in files
    assert "not enough" not in cached and "would give 80 (computed)" in cached


def test_the_loader_benchmark_loads_every_picture_with_every_number_of_workers(tmp_path):
    samples = loader.draw_pictures(tmp_path, 4, 48)
    rates = loader.timed_rates(samples, 32, tmp_path / "cache", [0, 1], 1)
    assert set(rates) == {loader.FILES, loader.CACHED}
    assert all(rate > 0 for way in rates.values() for rate in way.values()) and set(rates[loader.FILES]) == {
        0,
        1,
    }
