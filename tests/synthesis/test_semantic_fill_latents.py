"""Packing, masks and ids as FluxFillPipeline makes them, and the closed-form codec."""

import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from diffusers import AutoencoderKL, FluxFillPipeline
from semantic_fill_world import triptychs

from synthesis import latents
from synthesis.codec import DctCodec

PIPELINE = FluxFillPipeline(
    scheduler=None,
    vae=DctCodec(),
    transformer=None,
    text_encoder=None,
    tokenizer=None,
    text_encoder_2=None,
    tokenizer_2=None,
)


def random_mask(batch, height, width):
    return (torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(5)) > 0.5).float()


def test_packing_is_the_pipelines_and_unpacking_its_inverse():
    values = torch.randn(2, 16, 4, 8)
    packed = latents.pack(values)
    assert torch.equal(packed, PIPELINE._pack_latents(values, 2, 16, 4, 8))
    assert torch.equal(latents.unpack(packed, 2, 4), values)
    assert torch.equal(latents.unpack(packed, 2, 4), PIPELINE._unpack_latents(packed, 32, 64, 8))


def test_channel_4c_plus_2_row_plus_column():
    values = torch.zeros(1, 16, 4, 4)
    values[0, 5, 3, 2] = 1  # latent 5 in the second row of tokens, second column; inside: row 1, column 0
    assert latents.pack(values).nonzero().tolist() == [[0, 3, 4 * 5 + 2]]


def test_mask_packing_is_the_pipelines():
    mask = random_mask(2, 32, 64)
    theirs, _ = PIPELINE.prepare_mask_latents(
        mask, torch.zeros(2, 3, 32, 64), 2, 16, 1, 32, 64, torch.float32, torch.device("cpu"), None
    )
    assert torch.equal(latents.pack_mask(mask), theirs)


def test_mask_channel_8_sy_plus_sx_times_4():
    mask = torch.zeros(1, 1, 16, 32)
    mask[0, 0, 8 + 3, 16 + 5] = 1  # second token, its lower left latent, pixel (3, 5) of that
    assert latents.pack_mask(mask).nonzero().tolist() == [[0, 1, (8 * 3 + 5) * 4 + 2]]


def test_ids_are_the_pipelines():
    assert torch.equal(
        latents.image_ids(3, 6), PIPELINE._prepare_latent_image_ids(1, 3, 6, "cpu", torch.float32)
    )


def test_shapes_at_512_pixels():
    batch = triptychs(1, 512)
    mask = latents.fill_mask_of(batch["semantic"], "semantic")
    encoded = latents.encode_triptych(DctCodec(), batch["visible"], batch["target"], batch["semantic"], mask)
    assert encoded.clean.shape == (1, 2048, 64)
    assert encoded.condition.shape == (1, 2048, 320)
    assert encoded.semantic.shape == (1, 1024, 64)
    assert encoded.ids[-1].tolist() == [0, 31, 63]


def test_the_condition_is_what_the_pipeline_makes():
    batch = triptychs(2)
    mask = latents.fill_mask_of(batch["semantic"], "semantic")
    encoded = latents.encode_triptych(DctCodec(), batch["visible"], batch["target"], batch["semantic"], mask)
    whole = latents.diptych_mask(mask)
    diptych = torch.cat((batch["visible"], batch["target"]), dim=-1)
    their_mask, their_image = PIPELINE.prepare_mask_latents(
        whole, diptych * (1 - whole), 2, 16, 1, 32, 64, torch.float32, torch.device("cpu"), None
    )
    assert torch.equal(encoded.condition, torch.cat((their_image, their_mask), dim=-1))
    assert encoded.clean.grad_fn is None


def test_a_coarser_map_covers_the_same_panel():
    batch = triptychs(1, 64)
    small = batch["semantic"][..., ::4, ::4]
    tokens, where = latents.semantic_tokens(DctCodec(), small, side=64)
    assert tokens.shape == (1, 1, 64) and where.tolist() == [[2.0, 2.0]]


def test_fill_masks():
    semantic = torch.tensor([-1.0, -0.2, 0.2, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert latents.fill_mask_of(semantic, "semantic").flatten().tolist() == [0, 0, 1, 1]
    assert latents.fill_mask_of(semantic, "panel").flatten().tolist() == [1, 1, 1, 1]
    assert (
        latents.diptych_mask(latents.fill_mask_of(semantic, "panel")).flatten().tolist() == [0, 0, 1, 1] * 2
    )
    with pytest.raises(ValueError, match="--fill_mask half"):
        latents.fill_mask_of(semantic, "half")


@pytest.mark.parametrize("side", [0, 8, 40])
def test_sides_that_are_no_whole_tokens_are_refused(side):
    with pytest.raises(ValueError, match=f"--size {side}: .*multiple of 16"):
        latents.check_side(side)


def test_the_codec_keeps_flat_colour_and_slow_waves_exactly():
    flat = torch.tensor([0.5, -0.3, 0.9]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    wave = torch.cos(torch.pi * (torch.arange(16) + 0.5) * 2 / 8).expand(1, 3, 16, 16)
    codec = DctCodec()
    for image in (flat, wave):
        assert torch.allclose(codec.decode(codec.encode(image).latent_dist.mode()).sample, image, atol=1e-5)


def test_coding_twice_is_coding_once_and_the_loss_is_orthogonal():
    codec, image = DctCodec(), torch.rand(2, 3, 16, 24) * 2 - 1
    once = codec.decode(codec.encode(image).latent_dist.mode()).sample
    assert torch.allclose(codec.decode(codec.encode(once).latent_dist.mode()).sample, once, atol=1e-5)
    assert abs(((image - once) * once).sum()) < 1e-2 < (image - once).abs().max()


def test_the_codec_has_the_interface_of_an_autoencoder():
    reference = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    image, codec = torch.rand(1, 3, 32, 64), DctCodec()
    for name in ("latent_channels", "scaling_factor", "shift_factor"):
        assert getattr(codec.config, name) == getattr(reference.config, name)
    assert len(codec.config.block_out_channels) == 4
    assert codec.dtype is reference.dtype and codec.device == reference.device
    ours, theirs = codec.encode(image).latent_dist, reference.encode(image).latent_dist
    generator = [torch.Generator().manual_seed(1)]
    assert ours.sample(generator).shape == theirs.sample(generator).shape == (1, 16, 4, 8)
    assert torch.equal(ours.sample(generator), ours.mode())
    latent = ours.mode()
    assert (
        codec.decode(latent, return_dict=False)[0].shape
        == reference.decode(latent, return_dict=False)[0].shape
    )


def test_the_codec_refuses_another_number_of_channels():
    with pytest.raises(ValueError, match="latent_channels 4: this codec has 16"):
        DctCodec(latent_channels=4)
