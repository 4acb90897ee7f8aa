"""The benchmarks run; what they measure is looked at where they are used."""

import json
from unittest.mock import Mock

import pytest
import torch

from benchmarks import (
    cross_attention_cost,
    evaluation,
    gpu,
    interruption_cost,
    loader,
    loading,
    scaling,
    shared_work,
    training_step,
    workload,
)
from benchmarks import metrics as metrics_benchmark
from benchmarks.fake import fake_cuda
from benchmarks.flops import flops_of_step
from benchmarks.measure import OUT_OF_MEMORY, in_turn, told_by
from benchmarks.report import flattened, machine
from benchmarks.workload import (
    AA_CLIP,
    CLASSES,
    COMPILED,
    DATASET,
    FUSED,
    PROJECT,
    STEP_WAYS,
    TEST_WAYS,
    TINY,
    Workload,
    missing,
    random_batch,
    work_of,
)
from files.command import Refusal
from forward_utils import prompts_of
from model import compiled
from run_folder.processes import ALONE, Processes
from training.optimisation import parameters_of


@pytest.mark.slow
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


def test_the_interruption_benchmark_times_guard_and_save_and_keeps_what_it_prints(capsys, tmp_path):
    flags = ["--random_weights", "--img_size", "64", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    interruption_cost.main(flags)
    told = json.loads(capsys.readouterr().out)
    assert told["step s"] > 0 and told["save s"] > 0 and told["save MB"] > 0
    assert json.loads((tmp_path / "interruption_cost.json").read_text()) == told and told["threads"] == 1
    table = (tmp_path / "interruption_cost.md").read_text()
    assert f"`python -m benchmarks.interruption_cost {' '.join(flags)}`" in table
    assert f"| save MB | {told['save MB']} |" in table


def test_a_result_of_results_is_a_table_of_one_row_each():
    assert [*flattened({"a": 1, "b": {"c": {"d": 2}, "e": 3}})] == [("a", 1), ("b, c, d", 2), ("b, e", 3)]


@pytest.mark.slow
def test_the_step_benchmark_compares_aa_clips_operations_with_the_same_losses(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(training_step, "peak_told_by", lambda *_: 1.0)
    flags = ["--quick", "--img_size", "64", "--device", "cpu", "--ways", "plain", "full", "--memory"]
    training_step.main([*flags, "--out", str(tmp_path)])
    assert "| stage 2 | 2 | with `--activation_checkpointing full` | fp32 |" in capsys.readouterr().out
    for found in json.loads((tmp_path / "training_step.json").read_text())["stages"]:
        rows = {row["way"]: row for row in found["ways"]}
        theirs, ours = rows[AA_CLIP], rows[PROJECT]
        assert found["losses apart"] < 1e-5
        assert theirs["TFLOP"] > ours["TFLOP"] > 0 and ours["seconds"] > 0 and ours["peak MB"] == 1
        assert (theirs["waits"], ours["waits"]) == (4, 0)  # its focal loss makes its targets on the CPU
    assert rows["full"]["TFLOP"] > rows[PROJECT]["TFLOP"]  # the forward pass once more


@pytest.mark.slow
def test_the_evaluation_benchmark_scores_alike_and_states_the_share_of_the_metrics(tmp_path):
    evaluation.main(["--quick", "--img_size", "64", "--device", "cpu", "--profile", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "evaluation.json").read_text())
    (found,) = told["batches"]
    rows = {row["way"]: row for row in found["ways"]}
    assert tuple(rows) == TEST_WAYS and found["maps apart"] < 1e-5
    assert (
        rows["self-reference"]["TFLOP"] > 1.5 * rows[PROJECT]["TFLOP"]
    )  # a frozen pass beside the adapted one
    anchors = told["anchors"]
    assert anchors[AA_CLIP]["TFLOP"] > 3 * anchors[PROJECT]["TFLOP"]  # 77 tokens of every prompt
    assert 0 < told["metrics"][PROJECT]["share"] < 1
    (rows,) = json.loads((tmp_path / "evaluation_profile.json").read_text())["calls"].values()
    assert len(rows) == 15 and rows[0]["ms"] >= rows[1]["ms"] > 0 and sum(row["share"] for row in rows) <= 1


def test_the_scaling_benchmark_tells_how_each_line_grows(tmp_path, monkeypatch, capsys):
    points = [{"value": 2, "seconds": 1.0, "peak MB": 10.0, "start MB": 5.0}]
    points.append({"value": 4, "seconds": 4.0, "peak MB": 20.0, "start MB": 5.0})

    def told(module, *words):
        if module == scaling.MODULE:
            return dict.fromkeys(words[words.index("--child") + 2 :], points)
        count = words[2] if module == scaling.TORCHRUN[0] else "1"
        point = {"value": int(count), "seconds": 8 / int(count), "peak MB": 10.0, "start MB": 5.0}
        return dict.fromkeys(shared_work.LINES, point)

    monkeypatch.setattr(scaling, "told_by", told)
    scaling.main(["--quick", "--out", str(tmp_path)])
    rows = capsys.readouterr().out
    assert "| stage 2, this project | 2 → 4 px | 1.0 → 4.0 | value^2.0 | 10.0 → 20.0 (5.0) |" in rows
    shared = "1 → 2 processes | 8.0 → 4.0 | value^-1.0 | 10.0 → 10.0 (5.0) |"
    assert all(f"| {line} | {shared}" in rows for line in shared_work.LINES)
    with pytest.raises(ValueError, match=r"--images \[4, 2\]: expected rising values"):
        scaling.main(["--images", "4", "2"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"requirements-distributed.txt, or give --processes 1"):
        scaling.main(["--axes", "processes"])


def test_the_shares_of_two_processes_are_the_whole_batch():
    batch = random_batch(3, 8, torch.device("cpu"))
    assert shared_work.share_of(batch, ALONE) is batch
    first, second = (shared_work.share_of(batch, Processes(rank, 2)) for rank in (0, 1))
    for key in ("image", "mask", "label"):
        assert torch.equal(torch.cat([first[key], second[key]]), batch[key])
    assert first["class_name"] + second["class_name"] == batch["class_name"]
    assert (first["share"].sizes, first["file_name"]) == ([2, 1], ["0.png", "1.png", "2.png"])


def test_what_several_processes_share_is_timed_by_one_alone_too(capsys):
    shared_work.main([TINY, "64", "2"])
    told = json.loads(capsys.readouterr().out)
    assert tuple(told) == shared_work.LINES
    for point in told.values():
        assert point["value"] == 1 and point["seconds"] == point["seconds of all"] > 0
        assert 0 < point["start MB"] <= point["peak MB"]


@pytest.mark.parametrize(
    ("axis", "what"),
    [("images", scaling.BINNED), ("classes", scaling.TOGETHER), ("resolution", f"test, {PROJECT}")],
)
def test_a_line_of_the_scaling_benchmark_measures_each_value(axis, what, capsys):
    sizes = ["--images", "4", "9", "--classes", "1", "2", "--resolutions", "64", "72", "--side", "64"]
    scaling.main(["--child", axis, what, *sizes])
    points = json.loads(capsys.readouterr().out)[what]
    assert len(points) == 2 and all(point["seconds"] > 0 for point in points)
    assert points[0]["start MB"] <= points[0]["peak MB"] <= points[1]["peak MB"]


def test_the_loading_benchmark_tells_peak_and_seconds_of_a_start(tmp_path, monkeypatch, capsys):
    path = tmp_path / "float16.safetensors"
    loading.write_weights(path, TINY)
    loading.main(["--quick", "--child", str(path)])
    peak, processor, clock, size = json.loads(capsys.readouterr().out)
    assert peak > 0 and processor > 0 and clock > 0 and size == pytest.approx(47, abs=1)
    monkeypatch.setattr(loading, "told_by", lambda *_: [1.5, 2.0, 3.0, 47.0])
    loading.main(["--quick"])
    assert "| `.safetensors` in float32 | 47.1 | 1.5 × the network | 2.0 | 3.0 |" in capsys.readouterr().out


def test_without_a_gpu_its_benchmarks_are_refused_and_can_be_shown(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refusal, match="measures on a CUDA device, and torch sees none"):
        gpu.main([])
    gpu.main(["--dry_run"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 4 and all("--device cuda" in line and "ViT-L-14-336" in line for line in shown)


def test_every_command_for_a_gpu_is_understood(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ran = {}

    def run(name, flags, out):
        ran[name] = flags
        return int(name == "evaluation")

    monkeypatch.setattr(gpu, "run", run)
    with pytest.raises(Refusal, match=f"^evaluation failed; {tmp_path} has what they printed"):
        gpu.main(["--out", str(tmp_path)])
    steps = training_step.parsed(ran["training_step"])
    assert (steps.batch_sizes, steps.precisions) == ([2, 16, 64], ["fp32", "tf32", "bf16"])
    assert evaluation.parsed(ran["evaluation"]).precisions == ["fp32", "tf32"]
    for benchmark in (cross_attention_cost, interruption_cost):
        name = benchmark.__name__.split(".")[-1]
        with pytest.raises(ValueError, match="--device cuda: torch cannot use it"):
            benchmark.main(ran[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_projects_steps_are_built_and_run_forward_on_a_fake_gpu(precision):
    for name in CLASSES:
        prompts_of(DATASET, name)
    with fake_cuda():
        work = Workload(TINY, 64, 2, "cuda", precision)
        for stage in STEP_WAYS:
            loss = sum(work.part(stage, PROJECT).loss(work.batch).values())
            assert loss.device.type == "cuda" and loss.dtype == torch.float32


def test_aa_clips_operations_give_the_projects_losses_and_maps():
    work = Workload(TINY, 64, 2, "cpu")
    for stage in STEP_WAYS:
        theirs, ours = work.losses(stage)
        assert ours > 0 and theirs == pytest.approx(ours, rel=1e-5)
    theirs, ours = (work.score(way)()[0] for way in (AA_CLIP, PROJECT))
    assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()


def test_what_a_gpu_has_too_little_memory_for_is_said_and_the_others_go_on():
    def too_much():
        raise torch.OutOfMemoryError

    ways = {"large": too_much, "small": lambda: None}
    found = in_turn(ways, 2, torch.device("cpu"))
    assert found["large"] == OUT_OF_MEMORY and found["small"] >= 0 and list(ways) == ["small"]
    row = training_step.shown_row(OUT_OF_MEMORY, 1.0, 10**12, 1e9, 2)
    assert row["TFLOP"] == 1 and row["times faster"] is None


def test_aa_clip_is_measured_in_float32_whatever_the_projects_precisions_are():
    ways = training_step.ways_of("stage 1", ["bf16", "tf32"], [PROJECT])
    assert ways == [(AA_CLIP, "fp32"), (AA_CLIP, "tf32"), (PROJECT, "bf16"), (PROJECT, "tf32")]
    with pytest.raises(ValueError, match="--precisions tf32 on cpu: NVIDIA GPUs alone have it"):
        training_step.main(["--precisions", "tf32", "--device", "cpu"])


def test_a_way_that_a_machine_has_not_is_left_out_and_the_table_says_why(monkeypatch):
    monkeypatch.setattr(workload, "missing_compiler", lambda kind: f"there is no compiler for {kind}")
    cpu = torch.device("cpu")
    assert missing(COMPILED, cpu) == "there is no compiler for cpu" and not workload.available(COMPILED, cpu)
    assert missing(FUSED, cpu) is None
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim, "Adam", Mock(side_effect=RuntimeError("`fused=True` is not for cpu")))
        assert missing(FUSED, cpu) == "`fused=True` is not for cpu"
    assert (work_of(FUSED), work_of("full")) == (PROJECT, "full")
    args = training_step.parsed(["--quick", "--ways", "plain", "compile"])
    result = {"waits": "", "stages": [], "cold": True, "repeats": 1, "model_name": TINY, "img_size": 64}
    result |= {"command": "", **machine(), "left out": training_step.left_out(args, cpu)}
    assert (
        training_step.markdown(result)[-1] == "Not measured with `--compile`: there is no compiler for cpu."
    )
    assert COMPILED not in training_step.parsed(["--quick"]).ways


def test_a_compiled_or_fused_step_learns_what_a_plain_one_does(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    weights = {}
    for way in (PROJECT, COMPILED, FUSED):
        work = Workload(TINY, 64, 2, "cpu")
        part = work.part("stage 2", way)
        monkeypatch.setattr(work, "part", lambda stage, way, part=part: part)
        work.step("stage 2", way)()
        weights[way] = torch.cat([one.detach().flatten() for one in parameters_of(part.modules)])
    start = torch.cat(
        [one.detach().flatten() for one in parameters_of(Workload(TINY, 64, 2, "cpu").model.image_modules)]
    )
    moved = weights[PROJECT] - start
    assert moved.norm() > 0
    for way in (COMPILED, FUSED):
        assert (weights[way] - weights[PROJECT]).norm() < 1e-2 * moved.norm()


def test_a_matrix_product_counts_two_flops_a_multiplication():
    left = torch.ones(2, 3, device="meta", requires_grad=True)
    right = torch.ones(3, 4, device="meta")
    counted = flops_of_step(lambda: (left @ right.detach()).sum(), [left, right])
    assert counted == 2 * (2 * 2 * 3 * 4)  # forward, and the gradient to the left one alone


def test_a_process_that_fails_says_why():
    with pytest.raises(OSError, match=r"json.tool no_such_file ended with .*no_such_file"):
        told_by("json.tool", "no_such_file")


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
