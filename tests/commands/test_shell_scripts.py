"""scripts.sh and scripts_cross_attention.sh, run with a `python` that only writes down what it is asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import compare
import evaluation.run
from run_folder.flags import build_parser
from run_folder.settings import BASELINE_GROUPS, CROSS_ATTENTION_GROUPS
from training.feedback_recipes import GROUPS as FEEDBACK_GROUPS

ROOT = Path(__file__).resolve().parents[2]
OTHERS = "MVTec BTAD MPDD Brain Liver Retina Colon_clinicDB Colon_colonDB Colon_Kvasir Colon_cvc300".split()
PARSERS = {
    "train.py": build_parser("", BASELINE_GROUPS),
    "train_cross_attention.py": build_parser("", CROSS_ATTENTION_GROUPS),
    "train_cross_attention_feedback.py": build_parser("", FEEDBACK_GROUPS),
    "test.py": build_parser("", evaluation.run.GROUPS),
    "compare.py": compare.build_parser(),
}


def commands_of(script, folder):
    """[(command, its parsed flags)] a shell script runs, in order."""
    written = folder / "commands"
    stub = folder / "python"
    stub.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"with open({str(written)!r}, 'a') as file:\n    file.write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )
    stub.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", ROOT / script], env=os.environ | {"PATH": path}, check=True)
    asked = [json.loads(line) for line in written.read_text().splitlines()]
    assert all((ROOT / name).is_file() for name, *_ in asked)
    return [(name, PARSERS[name].parse_args(argv)) for name, *argv in asked]


def test_scripts_sh_trains_on_visa_and_tests_the_others_and_the_reverse(tmp_path):
    found = [(name, flags.dataset, flags.save_path) for name, flags in commands_of("scripts.sh", tmp_path)]
    assert found == [
        ("train.py", "VisA", "ckpt/baseline_visa"),
        *(("test.py", dataset, "ckpt/baseline_visa") for dataset in OTHERS),
        ("train.py", "MVTec", "ckpt/baseline_mvtec"),
        ("test.py", "VisA", "ckpt/baseline_mvtec"),
    ]


@pytest.mark.parametrize(
    ("ending", "source", "tested"), [("visa", "VisA", OTHERS), ("mvtec", "MVTec", ["VisA"])]
)
def test_the_forks_matrix_trains_every_arm_tests_it_like_the_baseline_and_compares(
    tmp_path, ending, source, tested
):
    commands = commands_of("scripts_cross_attention.sh", tmp_path)
    arms = [f"ckpt/{arm}_{ending}" for arm in ("cross_attention", "feedback_v1", "feedback_v2")]
    trained = [
        (flags.dataset, flags.training_mode, flags.save_path) for name, flags in commands if "train" in name
    ]
    assert [one for one in trained if one[0] == source] == [(source, "full_shot", arm) for arm in arms]
    evaluated = {(flags.dataset, flags.save_path) for name, flags in commands if name == "test.py"}
    assert {(dataset, arm) for dataset in tested for arm in arms} <= evaluated
    (compared,) = [
        flags for name, flags in commands if name == "compare.py" and flags.out == f"comparison_{ending}"
    ]
    assert compared.baseline == [f"ckpt/baseline_{ending}"] and compared.datasets == tested
    assert [arm.split("=")[1] for arm in compared.runs] == arms


def test_both_feedback_recipes_are_in_the_matrix(tmp_path):
    commands = commands_of("scripts_cross_attention.sh", tmp_path)
    recipes = [flags.recipe for name, flags in commands if "feedback" in name]
    assert recipes == ["v1", "v2"] * 2
