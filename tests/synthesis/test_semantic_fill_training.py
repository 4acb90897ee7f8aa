"""The training loop of semantic fill: what learns, what stays, and that a resumed run is the same run."""

import logging

import pytest
import torch

pytest.importorskip("diffusers", reason="semantic fill needs requirements-synthesis.txt")

from semantic_fill_world import items, parameters_of, tiny_system, triptychs

from synthesis import training, training_step
from synthesis.training import Schedule, batch_indices, make_optimizer, training_loss
from synthesis.weights import load_optimizer, load_weights_into, save_system

LOGGER = logging.getLogger("semantic fill tests")


def schedule(steps=2, **changes):
    values = {
        "steps": steps,
        "batch_size": 2,
        "seed": 0,
        "prompt": "a defect",
        "fill_mask": "semantic",
        "text_drop": 0.0,
        "semantic_drop": 0.0,
        "log_every": 1,
        **changes,
    }
    return Schedule(**values)


def run(system, plan, data=None, optimizer=None, **more):
    """Train and return the optimiser."""
    optimizer = optimizer or make_optimizer("adamw", system.trainable(), 1e-2)
    training.train(system, items(data or triptychs(4)), optimizer, plan, LOGGER, **more)
    return optimizer


def test_the_first_step_moves_scale_and_lora_b_and_the_second_all():
    system, data, reached = tiny_system(), triptychs(2), []
    optimizer = make_optimizer("adamw", system.trainable(), 1e-2)
    for step in range(2):
        optimizer.zero_grad()
        training_loss(system, data, schedule(), step).backward()
        named = [*system.attention.named_parameters(), *system.backbone.transformer.named_parameters()]
        reached.append(
            {name for name, value in named if value.grad is not None and value.grad.abs().max() > 0}
        )
        optimizer.step()
    attention = {name for name, _ in system.attention.named_parameters()}
    lora = {name for name, value in system.backbone.transformer.named_parameters() if value.requires_grad}
    assert reached[0] & attention == {"0.scale"}
    assert reached[0] & lora == {name for name in lora if ".lora_B." in name}
    assert reached[1] == attention | lora


@pytest.mark.parametrize("train_backbone", [False, True])
def test_what_is_frozen_does_not_move(train_backbone):
    system = tiny_system(train_backbone=train_backbone)
    codec = {name: value.clone() for name, value in system.backbone.vae.state_dict().items()}
    before = parameters_of(system)
    run(system, schedule(3))
    moved = {name for name, value in parameters_of(system).items() if not torch.equal(value, before[name])}
    trained = {name for name in before if ".lora_" in name or name.startswith("attention.")}
    assert (moved > trained) if train_backbone else (moved == trained)
    assert all(torch.equal(value, codec[name]) for name, value in system.backbone.vae.state_dict().items())


def test_training_the_backbone_needs_float32():
    with pytest.raises(ValueError, match="--train_backbone with --dtype bfloat16"):
        tiny_system(train_backbone=True, dtype="bfloat16")


def test_it_overfits_one_batch():
    system, data = tiny_system(model="small", train_backbone=True, lora_rank=32, lora_alpha=32), triptychs(2)
    optimizer = make_optimizer("adamw", system.trainable(), 3e-3)
    losses = []
    for _ in range(25):
        loss = training_loss(system, data, schedule(), step=0)  # the same times and noise every time
        loss.backward()
        torch.nn.utils.clip_grad_norm_(system.trainable(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 1 and losses[-1] < 0.05


@pytest.mark.parametrize(
    ("optimizer", "train_backbone", "lr_schedule"),
    [("adamw", False, "constant"), ("adamw", True, "cosine"), ("prodigy", False, "cosine")],
)
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, optimizer, train_backbone, lr_schedule):
    plan = schedule(5, text_drop=0.3, semantic_drop=0.3, lr_schedule=lr_schedule)
    config = {"train_backbone": train_backbone}

    def fresh(seed):
        system = tiny_system(seed, train_backbone=train_backbone)
        return system, make_optimizer(optimizer, system.trainable())

    whole, its_optimizer = fresh(1)
    run(whole, plan, optimizer=its_optimizer)
    first, its_optimizer = fresh(1)
    folders = {}
    run(
        first,
        plan._replace(save_every=3),
        optimizer=its_optimizer,
        save=lambda step: folders.setdefault(step, save_system(tmp_path, step, first, config, its_optimizer)),
    )
    folder = folders[3]
    second, its_optimizer = fresh(2)
    load_weights_into(second, folder, train_backbone)
    load_optimizer(its_optimizer, folder)
    begun = parameters_of(second)["attention.0.scale"]
    run(second, plan, optimizer=its_optimizer, first_step=3)
    expected = parameters_of(whole)
    assert all(torch.equal(value, expected[name]) for name, value in parameters_of(second).items())
    assert not torch.equal(begun, expected["attention.0.scale"])


def test_a_dropped_map_cannot_be_seen():
    data = triptychs(2)
    other = {**data, "semantic": -data["semantic"]}
    losses = {}
    for drop in (0.0, 1.0):
        plan = schedule(fill_mask="panel", semantic_drop=drop)
        losses[drop] = [
            training_loss(tiny_system(scale=0.5), batch, plan, 0).item() for batch in (data, other)
        ]
    assert losses[1.0][0] == losses[1.0][1]
    assert losses[0.0][0] != losses[0.0][1]


def test_a_dropped_prompt_cannot_be_seen():
    losses = {}
    for drop in (0.0, 1.0):
        losses[drop] = [
            training_loss(tiny_system(), triptychs(2), schedule(prompt=prompt, text_drop=drop), 0).item()
            for prompt in ("a defect", "a scratch", "")
        ]
    assert len(set(losses[1.0])) == 1 and losses[1.0][0] == losses[0.0][2]
    assert len(set(losses[0.0])) == 3


def test_drops_have_the_share_that_was_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(
        training_step,
        "flow_matching_loss",
        lambda backbone, attention, encoded, prompt, times, noise, keep, _: seen.append(
            (prompt.pooled[:, 0], keep)
        ),
    )
    system, data = tiny_system(), triptychs(4)
    for step in range(250):
        training_loss(system, data, schedule(text_drop=0.1, semantic_drop=0.3), step)
    empty = system.prompts.batch([""]).pooled[0, 0]
    text = torch.cat([pooled for pooled, _ in seen]) == empty
    semantic = ~torch.cat([keep for _, keep in seen])
    assert abs(text.float().mean() - 0.1) < 0.03
    assert abs(semantic.float().mean() - 0.3) < 0.05
    assert abs((text & semantic).float().mean() - 0.03) < 0.02  # independent of each other


def test_gradients_are_clipped_together_at_0_5(monkeypatch):
    assert Schedule._field_defaults["gradient_clip"] == 0.5
    assert (Schedule._field_defaults["text_drop"], Schedule._field_defaults["semantic_drop"]) == (0.1, 0.1)
    norms = []
    system = tiny_system(train_backbone=True)
    optimizer = make_optimizer("adamw", system.trainable(), 1e-3)
    step = optimizer.step

    def record():
        gradients = [value.grad.flatten() for value in system.trainable() if value.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        step()

    monkeypatch.setattr(optimizer, "step", record)
    run(system, schedule(3), optimizer=optimizer)
    assert norms == pytest.approx([0.5] * 3, abs=1e-4)


def test_every_epoch_shows_every_triptych_once_and_batches_run_across():
    batches = batch_indices(5, schedule(5), 0)
    flat = [index for batch in batches for index in batch]
    assert [len(batch) for batch in batches] == [2] * 5
    assert sorted(flat[:5]) == sorted(flat[5:]) == list(range(5)) and flat[:5] != flat[5:]
    assert batch_indices(5, schedule(5), 3) == batches[3:]
    assert batch_indices(1, schedule(2), 0) == [[0, 0], [0, 0]]


def test_a_loss_that_is_not_finite_stops_the_run_with_a_remedy():
    system = tiny_system()
    system.attention[0].scale.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 1: loss nan.*--lr"):
        run(system, schedule())


def test_checkpoints_come_at_their_steps_and_at_the_end():
    saved = []
    run(tiny_system(), schedule(5, save_every=2), save=saved.append)
    assert saved == [2, 4, 5]


def test_loader_processes_change_no_number():
    trained = []
    for workers in (0, 1):
        system = tiny_system(1)
        run(system, schedule(2), workers=workers)
        trained.append(parameters_of(system))
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def test_an_unknown_optimizer_is_refused_and_a_missing_library_named(monkeypatch):
    with pytest.raises(ValueError, match="--optimizer sgd"):
        make_optimizer("sgd", [])
    monkeypatch.setitem(__import__("sys").modules, "prodigyopt", None)
    with pytest.raises(ModuleNotFoundError, match="pip install prodigyopt"):
        make_optimizer("prodigy", [torch.nn.Parameter(torch.zeros(1))])
