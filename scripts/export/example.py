"""The lines that run an exported model without this project; written beside it and executed by the tests."""

from pathlib import Path

READ = {
    "onnx": """import onnxruntime
options = onnxruntime.SessionOptions()  # all optimisations break off with float16 on CPUs
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
session = onnxruntime.InferenceSession(beside({file!r}), options)
about = json.loads(session.get_modelmeta().custom_metadata_map["aaclip"])
names = [one.name for one in session.get_inputs()]
def model(*arrays):
    return session.run(["map", "score"], dict(zip(names, arrays)))""",
    "openvino": """import openvino
graph = openvino.Core().read_model(beside({file!r}))
about = json.loads(graph.get_rt_info("aaclip").value)
compiled = openvino.compile_model(graph, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
def model(*arrays):
    found = compiled(list(arrays))
    return found[0], found[1]""",
    "exported_program": """import torch
extra = {{"aaclip": ""}}
program = torch.export.load(beside({file!r}), extra_files=extra).module()
about = json.loads(extra["aaclip"])
def model(*arrays):
    return program(*map(torch.from_numpy, arrays))""",
}
GIVEN = """words = np.load(beside({anchors!r}))
anchors = [words[key] for key in (sys.argv[2], sys.argv[2] + " context") if key == sys.argv[2] or key in words]
"""
LINES = """import json, os, sys
import numpy as np
from PIL import Image, ImageOps
def beside(name):
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
{read}
{given}side, mean, deviation = about["img_size"], np.float32(about["mean"]), np.float32(about["std"])
picture = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
picture = picture.resize((side, side), Image.Resampling.BICUBIC)
image = (np.asarray(picture, np.float32) / 255 - mean) / deviation
maps, scores = model(np.ascontiguousarray(image.transpose(2, 0, 1)[None]){more})  # [1, S, S], [1]
threshold = about["threshold"]
score = float(scores[0])
print(score, "no threshold" if threshold is None else "anomalous" if score >= threshold else "normal")
"""


def example_lines(form: str, file: Path, anchors: Path | None = None) -> str:
    """Python that scores one picture, given on the command line, with an exported model of one class.

    Args:
        anchors: the .npz of `--anchors_of` beside the file, where the model takes them as an input; which words to take
            then stands second on the command line.
    """
    given = "" if anchors is None else GIVEN.format(anchors=anchors.name)
    more = "" if anchors is None else ", *anchors"
    return LINES.format(read=READ[form].format(file=file.name), given=given, more=more)
