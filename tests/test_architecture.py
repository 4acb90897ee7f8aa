"""The house rules that a machine can check: who imports whom, sizes of functions, one way to load a run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "train",
    "train_cross_attention",
    "train_cross_attention_feedback",
    "train_cross_attention_feedback_v2",
    "test",
    "predict",
    "calibrate",
    "compare",
    "test_stage2_gradients",
    "make_triptychs",
    "train_semantic_fill",
    "generate_anomalies",
}
MAY_IMPORT = {  # room: rooms it may import, beside itself
    "files": (),
    "metrics": (),
    "model": ("files",),
    "dataset": ("files",),
    "demo_world": ("files", "dataset"),
    "tiny_clip": ("files", "demo_world"),
    "utils": ("files",),
    "visualization": ("files",),
    "forward_utils": ("files", "metrics", "model", "dataset"),
    "forward_utils_cross_attention": ("model", "dataset", "forward_utils"),
    "run_folder": ("files", "model", "dataset", "forward_utils", "forward_utils_cross_attention", "utils"),
}
LOWER = (*MAY_IMPORT["run_folder"], "metrics", "run_folder")
MAY_IMPORT |= {"training": LOWER, "evaluation": LOWER}
MAY_IMPORT["comparison"] = (*LOWER, "training", "evaluation")
MAY_IMPORT["commands"] = (*MAY_IMPORT["comparison"], "comparison", "demo_world", "synthesis")
MAY_IMPORT["synthesis"] = LOWER
MAY_IMPORT["studies"] = (*MAY_IMPORT["commands"], "scripts")
MAY_IMPORT["scripts"] = (*MAY_IMPORT["commands"], "tiny_clip")
MAY_IMPORT["benchmarks"] = MAY_IMPORT["commands"]
MAY_IMPORT["app"] = (*LOWER, "evaluation")
AA_CLIPS_ARGUMENTS = {  # their signatures are a contract
    "train_text_adapter",
    "train_image_adapter",
    "train_text_adapter_with_cross_attention",
    "train_image_adapter_with_cross_attention",
    "create_model",
    "get_dataset",
}


def sources():
    """[(path relative to the root, room)] of everything but the tests; the commands are one room."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    found = []
    for name in listed:
        top = name.split("/")[0].removesuffix(".py")
        if top != "tests" and (ROOT / name).is_file():
            found.append((name, "commands" if name in {f"{command}.py" for command in COMMANDS} else top))
    return found


def imported(tree):
    """Names of the modules a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


@pytest.fixture(scope="module")
def trees():
    return {name: (room, ast.parse((ROOT / name).read_text(encoding="utf-8"))) for name, room in sources()}


def functions(tree, depth=0):
    """(function, number of functions around it) of a file."""
    for node in ast.iter_child_nodes(tree):
        inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if inner:
            yield node, depth
        yield from functions(node, depth + inner)


def test_imports_run_one_way(trees):
    rooms = {*MAY_IMPORT, *COMMANDS}
    wrong = []
    for name, (room, tree) in trees.items():
        for module in imported(tree):
            other = module.split(".")[0]
            if other in rooms and other != room and other not in MAY_IMPORT[room]:
                wrong.append(f"{name} imports {module}")
    assert not wrong


def test_no_command_is_imported_by_anything_but_tests(trees):
    wrong = [
        f"{name} imports {module}"
        for name, (_, tree) in trees.items()
        for module in imported(tree)
        if module in COMMANDS
    ]
    assert not wrong


def test_every_room_is_in_the_plan(trees):
    assert {room for room, _ in trees.values()} <= {*MAY_IMPORT}


def test_the_root_holds_thirteen_files_at_most(trees):
    """Commands and AA-CLIP's modules; the thirteenth is a documented command, train_cross_attention_feedback_v2.py.

    predict.py and calibrate.py are not counted: they are what people without a data set type.
    """
    others = {name for name in trees if "/" not in name} - {"predict.py", "calibrate.py"}
    assert len(others) <= 13


def test_loggers_are_made_in_one_place():
    named = [path for path, _ in sources() if "getLogger(" in (ROOT / path).read_text(encoding="utf-8")]
    assert named == ["files/logs.py"]


def test_functions_are_short_and_take_few_arguments(trees):
    wrong = []
    for name, (_, tree) in trees.items():
        for function, depth in functions(tree):
            lines, own = function.end_lineno - function.lineno + 1, function.args
            count = len([*own.posonlyargs, *own.args, *own.kwonlyargs])
            count -= bool(own.args) and own.args[0].arg in ("self", "cls")
            if lines > 60:
                wrong.append(f"{name}: {function.name} has {lines} lines")
            if count > 8 and function.name not in AA_CLIPS_ARGUMENTS:
                wrong.append(f"{name}: {function.name} takes {count} arguments")
            if depth > 1:
                wrong.append(f"{name}: {function.name} is a closure in a closure")
    assert not wrong


def test_runs_are_loaded_in_one_place(trees):
    callers = {
        name
        for name, (_, tree) in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == "load_checkpoint"
    }
    assert {name.split("/")[0] for name in callers} == {"run_folder"}


def test_files_are_replaced_in_one_place(trees):
    replacing = {
        name
        for name, (_, tree) in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "replace"
        and getattr(node.value, "id", "") == "os"
    }
    assert replacing == {"files/atomic.py", "synthesis/weights.py"}  # the latter replaces a folder


def test_every_flag_says_what_it_is(trees):
    silent = [
        f"{name}:{node.lineno}"
        for name, (_, tree) in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (called := getattr(node.func, "attr", getattr(node.func, "id", ""))) in ("add_argument", "option")
        and not any(word.arg == "help" for word in node.keywords)
        and not (called == "option" and len(node.args) > 1)  # its second argument is the help
    ]
    assert not silent


def test_every_module_can_be_imported():
    files = [Path(name).with_suffix("") for name, _ in sources()]
    names = [".".join(file.parts) for file in files if file.name not in ("__main__", "__init__")]
    code = "import importlib\nfor name in " + repr(names) + ": importlib.import_module(name)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-600:]


def test_blocks_of_a_tower_are_run_by_one_loop(trees):
    """Only the loop calls a block; the rest hands towers to it."""
    called = [
        name
        for name, (_, tree) in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Subscript)
        and getattr(node.func.value, "attr", "") == "resblocks"
    ]
    assert called == []


def test_the_detector_has_one_backward_pass(trees):
    callers = {
        name
        for name, (_, tree) in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "backward"
    }
    other_systems = {"tiny_clip/pretraining.py", "synthesis/training.py"}
    other_systems |= {
        "benchmarks/aa_clip_cost.py",
        "benchmarks/interruption_cost.py",
        "benchmarks/memory.py",
    }  # what is measured beside it
    assert callers - other_systems == {"training/engine.py"}
