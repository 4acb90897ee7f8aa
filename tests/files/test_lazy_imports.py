"""`--help` and a wrong flag answer before the heavy libraries are imported."""

import subprocess
import sys

import open_clip
import pytest

from files.normalisation import CLIP_MEAN, CLIP_STD

COMMANDS = (
    "train",
    "train_cross_attention",
    "train_cross_attention_feedback",
    "test",
    "compare",
    "predict",
    "calibrate",
    "make_triptychs",
    "generate_anomalies",
    "train_semantic_fill",
    "app.__main__",
    "dataset.check.__main__",
    "dataset.prepare.__main__",
    "demo_world.render_sets",
    "evaluation.reference_weight",
    "run_folder.__main__",
    "scripts.demo",
    "scripts.export.__main__",
    "studies.real_study.__main__",
    "studies.sweep.__main__",
    "synthesis.sample",
    "studies.semantic_fill_toy",
    "tiny_clip.pretrain",
    "tiny_clip.zero_shot_report",
    "benchmarks.evaluation",
    "benchmarks.loader",
    "benchmarks.loading",
    "benchmarks.metrics",
)
HEAVY = (
    "open_clip",
    "torchvision",
    "sklearn",
    "transformers",
    "diffusers",
    "peft",
    "matplotlib",
    "accelerate",
    "scipy.stats",
    "gradio",
    "onnx",
)


def test_importing_the_commands_imports_no_library_that_takes_seconds():
    code = f"import {', '.join(COMMANDS)}, sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(("ours", "theirs"), [(CLIP_MEAN, "MEAN"), (CLIP_STD, "STD")])
def test_the_normalisation_is_open_clips(ours, theirs):
    assert ours == getattr(open_clip, f"OPENAI_DATASET_{theirs}")
