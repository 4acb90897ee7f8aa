"""The parity kit itself: its golden values are there, and it finds what differs."""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def test_the_parity_kit_and_its_golden_values_are_there_and_a_changed_value_is_found():
    sys.path.insert(0, str(HERE))
    try:
        import parity
    finally:
        sys.path.pop(0)
    golden = dict(np.load(HERE / "golden_seed7.npz"))
    assert {key.split(".")[0] for key in golden} >= {
        "tokens",
        "clip",
        "surgery",
        "adapted",
        "stage1",
        "stage2",
    }
    values = {key: value for key, value in golden.items() if key not in ("seed", "dataset", "classes")}
    assert parity.compare(values, values)[1] == []
    changed = values | {"stage1.losses": values["stage1.losses"] * 1.01}
    del changed["tokens"]
    assert [line.split(":")[0] for line in parity.compare(changed, values)[1]] == ["tokens", "stage1.losses"]
