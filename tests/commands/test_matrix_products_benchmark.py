"""The benchmark of matrix products runs and writes what it prints: benchmarks/matrix_products.py."""

import pytest

from benchmarks import matrix_products
from model.matrix_products import CLOSE, why_not


@pytest.mark.skipif(why_not("cpu") is not None, reason="this torch was built without oneDNN")
def test_the_benchmark_sets_both_ways_of_every_product_of_a_block_side_by_side(tmp_path, capsys):
    matrix_products.main(["--quick", "--rows", "8", "--out", str(tmp_path)])
    text = (tmp_path / "matrix_products.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out and "`python -m benchmarks.matrix_products --quick" in text
    rows = [line.split("|") for line in text.splitlines()[6:]]
    assert len(rows) == 12 and rows[0][2].strip() == "64 × 1024 × 3072"
    for row in rows:
        torchs, onednns, _, apart = (float(cell) for cell in row[3:7])
        assert torchs > 0 and onednns > 0
        assert apart < CLOSE
