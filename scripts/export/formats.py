"""Formats of an exported model: how each is written with its metadata, read back, and run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from files.command import Refusal
from scripts.export.graph import ImageToAnomaly

Run = Callable[..., tuple[np.ndarray, np.ndarray]]  # arrays of the inputs -> (maps, scores)
ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "exported_program": ".pt2"}
INSTALL = {"onnx": "onnx onnxscript onnxruntime", "openvino": "openvino onnx onnxscript"}
METADATA = "aaclip"  # the key under which the metadata stands in every format
ONE_FILE = 1_900_000_000  # bytes; protobuf ends at 2 GiB, larger weights lie beside the graph


def exported(module: ImageToAnomaly, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The module as a graph for batches of any size; with a context as input, of any number of tokens."""
    batch, tokens = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("tokens", min=2, max=65536)
    dynamic = ({0: batch}, None, {0: tokens})[: len(inputs)]
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=dynamic)


def write_exported_program(
    program: torch.export.ExportedProgram, inputs: tuple[Tensor, ...], path: Path, metadata: dict[str, Any]
) -> None:
    """torch.export's archive; the metadata is one of its extra files."""
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})


def write_onnx(
    program: torch.export.ExportedProgram, inputs: tuple[Tensor, ...], path: Path, metadata: dict[str, Any]
) -> None:
    """An ONNX graph with its weights; above protobuf's limit they lie in a file beside it."""
    require("onnx")
    names = ["image", "anchors", "context"][: len(inputs)]
    dynamic = ({0: "batch"}, None, {0: "tokens"})[: len(inputs)]
    graph = torch.onnx.export(
        program, inputs, dynamo=True, input_names=names, output_names=["map", "score"], dynamic_shapes=dynamic
    )
    graph.model.metadata_props[METADATA] = json.dumps(metadata)
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    graph.save(str(path), external_data=size > ONE_FILE)


def write_openvino(
    program: torch.export.ExportedProgram, inputs: tuple[Tensor, ...], path: Path, metadata: dict[str, Any]
) -> None:
    """OpenVINO's graph (.xml) with its weights (.bin), through ONNX."""
    require("openvino")
    import openvino

    between = path.with_suffix(".onnx")
    write_onnx(program, inputs, between, metadata)
    model = openvino.convert_model(str(between))
    model.set_rt_info(json.dumps(metadata), METADATA)
    openvino.save_model(model, str(path), compress_to_fp16=False)
    for leftover in path.parent.glob(f"{between.name}*"):
        leftover.unlink()


def read_exported_program(path: Path) -> tuple[Run, dict[str, Any]]:
    """(the model as a function of arrays, its metadata)"""
    extra = {METADATA: ""}
    module = torch.export.load(path, extra_files=extra).module()

    def run(*arrays):
        with torch.no_grad():
            return tuple(one.numpy() for one in module(*map(torch.from_numpy, arrays)))

    return run, json.loads(extra[METADATA])


def read_onnx(path: Path) -> tuple[Run, dict[str, Any]]:
    """(the model as a function of arrays, its metadata)"""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One level below all: that one ends with a segmentation fault on a CPU where a graph is in float16 (1.32).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*arrays):
        return tuple(session.run(["map", "score"], dict(zip(names, arrays, strict=True))))

    return run, json.loads(session.get_modelmeta().custom_metadata_map[METADATA])


def read_openvino(path: Path) -> tuple[Run, dict[str, Any]]:
    """(the model as a function of arrays, its metadata)"""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    # OpenVINO takes bfloat16 where a processor has it, unless it is told not to
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(*arrays):
        found = compiled(list(arrays))
        return found[0], found[1]

    return run, json.loads(model.get_rt_info(METADATA).value)


WRITE = {"onnx": write_onnx, "openvino": write_openvino, "exported_program": write_exported_program}
READ = {"onnx": read_onnx, "openvino": read_openvino, "exported_program": read_exported_program}


def require(name: str) -> None:
    """Raises Refusal where the packages of a format are not installed."""
    import importlib.util

    packages = INSTALL.get(name, "").split()
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise Refusal(f"--format {name} needs {', '.join(missing)}: pip install {INSTALL[name]}")
