"""train.py with the flags that make it faster: --compile, --fused_adam and --matmul."""

import pytest
import torch
from checkpoint_contents import read
from flag_words import SHORT_TRAINING, run_words

import train as train_script
from model import compiled
from model import matrix_products as products
from model.matrix_products import Comparison, by_onednn


@pytest.mark.slow
@pytest.mark.skipif(products.why_not("cpu") is not None, reason="this torch was built without oneDNN")
def test_a_run_with_all_of_them_has_the_plain_runs_losses_and_says_and_stores_what_it_did(
    model_name, weights, data_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setattr(compiled, "missing_compiler", lambda kind: None)
    monkeypatch.setattr(products, "SMALL", 0)
    monkeypatch.setattr(products, "compare_products", lambda: Comparison(2.0, 3e-7))
    found = {}
    for name, more in (("plain", []), ("faster", ["--compile", "--fused_adam", "--matmul", "auto"])):
        flags = run_words(model_name, weights, data_root, tmp_path / name)
        train_script.main([*flags, *SHORT_TRAINING, *more])
        found[name] = torch.load(tmp_path / name / "image_adapter.pth", weights_only=True)
    torch._dynamo.reset()
    plain, faster = found["plain"], found["faster"]
    assert [one["loss"] for one in faster["history"]] == pytest.approx(
        [one["loss"] for one in plain["history"]], rel=1e-4
    )
    assert faster["versions"] == plain["versions"] | {"matmul": "oneDNN"} and not by_onednn()
    assert faster["image_optimizer"]["param_groups"][0]["fused"]
    assert list(faster["image_adapter"]) == list(plain["image_adapter"])
    assert "matrix products by oneDNN, 2.00 times as fast" in read(tmp_path / "faster", "train.log")
    assert "--matmul auto" not in read(tmp_path / "plain", "train.log")
