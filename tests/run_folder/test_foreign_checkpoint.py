"""A checkpoint with the shared keys at ViT-L sizes, made without this project, loads and evaluates."""

import json

import torch

import test
from model.clip import WeightsSource, create_model
from run_folder import session

VISION, TEXT, JOINT = 1024, 768, 768


def attention(query):
    shapes = {
        "q_proj": (TEXT, query),
        "k_proj": (TEXT, TEXT),
        "v_proj": (TEXT, TEXT),
        "out_proj": (query, TEXT),
    }
    state = {f"{name}.weight": torch.randn(shape) * shape[1] ** -0.5 for name, shape in shapes.items()}
    return state | {f"{name}.bias": torch.randn(shape[0]) * 0.05 for name, shape in shapes.items()}


def matrix(rows, columns):
    return torch.randn(rows, columns) * columns**-0.5


def test_a_vit_l_checkpoint_made_outside_the_project_loads_and_evaluates(tmp_path, data_root, monkeypatch):
    torch.manual_seed(0)
    text_adapter = {f"{i}.fc.0.weight": matrix(JOINT, TEXT) for i in range(4)}
    image_adapter = {f"layer_adapters.{i}.fc.0.weight": matrix(VISION, VISION) for i in range(6)}
    image_adapter |= {f"seg_proj.{i}.fc.weight": matrix(JOINT, VISION) for i in range(4)}
    image_adapter["det_proj.fc.weight"] = matrix(JOINT, VISION)
    text = {
        "epoch": 5,
        "text_adapter": text_adapter,
        "text_cross_attn": attention(TEXT),
        "text_optimizer": {},
    }
    image = {
        "epoch": 20,
        "image_adapter": image_adapter,
        "image_cross_attn": attention(VISION),
        "image_optimizer": {},
    }
    torch.save(text, tmp_path / "text_adapter_cross_attn.pth")
    torch.save(image, tmp_path / "image_adapter_cross_attn_20.pth")

    def random_backbone(model_name, img_size, pretrained, **options):
        clip = create_model(model_name, img_size)  # OpenAI's weights are not part of what is tested
        clip.source = WeightsSource("none", "none")
        return clip

    monkeypatch.setattr(session, "create_model", random_backbone)
    test.main(
        [
            "--dataset",
            "MVTec",
            "--data_root",
            str(data_root),
            "--img_size",
            "112",
            "--save_path",
            str(tmp_path),
        ]
    )
    entry = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["MVTec"]
    assert 0 <= entry["image_adapter_cross_attn_20.pth"]["mean"]["pixel_auroc"] <= 1
