"""What semantic fill's documents promise of train_semantic_fill.py: modes, log lines, defaults for real weights."""

import json
import re
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from semantic_fill_world import CONFIG, flags, tiny_system, triptychs, write_folders, write_model_folder

from synthesis import memory, train_semantic_fill
from synthesis.attention import SemanticCrossAttention
from synthesis.backbone import load_backbone
from synthesis.fusion import SemanticFusion
from synthesis.sampling import load_filler
from synthesis.weights import find_checkpoint, read_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("triptychs"), triptychs(3))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(write_model_folder(tmp_path_factory.mktemp("flux_fill")))


def run(capsys, *argv):
    """Lines on the console of one run."""
    train_semantic_fill.main([*argv])
    return capsys.readouterr().out.splitlines()


def test_the_start_up_lines_are_the_documents(data, tmp_path, capsys):
    lines = run(capsys, *flags(data, tmp_path, 1, "--semantic_mode", "cross_attention"))
    assert [line for line in lines if line.startswith("[INFO]") and "Memory" not in line] == [
        "[INFO] Semantic mode: cross_attention",
        "[INFO] Using Cross-Attention with 1 layers, 8 heads",
        "[INFO] Added 33088 semantic cross-attention parameters to optimizer",
    ]


def test_33088_are_four_projections_of_64_to_128_two_norms_and_a_scale_per_channel():
    shapes = {name: tuple(value.shape) for name, value in SemanticCrossAttention().named_parameters()}
    assert shapes["query.weight"] == shapes["key.weight"] == shapes["value.weight"] == (128, 64)
    assert shapes["out.weight"] == (64, 128) and shapes["scale"] == (64,)
    assert 4 * 64 * 128 + 2 * (64 + 64) + 64 == 33_088
    assert sum(value.numel() for value in SemanticCrossAttention().parameters()) == 33_088


def test_step_100_has_its_lines(data, tmp_path, capsys):
    lines = run(capsys, *flags(data, tmp_path, 100, "--lr", "1e-5", "--log_every", "100"))
    assert any(re.fullmatch(r"\[Step 100\] Loss: \d+\.\d{4}", line) for line in lines)
    assert any(re.fullmatch(r"Layer 0 scale: 0\.00\d", line) for line in lines)


def test_debug_logs_the_shapes_of_the_first_two_steps(data, tmp_path, capsys):
    lines = [line for line in run(capsys, *flags(data, tmp_path, 3, "--debug")) if "[DEBUG]" in line]
    assert lines == 2 * [
        "[DEBUG] visible_img: (2, 3, 32, 32)",
        "[DEBUG] target_img: (2, 3, 32, 32)",
        "[DEBUG] semantic_img: (2, 3, 32, 32)",
        "[DEBUG] diptych: (2, 3, 32, 64)",
        "[DEBUG] x_0: (2, 8, 64)",
        "[DEBUG] x_cond: (2, 8, 320)",
        "[DEBUG] semantic_tokens: (2, 4, 64)",
        "[DEBUG] x_t: (2, 8, 64)",
        "[DEBUG] x_t_enhanced: (2, 8, 64)",
        "[DEBUG] hidden_states: (2, 8, 384)",
    ]


def test_debug_changes_no_number(data, tmp_path):
    for name, more in (("plain", ()), ("debug", ("--debug",))):
        train_semantic_fill.main(flags(data, tmp_path / name, 2, *more))
    loaded = [load_filler("tiny", tmp_path / name).system.attention for name in ("plain", "debug")]
    assert torch.equal(loaded[0][0].query.weight, loaded[1][0].query.weight)


@pytest.mark.parametrize(
    ("mode", "lines"),
    [
        ("none", ["[INFO] Semantic mode: none", "[INFO] Added 0 semantic parameters to optimizer"]),
        (
            "fusion",
            ["[INFO] Semantic mode: fusion", "[INFO] Added 4160 semantic fusion parameters to optimizer"],
        ),
    ],
)
def test_the_other_modes_say_so_train_resume_and_sample(data, tmp_path, capsys, mode, lines):
    chosen = ("--semantic_mode", mode)
    found = run(capsys, *flags(data, tmp_path, 1, *chosen))
    assert [line for line in found if line.startswith("[INFO]") and "Memory" not in line] == lines
    train_semantic_fill.main(flags(data, tmp_path, 2, *chosen))
    assert "resumed checkpoint-0000001" in (tmp_path / "train.log").read_text()
    with pytest.raises(ValueError, match=f"semantic_mode {mode} -> cross_attention"):
        train_semantic_fill.main(flags(data, tmp_path, 3))
    batch, mask = triptychs(1), torch.ones(1, 1, 32, 32)
    with_map, without = (
        load_filler("tiny", tmp_path).fill(batch["visible"], semantic, mask, steps=2)
        for semantic in (batch["semantic"], None)
    )
    assert torch.equal(with_map, without) == (mode == "none")


def test_fusion_adds_each_token_of_the_map_at_its_place_in_both_panels():
    torch.manual_seed(0)
    fusion, tokens, semantic = SemanticFusion(), torch.randn(2, 8, 64), torch.randn(2, 4, 64)
    assert torch.equal(fusion(tokens, semantic, None, None), tokens)
    torch.nn.init.eye_(fusion.projection.weight)
    added = fusion(tokens, semantic, None, None, torch.tensor([True, False])) - tokens
    pairs = {0: (0, 2), 1: (1, 3), 2: (4, 6), 3: (5, 7)}  # token of the map: its places in a 2 x 4 diptych
    for own, where in pairs.items():
        for place in where:
            assert torch.allclose(added[0, place], semantic[0, own], atol=1e-6)
    assert not added[1].any()


def test_fusion_refuses_a_map_of_another_number_of_tokens_and_names_the_mode_that_takes_it():
    with pytest.raises(ValueError, match="map has 16 tokens and each panel 4: .*cross_attention"):
        SemanticFusion()(torch.zeros(1, 8, 64), torch.zeros(1, 16, 64), None, None)


def test_a_run_from_before_the_modes_resumes_and_samples(data, tmp_path):
    train_semantic_fill.main(flags(data, tmp_path, 1))
    file = find_checkpoint(tmp_path) / "config.json"
    new = {"semantic_mode", "debug", "files_sha256", "config_sha256"}
    old = {key: value for key, value in read_config(file.parent).items() if key not in new}
    file.write_text(json.dumps(old))
    load_filler("tiny", tmp_path)
    train_semantic_fill.main(flags(data, tmp_path, 2))
    assert find_checkpoint(tmp_path).name == "checkpoint-0000002"
    with pytest.raises(ValueError, match="semantic_mode cross_attention -> fusion"):
        train_semantic_fill.main(flags(data, tmp_path, 3, "--semantic_mode", "fusion"))


def test_real_weights_train_in_bfloat16_with_checkpointing_and_the_tiny_ones_in_float32(
    data, tmp_path, model_folder
):
    chosen = {}
    for name, more in (("tiny", ()), ("real", ("--model", model_folder))):
        train_semantic_fill.main(flags(data, tmp_path / name, 1, *more))
        config = read_config(find_checkpoint(tmp_path / name))
        chosen[name] = (config["dtype"], config["gradient_checkpointing"])
    assert chosen == {"tiny": ("float32", False), "real": ("bfloat16", True)}
    off = ("--dtype", "float32", "--no-gradient_checkpointing", "--model", model_folder)
    train_semantic_fill.main(flags(data, tmp_path / "off", 1, *off))
    train_semantic_fill.main(flags(data, tmp_path / "off", 2, "--model", model_folder))  # keeps its own type
    config = read_config(find_checkpoint(tmp_path / "off"))
    assert (config["step"], config["dtype"], config["gradient_checkpointing"]) == (2, "float32", True)


def test_the_memory_is_estimated_before_anything_is_loaded(data, tmp_path, model_folder, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("synthesis.fill_run.assemble", stop)
    with pytest.raises(KeyboardInterrupt):
        train_semantic_fill.main(flags(data, tmp_path, 1, "--model", model_folder))
    assert re.search(
        r"\[INFO\] Memory estimate: .* MiB \(transformer .*, codec .*, trained .*, activations .*\)",
        capsys.readouterr().out,
    )


def test_the_estimate_counts_what_is_then_there_and_draws_no_random_number(model_folder):
    config = {**CONFIG, "dtype": "bfloat16", "size": 512, "batch_size": 1, "optimizer": "adamw"}
    state = torch.get_rng_state()
    kept, checkpointed = (
        memory.estimate_memory(model_folder, {**config, "gradient_checkpointing": on}) for on in (False, True)
    )
    assert torch.equal(state, torch.get_rng_state())
    parts = load_backbone(model_folder)
    assert kept.transformer == 2 * 91_904
    assert kept.codec == 2 * sum(value.numel() for value in parts.vae.parameters())
    assert kept.trained == 20 * sum(value.numel() for value in tiny_system().trainable())
    assert (
        kept.activations == 2 * 17 * (2 * 32 * 32 + 512) * 32 * 2
    )  # blocks, values, tokens, channels, bytes
    assert checkpointed.activations < kept.activations


def test_fluxs_size_is_estimated_to_fit_a_card_of_32_gib_and_said_not_to_fit_one_of_24(monkeypatch):
    config = {**CONFIG, "dtype": "bfloat16", "lora_rank": 32, "size": 512, "batch_size": 1}
    config |= {"optimizer": "adamw", "gradient_checkpointing": True}

    def flux(model):
        with torch.device("meta"):
            return memory.FluxTransformer2DModel(in_channels=384, out_channels=64, guidance_embeds=True), vae

    vae = torch.nn.Linear(1, 84_000_000, device="meta")
    monkeypatch.setattr(memory, "shapes_of", flux)
    estimate = memory.estimate_memory("flux", config)
    assert 24 < estimate.total / memory.GIB < 28
    without = memory.estimate_memory("flux", {**config, "gradient_checkpointing": False})
    assert without.total / memory.GIB > 36
    card = type("Card", (), {"total_memory": 24 * memory.GIB})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    logger = Mock()
    memory.log_memory(estimate, torch.device("cuda"), logger)
    assert "has 24.0 GiB, less than the estimate: lower --size" in logger.warning.call_args.args[0]
    card.total_memory = 32 * memory.GIB
    memory.log_memory(estimate, torch.device("cuda"), logger)
    assert logger.warning.call_count == 1


def test_every_flag_has_a_help_text(capsys):
    from synthesis.settings import GROUPS, fields

    for group in GROUPS.values():
        assert [one.name for one in fields(group) if not one.metadata["help"]] == []
