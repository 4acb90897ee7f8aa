"""Float32 products by torch or oneDNN: model/matrix_products.py and `--matmul`."""

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import matrix_products as products
from model.matrix_products import Comparison, by_onednn, matrix_products, onednn_products
from run_folder.checkpoints import versions
from run_folder.resume import warn_of_other_products

WIDE = products.SMALL // 64**2 + 1  # rows times 64 x 64: just large enough for oneDNN

needs_onednn = pytest.mark.skipif(
    products.why_not("cpu") is not None, reason="this torch was built without oneDNN"
)


@pytest.fixture
def asked(monkeypatch):
    """Shapes of the products that oneDNN is asked for."""
    shapes, product = [], products.product

    def counted(a, b, bias=None):
        shapes.append((*a.shape, b.shape[1]))
        return product(a, b, bias)

    monkeypatch.setattr(products, "product", counted)
    return shapes


def gradients(layer, x, weight):
    """(the layer's output, gradients to its input, weight and bias), for an incoming gradient of one expanded row."""
    x = x.clone().requires_grad_()
    out = layer(x)
    return out, *torch.autograd.grad(out, [x, *layer.parameters()], weight.expand_as(out))


@needs_onednn
def test_a_linear_layer_has_torchs_numbers_up_to_rounding_in_both_passes(asked):
    torch.manual_seed(0)
    layer, x, weight = nn.Linear(64, 64), torch.randn(2, WIDE, 64), torch.randn(64)
    wanted = gradients(layer, x, weight)
    assert not asked
    with onednn_products():
        found = gradients(layer, x, weight)
        tokens_first = F.linear(x.transpose(0, 1), layer.weight, layer.bias).transpose(0, 1)
    assert sorted(asked)[:3] == [(64, 2 * WIDE, 64), (2 * WIDE, 64, 64), (2 * WIDE, 64, 64)]
    for one, other in zip((*found, tokens_first), (*wanted, wanted[0]), strict=True):
        assert ((one - other).norm() / other.norm()) < products.CLOSE


@needs_onednn
def test_views_of_other_matrices_and_expanded_rows_are_multiplied_as_they_are_meant(asked):
    torch.manual_seed(0)
    wide, square = torch.randn(WIDE, 200), torch.randn(64, 64)
    views = [wide[:, 5:69], wide[:, :128:2], wide[:1, :64].expand(WIDE, -1), wide[:, :1].expand(-1, 64)]
    squares = [square, square.T, square[:1].expand(64, -1), square[:, :1].expand(-1, 64), wide[:64, 3:67]]
    for a in views:
        for b in squares:
            wanted = torch.mm(a, b)
            with onednn_products():
                assert (torch.mm(a, b) - wanted).norm() < products.CLOSE * wanted.norm()
    assert len(asked) == len(views) * len(squares)


@needs_onednn
@pytest.mark.bit_equality
def test_what_is_small_or_not_float32_or_scaled_stays_torchs(asked):
    torch.manual_seed(0)
    x, bias = torch.randn(WIDE, 64), torch.randn(64)
    cases = [
        lambda: x[:8] @ x[:8].T,
        lambda: x.double() @ x.double().T[:, :64],
        lambda: x.bfloat16() @ x.bfloat16().T[:, :64],
        lambda: torch.addmm(bias, x, x[:64], beta=0.5, alpha=2),
        lambda: torch.addmm(x, x, x[:64]),
        lambda: x[:0] @ x.T,
    ]
    wanted = [case() for case in cases]
    with onednn_products():
        assert all(torch.equal(case(), other) for case, other in zip(cases, wanted, strict=True))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            x @ torch.randn(65, 2**20)
    assert not asked


@needs_onednn
def test_torchs_products_are_back_afterwards_whatever_ends_it(asked):
    x = torch.randn(WIDE, 64)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), onednn_products():
            assert by_onednn() and versions()["matmul"] == "oneDNN"
            x @ x[:64]
            raise KeyboardInterrupt
    x @ x[:64]
    assert len(asked) == 2 and not by_onednn() and "matmul" not in versions()


@needs_onednn
def test_the_comparison_at_the_start_finds_the_two_libraries_to_agree():
    found = products.compare_products()
    assert 0 < found.apart < products.CLOSE and found.faster > 0


@pytest.mark.parametrize(
    ("found", "device", "said"),
    [
        (Comparison(1.9, 3e-7), "cpu", "by oneDNN, 1.90 times as fast as torch's and 3.0e-07 apart"),
        (Comparison(1.9, 2e-6), "cpu", "torch's own matrix products: oneDNN's are 2.0e-06 apart"),
        (Comparison(1.9, float("nan")), "cpu", "torch's own matrix products: oneDNN's are nan apart"),
        (Comparison(1.1, 3e-7), "cpu", "torch's own matrix products: oneDNN's are 1.10 times as fast"),
        (None, "cuda", "torch's own matrix products: the device is cuda"),
    ],
)
def test_auto_takes_onednn_where_it_agrees_and_pays_and_says_why(monkeypatch, caplog, found, device, said):
    monkeypatch.setattr(products, "compare_products", lambda: found)
    if found is not None:
        monkeypatch.setattr(products, "why_not", lambda device: None)
    with (
        caplog.at_level(logging.INFO),
        matrix_products("auto", device, logging.getLogger("AA-CLIP")) as taken,
    ):
        assert taken == by_onednn() == ("by oneDNN" in said)
    assert len(caplog.messages) == 1 and said in caplog.messages[0] and not by_onednn()


def test_processes_take_the_products_that_one_of_them_chose(monkeypatch):
    monkeypatch.setattr(products, "why_not", lambda device: None)
    monkeypatch.setattr(products, "compare_products", lambda: Comparison(1.9, 3e-7))
    told = [Comparison(1.1, 3e-7)]
    with matrix_products("auto", "cpu", logging.getLogger("AA-CLIP"), lambda found: told[0]) as taken:
        assert not taken and not by_onednn()


@needs_onednn
def test_a_run_that_goes_on_with_the_other_library_says_so(lines):
    logger, messages = lines
    with onednn_products():
        warn_of_other_products({"versions": versions()}, Path("a.pth"), logger)
        stored = {"versions": versions()}
    assert not messages
    warn_of_other_products(stored, Path("a.pth"), logger)
    warn_of_other_products({}, Path("upstream.pth"), logger)
    assert messages == [
        "a.pth: float32 products were oneDNN, are torch's own: the run goes on, but not bit for bit"
    ]


def test_a_torch_without_onednn_is_said(monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with caplog.at_level(logging.INFO), matrix_products("auto", "cpu", logging.getLogger("AA-CLIP")) as taken:
        assert not taken
    assert "this torch was built without oneDNN" in caplog.text


def test_by_default_nothing_is_compared_or_said(monkeypatch, caplog):
    monkeypatch.setattr(products, "compare_products", None)
    with (
        caplog.at_level(logging.INFO),
        matrix_products("default", "cpu", logging.getLogger("AA-CLIP")) as taken,
    ):
        assert not taken and not by_onednn()
    assert not caplog.messages


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="--matmul fast: expected one of default, auto"):
        with matrix_products("fast", "cpu", logging.getLogger("AA-CLIP")):
            pass


def test_parts_of_larger_matrices_are_copied_before_onednn_which_would_loop_over_them():
    heads = torch.arange(24.0).reshape(3, 2, 4).transpose(0, 1)  # as a packed projection lays heads out
    part = heads[1]
    assert (
        not part.is_contiguous()
        and products.dense(part).is_contiguous()
        and torch.equal(products.dense(part), part)
    )
    whole = torch.arange(12.0).reshape(3, 4)
    assert products.dense(whole) is whole
    turned = whole.t()
    assert products.dense(turned) is turned


@needs_onednn
def test_a_product_never_gets_parts(monkeypatch):
    seen, dense = [], products.dense
    monkeypatch.setattr(products, "dense", lambda one: seen.append(one.shape) or dense(one))
    heads = torch.randn(3, 2, 4).transpose(0, 1)
    torch.testing.assert_close(products.product(heads[0], heads[1].t()), heads[0] @ heads[1].t())
    assert seen == [(3, 4), (4, 3)]
