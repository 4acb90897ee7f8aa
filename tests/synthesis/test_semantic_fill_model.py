"""Backbones, prompts, injection and the flow-matching loss."""

import re

import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from diffusers import AutoencoderKL, FluxTransformer2DModel
from semantic_fill_world import parameters_of, tiny_system, triptychs, write_model_folder

from synthesis import backbone, flow
from synthesis.injection import semantic_injection
from synthesis.latents import encode_triptych, fill_mask_of
from synthesis.system import FillSystem
from synthesis.text import Prompts, tiny_text_pipeline


def encoded_batch(system, count=2):
    batch = triptychs(count)
    mask = fill_mask_of(batch["semantic"], "semantic")
    return encode_triptych(system.backbone.vae, batch["visible"], batch["target"], batch["semantic"], mask)


def velocity(system, keep=None):
    encoded = encoded_batch(system)
    noise = torch.randn(encoded.clean.shape, generator=torch.Generator().manual_seed(6))
    prompt, times = system.prompts.batch(["a defect", ""]), torch.tensor([0.2, 0.7])
    return flow.predict_velocity(system.backbone, system.attention, noise, encoded, prompt, times, keep)


def test_the_tiny_transformer_has_fluxs_packed_geometry():
    transformer = backbone.tiny_transformer("tiny")
    config = transformer.config
    assert (config.in_channels, transformer.out_channels) == (384, 64)
    assert (config.num_layers, config.num_single_layers) == (1, 1)
    assert (config.attention_head_dim, config.num_attention_heads, config.axes_dims_rope) == (
        16,
        2,
        (4, 4, 8),
    )
    assert sum(parameter.numel() for parameter in transformer.parameters()) == 91_904


def test_tiny_weights_are_the_same_every_time_and_leave_the_global_generator_alone():
    torch.manual_seed(8)
    before = torch.get_rng_state()
    first, second = (backbone.tiny_transformer("tiny").state_dict() for _ in range(2))
    tiny_text_pipeline()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_lora_reaches_343_modules_of_the_real_transformer():
    with torch.device("meta"):
        real = FluxTransformer2DModel(in_channels=384, out_channels=64, guidance_embeds=True)
    reached = [module for name, module in real.named_modules() if re.fullmatch(backbone.LORA_TARGETS, name)]
    assert len(reached) == 343
    assert sum(32 * (module.in_features + module.out_features) for module in reached) == 115_912_704


def test_what_is_trained_is_float32_on_a_bfloat16_backbone():
    system = tiny_system(dtype="bfloat16", scale=0.5)
    trained = [value for value in system.backbone.transformer.parameters() if value.requires_grad]
    frozen = [value for value in system.backbone.transformer.parameters() if not value.requires_grad]
    assert trained and {value.dtype for value in system.trainable()} == {torch.float32}
    assert {value.dtype for value in frozen} == {torch.bfloat16}
    result = velocity(system)
    assert result.dtype is torch.float32
    result.mean().backward()
    assert system.attention[0].scale.grad.abs().min() > 0


def test_lora_starts_without_effect_and_a_rank_below_1_is_refused():
    with_lora = velocity(tiny_system())
    plain = tiny_system()
    plain.backbone.transformer.disable_adapters()
    assert torch.equal(velocity(plain), with_lora)
    with pytest.raises(ValueError, match="--lora_rank 0"):
        tiny_system(lora_rank=0)


def test_a_new_attention_changes_no_bit_of_the_forward():
    system = tiny_system()
    without = FillSystem(system.backbone, tiny_system(semantic_layers=0).attention, system.prompts)
    assert torch.equal(velocity(system), velocity(without))
    assert not torch.equal(velocity(tiny_system(scale=0.5)), velocity(without))


def test_a_dropped_map_is_dropped_for_its_example_only():
    system, without = tiny_system(scale=0.5), tiny_system(semantic_layers=0)
    dropped = velocity(system, keep=torch.tensor([False, True]))
    assert torch.allclose(dropped[0], velocity(without)[0], atol=1e-6)
    assert torch.allclose(dropped[1], velocity(system)[1], atol=1e-6)
    assert (dropped[1] - velocity(without)[1]).abs().max() > 1e-3


def test_the_hook_changes_the_noisy_channels_only_and_goes_away():
    system, seen = tiny_system(scale=0.5), []

    class Recorder(torch.nn.Module):
        def forward(self, hidden_states):
            seen.append(hidden_states)

    recorder, encoded, hidden = Recorder(), encoded_batch(system), torch.randn(2, 8, 384)
    with semantic_injection(
        recorder, system.attention, encoded.semantic, encoded.token_places, encoded.semantic_places
    ):
        recorder(hidden_states=hidden)
    recorder(hidden_states=hidden)
    assert torch.equal(seen[0][..., 64:], hidden[..., 64:])
    assert not torch.equal(seen[0][..., :64], hidden[..., :64])
    assert seen[1] is hidden


def test_the_path_is_straight_and_its_velocity_constant():
    clean, noise = torch.full((3, 1, 1), 2.0), torch.full((3, 1, 1), 10.0)
    noisy, target = flow.interpolate(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert noisy.flatten().tolist() == [2, 4, 10]
    assert target.flatten().tolist() == [8, 8, 8]


def test_times_are_a_sigmoid_of_a_normal():
    times = flow.sample_times(20_000, torch.Generator().manual_seed(9))
    normal = times.logit()
    assert ((times > 0) & (times < 1)).all()
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03


def test_the_loss_is_the_mean_square_of_the_velocity_error():
    system = tiny_system(scale=0.2)
    encoded, times = encoded_batch(system), torch.tensor([0.2, 0.7])
    noise, prompt = torch.randn(encoded.clean.shape), system.prompts.batch(["a defect", "a defect"])
    arguments = (system.backbone, system.attention)
    loss = flow.flow_matching_loss(*arguments, encoded, prompt, times, noise)
    noisy = torch.stack([(1 - t) * x + t * n for x, n, t in zip(encoded.clean, noise, times, strict=True)])
    predicted = flow.predict_velocity(*arguments, noisy, encoded, prompt, times)
    assert torch.allclose(loss, (predicted - (noise - encoded.clean)).square().mean())


def test_the_loss_can_weigh_what_is_to_be_filled():
    system = tiny_system(scale=0.2)
    encoded, times = encoded_batch(system), torch.tensor([0.2, 0.7])
    noise, prompt = torch.randn(encoded.clean.shape), system.prompts.batch(["a defect", "a defect"])
    errors = flow.predict_velocity(
        system.backbone,
        system.attention,
        flow.interpolate(encoded.clean, noise, times)[0],
        encoded,
        prompt,
        times,
    ) - (noise - encoded.clean)

    def loss(condition, fill_share):
        parts = encoded._replace(condition=condition)
        return flow.flow_matching_loss(
            system.backbone, system.attention, parts, prompt, times, noise, fill_share=fill_share
        )

    pixels = encoded.condition[..., 64:].reshape(2, 8, 256)
    filled = pixels.sum(-1) > 0  # [2, 8]
    assert 0 < filled.sum() < 8
    inside, outside = errors[filled].square().mean(), errors[~filled].square().mean()
    for share in (0.0, 0.3, 1.0):
        assert torch.allclose(loss(encoded.condition, share), share * inside + (1 - share) * outside)
    none_to_fill = torch.cat((encoded.condition[..., :64], torch.zeros(2, 8, 256)), dim=-1)
    assert torch.equal(loss(none_to_fill, 0.3), loss(none_to_fill, None))


def test_the_transformer_gets_times_of_0_to_1_and_guidance_1():
    system, seen = tiny_system(), {}
    system.backbone.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    velocity(system)
    assert seen["timestep"].tolist() == pytest.approx([0.2, 0.7])
    assert seen["guidance"].tolist() == [1, 1]
    assert seen["hidden_states"].shape == (2, 8, 384)


def test_prompts_are_the_pipelines_and_encoded_once():
    loads = []

    def load():
        loads.append(1)
        return tiny_text_pipeline()

    prompts = Prompts(load, 64)
    batch = prompts.batch(["a scratch", "", "a scratch"])
    prompts.batch(["", "a scratch"])
    assert len(loads) == 1
    with torch.no_grad():
        tokens, pooled, _ = tiny_text_pipeline().encode_prompt("a scratch", max_sequence_length=64)
    assert torch.equal(batch.tokens[2:], tokens) and torch.equal(batch.pooled[:1], pooled)
    assert batch.tokens.shape == (3, 64, 32) and not torch.equal(batch.tokens[0], batch.tokens[1])
    assert not batch.tokens.requires_grad
    prompts.batch(["a crack"])
    assert len(loads) == 2


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_model_folder(tmp_path_factory.mktemp("flux_fill"))


def test_a_folder_of_weights_loads_like_the_hub(model_folder):
    real = tiny_system(model=str(model_folder))
    tiny = tiny_system()
    for part in (real.backbone.vae, backbone.load_backbone("tiny").transformer):
        assert not part.training and not any(parameter.requires_grad for parameter in part.parameters())
    assert isinstance(real.backbone.vae, AutoencoderKL) and real.backbone.sampling_guidance == 30
    theirs, ours = parameters_of(real), parameters_of(tiny)
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert torch.allclose(
        real.prompts.known["a defect"].pooled, tiny.prompts.known["a defect"].pooled, atol=1e-6
    )
    assert velocity(real).isfinite().all()


def test_a_transformer_that_is_no_fill_model_is_refused(model_folder, monkeypatch):
    plain = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    monkeypatch.setattr(FluxTransformer2DModel, "from_pretrained", lambda *args, **kwargs: plain)
    with pytest.raises(ValueError, match="64 channels in and 64 out, expected 384"):
        backbone.load_backbone(str(model_folder))


@pytest.mark.parametrize("model", ["black-forest-labs/FLUX.1-Fill-dev", "no/such/folder"])
def test_weights_that_cannot_be_reached_come_with_the_licence_notice(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="(?s)cannot load this hub model.*non-commercial"):
        backbone.load_backbone(model)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(
        RuntimeError, match="(?s)cannot load this folder in diffusers' layout.*model_index.json"
    ):
        backbone.load_backbone(str(tmp_path))
    with pytest.raises(RuntimeError, match="cannot load this folder"):
        backbone.load_prompts(str(tmp_path)).encode(["a"])
