"""The semantic cross-attention and its places."""

import pytest
import torch

from synthesis.attention import SemanticCrossAttention, SemanticLayers, locality_bias, places


@pytest.fixture
def inputs():
    """Tokens of a 2-panel diptych of 4 x 4 tokens each, a 4 x 4 map, and their places."""
    torch.manual_seed(1)
    return torch.randn(2, 32, 64), torch.randn(2, 16, 64), places(4, 4, panels=2), places(4, 4)


def awake(**settings):
    torch.manual_seed(2)
    layer = SemanticCrossAttention(**settings)
    layer.scale.data.fill_(1.0)
    return layer


@pytest.mark.parametrize(("layout", "count"), [("33k", 33_088), ("source", 16_897)])
def test_each_layout_has_its_number_of_parameters(layout, count):
    for positions in ("local", "none"):
        layer = SemanticCrossAttention(layout=layout, positions=positions)
        assert sum(parameter.numel() for parameter in layer.parameters()) == count
    assert layer.scale.shape == ((64,) if layout == "33k" else ())


@pytest.mark.parametrize("layout", ["33k", "source"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_attention_changes_no_bit(inputs, layout, dtype):
    tokens, *rest = inputs
    tokens = tokens.to(dtype)
    changed = SemanticLayers(2, layout=layout)(tokens, *rest)
    assert changed.dtype is dtype and torch.equal(changed, tokens)
    assert not torch.equal(awake(layout=layout)(tokens, *rest), tokens)


def test_the_output_is_the_formula(inputs):
    tokens, semantic, *where = inputs
    layer = awake(layout="source", positions="none", heads=1)
    layer.scale.data.fill_(0.3)
    normed, seen = layer.norm_tokens(tokens), layer.norm_semantic(semantic)
    weights = (layer.query(normed) @ layer.key(seen).transpose(1, 2) / 64**0.5).softmax(-1)
    expected = tokens + 0.3 * layer.out(weights @ layer.value(seen))
    assert torch.allclose(layer(tokens, semantic, *where), expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["33k", "source"])
def test_permuting_the_map_matters_with_local_positions_only(inputs, layout):
    tokens, semantic, *where = inputs
    shuffled = semantic[:, torch.randperm(16, generator=torch.Generator().manual_seed(3))]
    change = {}
    for positions in ("none", "local"):
        layer = awake(layout=layout, positions=positions)
        change[positions] = (
            (layer(tokens, semantic, *where) - layer(tokens, shuffled, *where)).abs().max().item()
        )
    assert change["none"] < 1e-5
    assert change["local"] > 1e-2


def test_examples_that_drop_the_map_stay_bit_for_bit(inputs):
    tokens, *rest = inputs
    changed = awake()(tokens, *rest, keep=torch.tensor([True, False]))
    assert torch.equal(changed[1], tokens[1])
    assert torch.equal(changed[0], awake()(tokens, *rest)[0])


@pytest.mark.parametrize("layout", ["33k", "source"])
def test_gradients_reach_the_scale_first_and_everything_at_step_2(inputs, layout):
    torch.manual_seed(4)
    layer = SemanticCrossAttention(layout=layout)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        layer(*inputs).square().mean().backward()
        reached.append({name for name, value in layer.named_parameters() if value.grad.abs().max() > 1e-12})
        optimizer.step()
    everything = {name for name, _ in layer.named_parameters()}
    no_gradient = {"key.bias"} if layout == "source" else set()  # softmax ignores a shift that all keys share
    assert reached[0] == {"scale"}
    assert everything - no_gradient <= reached[1]


def test_places_are_centres_inside_the_panel_and_equal_in_both_panels():
    where = places(2, 2, panels=2)
    assert where.tolist() == [
        [0.5, 0.5],
        [0.5, 1.5],
        [0.5, 0.5],
        [0.5, 1.5],
        [1.5, 0.5],
        [1.5, 1.5],
        [1.5, 0.5],
        [1.5, 1.5],
    ]
    assert places(1, 1, unit=2.0).tolist() == [[1.0, 1.0]]  # one coarse token lies amid four fine ones


def test_the_locality_bias_is_minus_slope_times_squared_distance():
    bias = locality_bias(places(1, 3), places(1, 3), heads=3)
    assert bias[0].tolist() == [[0, -2, -8], [-2, 0, -2], [-8, -2, 0]]
    assert torch.equal(bias[2], bias[0] / 4)


def test_zero_layers_are_no_semantics_and_the_mean_scale_says_so(inputs):
    none = SemanticLayers(0)
    assert none(*inputs) is inputs[0] and none.mean_scale() == 0.0
    two = SemanticLayers(2)
    two[0].scale.data.fill_(-0.5)
    assert two.mean_scale() == 0.25


@pytest.mark.parametrize(
    "settings", [{"layout": "34k"}, {"positions": "rope"}, {"heads": 7}, {"heads": 0}], ids=lambda s: str(s)
)
def test_unknown_settings_are_refused_with_the_flag(settings):
    with pytest.raises(ValueError, match="--semantic_.*(expected|must)"):
        SemanticCrossAttention(**settings)
    with pytest.raises(ValueError, match="--semantic_layers -1"):
        SemanticLayers(-1)
