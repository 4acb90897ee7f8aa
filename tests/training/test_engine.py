"""The training loop, both stages' losses, AA-CLIP's deviations in them: training/, train.train_*_adapter."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

import train
from forward_utils import (
    anchors_of_batch,
    calculate_seg_loss,
    calculate_similarity_map,
    frozen_patches,
    get_adapted_text_embedding,
)
from model.adapter import patch_logits
from model.clip import surgery_copy
from run_folder.flags import settings_of
from run_folder.settings import BASELINE_GROUPS
from run_folder.state import TrainState
from training.engine import StagePlan, gradient_norm, steps_per_look, to_device, train_stage
from training.finite_steps import FiniteSteps
from training.stages import image_stage, orthogonality_loss, segmentation, text_stage, train_and_save


@pytest.fixture
def surgery(clip):
    return surgery_copy(clip, 3)


def optimizer_of(module, lr=1e-3):
    return torch.optim.Adam(module.parameters(), lr=lr, betas=(0.5, 0.999))


def of_flags(values):
    return settings_of(BASELINE_GROUPS, values)


@pytest.fixture
def train_text(adapted, surgery, lines, tmp_path):
    """Function (batches, epochs, **corrections) -> epoch losses of stage 1, read from upstream's log."""

    def run(batches, epochs=1, lr=1e-3, norm_weight=0.1, **corrections):
        logger, messages = lines
        optimizer = optimizer_of(adapted.text_adapter, lr)
        if corrections:  # upstream's arguments know none
            values = {"dataset": "MVTec", "text_norm_weight": norm_weight} | corrections
            stage, loss = (
                text_stage(train.KIND, adapted, tmp_path),
                train.text_loss(adapted, surgery, of_flags(values)),
            )
            state = TrainState("text", stage.modules, optimizer)
            train_and_save(stage, state, loss, batches, StagePlan(epochs), "cpu", logger)
        else:
            trained = train.train_text_adapter(
                adapted_model=adapted,
                clip_surgery=surgery,
                text_norm_weight=norm_weight,
                train_loader=batches,
                optimizer=optimizer,
                device="cpu",
                start_epoch=0,
                save_path=str(tmp_path),
                text_epoch=epochs,
                dataset_name="MVTec",
                img_size=32,
                logger=logger,
            )
            assert trained is adapted
        return [float(line.removeprefix("loss: ")) for line in messages if line.startswith("loss: ")]

    return run


@pytest.fixture
def train_image(adapted, lines, tmp_path):
    """The same for stage 2."""

    def run(batches, epochs=1, lr=1e-3, milestones=(16000, 32000), **corrections):
        logger, messages = lines
        optimizer = optimizer_of(adapted.image_adapter, lr)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma=0.5)
        with torch.no_grad():
            anchors = get_adapted_text_embedding(adapted, "MVTec", "cpu")
        if corrections:
            stage, settings = image_stage(train.KIND, adapted, tmp_path), of_flags(corrections)
            loss = train.image_loss(
                adapted, lambda batch: torch.stack([anchors[name] for name in batch["class_name"]]), settings
            )
            state = TrainState("image", stage.modules, optimizer, scheduler)
            train_and_save(stage, state, loss, batches, StagePlan(epochs), "cpu", logger)
        else:
            trained = train.train_image_adapter(
                model=adapted,
                text_embeddings=anchors,
                train_loader=batches,
                optimizer=optimizer,
                scheduler=scheduler,
                device="cpu",
                start_epoch=0,
                save_path=str(tmp_path),
                image_epoch=epochs,
                img_size=32,
                logger=logger,
            )
            assert trained is adapted
        return [float(line.removeprefix("loss: ")) for line in messages if line.startswith("loss: ")]

    return run


def segmentation_by_hand(patches, anchors, mask):
    return float(calculate_seg_loss(calculate_similarity_map(patches, anchors, 32), mask))


@torch.no_grad()
def stage_1_parts(adapted, surgery, batch):
    """(segmentation loss of each level, orthogonality, cls, anchors) of the untrained model."""
    patches, cls = frozen_patches(adapted.clipmodel, surgery, batch["image"], [1, 2, 3, 4])
    anchors = anchors_of_batch(adapted, "MVTec", batch["class_name"])
    levels = [segmentation_by_hand(patches[level], anchors, batch["mask"]) for level in (1, 2, 3, 4)]
    return levels, float(orthogonality_loss(anchors)), cls, anchors


def test_only_the_last_level_trains_the_text_by_default_and_all_levels_with_the_correction(
    adapted, surgery, batch, train_text
):
    levels, orthogonality, _, _ = stage_1_parts(adapted, surgery, batch)
    assert train_text([batch], lr=0.0)[-1] == pytest.approx(levels[-1] + 0.1 * orthogonality, rel=1e-5)
    corrected = train_text([batch], lr=0.0, text_loss_levels="all")[-1]
    assert corrected == pytest.approx(sum(levels) + 0.1 * orthogonality, rel=1e-5)


def test_stage_1_has_no_image_loss_by_default_and_a_weighted_one_with_the_correction(
    adapted, surgery, batch, train_text
):
    _, _, cls, anchors = stage_1_parts(adapted, surgery, batch)
    image_loss = float(F.cross_entropy(100 * torch.einsum("be,bec->bc", cls, anchors), batch["label"]))
    plain = train_text([batch], lr=0.0)[-1]
    assert train_text([batch], lr=0.0, text_cls_weight=0.5)[-1] - plain == pytest.approx(
        0.5 * image_loss, rel=1e-4
    )


def test_the_text_norm_weight_scales_the_orthogonality(adapted, surgery, batch, train_text):
    _, orthogonality, _, _ = stage_1_parts(adapted, surgery, batch)
    light, heavy = (train_text([batch], lr=0.0, norm_weight=weight)[-1] for weight in (0.0, 10.0))
    assert heavy - light == pytest.approx(10 * orthogonality, rel=1e-4)


def test_stage_2_sums_all_levels_and_bare_cosine_logits_by_default_scaled_ones_with_the_correction(
    adapted, batch, train_image
):
    with torch.no_grad():
        seg, det = adapted(batch["image"])
        anchors = anchors_of_batch(adapted, "MVTec", batch["class_name"])
        levels = sum(segmentation_by_hand(level, anchors, batch["mask"]) for level in seg)
        cosines = torch.einsum("be,bec->bc", det, anchors)
    for temperature, options in ((1, {}), (100, {"head_temperature": 100.0})):
        want = levels + float(F.cross_entropy(temperature * cosines, batch["label"]))
        assert train_image([batch], lr=0.0, **options)[-1] == pytest.approx(want, rel=1e-5)


def test_the_learning_rate_halves_at_milestones_counted_in_batches(batch, train_image, lines, tmp_path):
    train_image([batch, batch], epochs=3, lr=1e-3, milestones=(2, 5))
    rates = [re.search(r"lr (\S+),", line)[1] for line in lines[1] if line.startswith("stage image")]
    assert rates == ["0.0005", "0.0005", "0.00025"]


def test_the_log_has_upstreams_lines_in_upstreams_order(batch, train_text, train_image, lines):
    train_text([batch, batch], epochs=2)
    train_image([batch], epochs=1)
    upstream = [line for line in lines[1] if line.startswith(("training", "loss"))]
    assert [re.sub(r"loss: -?\d+\.\d+(e-?\d+)?$", "loss: x", line) for line in upstream] == [
        "training text epoch 0:",
        "loss: x",
        "training text epoch 1:",
        "loss: x",
        "training image epoch 0:",
        "loss: x",
    ]


def test_the_logged_loss_is_the_mean_over_the_batches(batch, train_text):
    other = batch | {"mask": 1 - batch["mask"]}
    alone = train_text([batch], lr=0.0)[-1], train_text([other], lr=0.0)[-1]
    assert alone[0] != pytest.approx(alone[1], rel=1e-3)
    assert train_text([batch, other], lr=0.0)[-1] == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_both_stages_learn_one_batch(batch, train_text, train_image):
    text = train_text([batch] * 4, epochs=4, lr=1e-2)
    assert text[3] < text[0]
    image = train_image([batch] * 4, epochs=4, lr=1e-2)[4:]
    assert image[3] < image[0]


@pytest.mark.bit_equality
def test_the_text_stage_changes_the_text_adapter_only_and_the_image_stage_the_image_adapter_only(
    adapted, batch, train_text, train_image
):
    def changed(before):
        now = adapted.state_dict()
        return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, now[name])}

    for train_one, part in ((train_text, "text_adapter"), (train_image, "image_adapter")):
        before = {name: value.clone() for name, value in adapted.state_dict().items()}
        train_one([batch])
        assert changed(before) == {part}
    assert all(parameter.grad is None for parameter in adapted.clipmodel.parameters())


def test_upstreams_batches_without_file_names_and_with_other_dtypes_train(batch, train_text, train_image):
    del batch["file_name"]
    batch |= {"mask": batch["mask"].to(torch.uint8), "label": batch["label"].float()}
    assert math.isfinite(train_text([batch])[-1]) and math.isfinite(train_image([batch])[-1])


def test_checkpoints_have_upstreams_names_and_keys(batch, train_text, train_image, tmp_path):
    train_text([batch], epochs=2)
    train_image([batch], epochs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "image_adapter.pth",
        "image_adapter_1.pth",
        "image_adapter_2.pth",
        "text_adapter.pth",
    ]
    for name, keys, epoch in (
        ("text_adapter.pth", {"epoch", "text_adapter", "text_optimizer"}, 2),
        ("image_adapter_1.pth", {"epoch", "image_adapter", "image_optimizer"}, 1),
        ("image_adapter.pth", {"epoch", "image_adapter", "image_optimizer"}, 2),
    ):
        content = torch.load(tmp_path / name, weights_only=True)
        assert keys <= set(content) and content["epoch"] == epoch


@pytest.mark.bit_equality
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_terms_and_files(
    adapted, batch, train_image, train_text, tmp_path
):
    batch["image"] = batch["image"].clone()
    batch["image"][0, 0, 0, 0] = float("nan")
    for train_one, stage, module in (
        (train_text, "text", adapted.text_adapter),
        (train_image, "image", adapted.image_adapter),
    ):
        before = [parameter.detach().clone() for parameter in module.parameters()]
        with pytest.raises(FloatingPointError) as error:
            train_one([batch])
        text = str(error.value)
        assert f"stage '{stage}', epoch 0" in text and "segmentation = nan" in text
        assert "a.png, b.png, c.png, d.png" in text
        assert all(torch.equal(now, then) for now, then in zip(module.parameters(), before, strict=True))
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.bit_equality
def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_not_stepped_on(loop, batch):
    def terms(weight, batch):
        return {"root": (weight - 1.0).sqrt()}  # 0 at the weight's start, with an infinite slope

    with pytest.raises(
        FloatingPointError, match=r"the gradient is not finite \(root = 0.0, gradient norm = inf\)"
    ):
        loop(terms, [batch])
    assert loop.weight.item() == 1


@pytest.fixture
def far_device(monkeypatch):
    """The engine looks at the losses as on a device that has to be waited for: after every third step."""
    monkeypatch.setattr("training.engine.steps_per_look", lambda plan, device: 3)


@pytest.mark.bit_equality
def test_a_guarded_step_gives_the_numbers_of_a_plain_one(
    batch, train_image, adapted, far_device, monkeypatch
):
    start = {name: value.clone() for name, value in adapted.state_dict().items()}
    losses = train_image([batch] * 4, epochs=2)
    guarded = {name: value.clone() for name, value in adapted.state_dict().items()}
    adapted.load_state_dict(start)
    monkeypatch.setattr("training.engine.steps_per_look", lambda plan, device: 1)
    assert train_image([batch] * 4, epochs=2)[2:] == losses
    assert all(torch.equal(guarded[name], value) for name, value in adapted.state_dict().items())
    assert not torch.equal(
        guarded["image_adapter.det_proj.fc.weight"], start["image_adapter.det_proj.fc.weight"]
    )


@pytest.mark.bit_equality
@pytest.mark.parametrize("broken_at", [0, 1, 4])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_device_that_is_looked_at_later_has_not_stepped_either_and_the_right_batch_is_named(
    batch, lines, far_device, kind, broken_at
):
    def train_on(numbers):
        weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = kind([weight], lr=0.1, weight_decay=0.1)
        state, seen = TrainState("text", {}, optimizer), []

        def step_loss(batch):
            seen.append(batch["file_name"])
            return {"line": (weight * batch["factor"]).sum()}

        batches = [
            batch | {"file_name": [f"{number}.png"], "factor": float("nan") if number == broken_at else 1.0}
            for number in numbers
        ]
        try:
            train_stage(state, step_loss, batches, StagePlan(1), "cpu", lines[0], lambda state: None)
        except FloatingPointError as error:
            return weight, optimizer, seen, str(error)
        return weight, optimizer, seen, ""

    weight, optimizer, seen, error = train_on(range(7))
    assert f"line = nan) for {broken_at}.png. Nothing was updated" in error
    assert len(seen) == (3 if broken_at < 3 else 6)  # the look's own steps are made, and no more
    whole, wanted, *_ = train_on(range(broken_at)) if broken_at else (torch.tensor([1.0, 2.0]), None)
    assert torch.equal(weight, whole)
    for name, value in (wanted.state[whole] if wanted else {}).items():
        if value is not None:  # SGD's momentum, which it does not have here
            assert torch.equal(optimizer.state[weight][name], value)
    if not wanted:
        assert all(not value.any() for value in optimizer.state[weight].values() if value is not None)


def test_a_broken_step_at_an_epochs_end_is_found_before_anything_is_saved(loop, batch, far_device):
    def terms(weight, batch):
        return {"line": weight * batch["factor"]}

    good, bad = batch | {"factor": 1.0}, batch | {"factor": float("inf"), "file_name": ["bad.png"]}
    with pytest.raises(FloatingPointError, match=r"line = inf\) for bad.png"):
        loop(terms, [good, bad])
    assert loop.saved == [] and loop.weight.item() == pytest.approx(0.9)


def test_losses_on_a_cpu_are_looked_at_every_step_and_on_a_gpu_every_log_every():
    plan = StagePlan(1, log_every=20)
    assert (steps_per_look(plan, "cpu"), steps_per_look(plan, torch.device("cuda", 0))) == (1, 20)
    with pytest.raises(ValueError, match="--log_every 0: expected 1 step or more"):
        FiniteSteps(None, 0)


@pytest.fixture
def loop(lines):
    """Function (step_loss, loader, **plan) that trains one weight; returns (weight, epochs saved)."""

    def run(step_loss, loader, start_epoch=0, epochs=1, history=(), **plan):
        weight, saved = torch.nn.Parameter(torch.tensor(1.0)), []
        run.weight, run.saved = weight, saved
        state = TrainState(
            "text", {}, torch.optim.SGD([weight], lr=0.1), epoch=start_epoch, history=list(history)
        )
        run.state = train_stage(
            state,
            lambda batch: step_loss(weight, batch),
            loader,
            StagePlan(epochs, **plan),
            "cpu",
            lines[0],
            lambda state: saved.append(state.epoch),
        )
        assert run.state is state
        return weight.item(), saved

    return run


def test_an_infinite_term_stops_the_run_even_when_another_hides_it(loop, batch):
    def terms(weight, batch):
        return {"up": weight * float("inf"), "down": -weight * float("inf")}

    with pytest.raises(FloatingPointError, match=r"up = inf, down = -inf"):
        loop(terms, [batch])


def test_gradients_do_not_pile_up_from_batch_to_batch(loop, batch):
    weight, _ = loop(lambda weight, batch: {"line": 1.0 * weight}, [batch, batch])
    assert weight == pytest.approx(0.8)


def test_an_empty_loader_is_an_error_with_its_stage(loop):
    with pytest.raises(ValueError, match="stage 'text': the loader gave no batch"):
        loop(lambda weight, batch: {"line": weight}, [])


def test_a_run_cannot_be_shortened(loop, batch):
    with pytest.raises(
        ValueError, match="7 epochs are done, --text_epoch asks for 5: a run cannot be shortened"
    ):
        loop(lambda weight, batch: {"line": weight}, [batch], start_epoch=7, epochs=5)


def test_a_stage_starts_at_its_epoch_saves_after_each_and_tells_the_loader_which_it_is(loop, batch, lines):
    class Loader(list):
        def __init__(self, items):
            super().__init__(items)
            self.dataset, self.sampler, self.told = self, self, []

        def set_epoch(self, epoch):
            self.told.append(epoch)

    loader = Loader([batch])
    assert loop(lambda weight, batch: {"line": 1.0 * weight}, loader, start_epoch=2, epochs=4)[1] == [3, 4]
    assert loader.told == [2, 2, 3, 3]  # dataset and sampler
    assert [line for line in lines[1] if line.startswith("training")] == [
        f"training text epoch {n}:" for n in (2, 3)
    ]
    assert loop(lambda weight, batch: {"line": weight}, [], start_epoch=4, epochs=4)[1] == []


def test_an_epochs_line_names_stage_terms_rate_and_time(loop, batch, lines):
    loop(lambda weight, batch: {"first": weight * 2, "second": weight * 0.5}, [batch])
    assert re.fullmatch(r"stage text epoch 1/1: first 2.0000, second 0.5000, lr 0.1, \d+\.\d s", lines[1][-1])


def test_an_epochs_entry_has_its_number_means_rate_and_seconds(loop, batch):
    def terms(weight, batch):
        return {"first": weight * 2, "second": weight * 0.5}

    loop(terms, [batch, batch], start_epoch=1, epochs=3, history=[{"loss": 9.0}])
    before, first, second = loop.state.history
    assert before == {"loss": 9.0} and [entry["epoch"] for entry in (first, second)] == [1, 2]
    assert set(first) == {"epoch", "loss", "terms", "lr", "seconds", "gradients"} and first["seconds"] >= 0
    assert (
        first["loss"] == pytest.approx(2.5 * (1 + 0.75) / 2)
        and first["lr"] == 0.1
        and first["gradients"] == {}
    )
    assert first["terms"] == pytest.approx({"first": 2 * 0.875, "second": 0.5 * 0.875})
    assert second["loss"] == pytest.approx(2.5 * (0.5 + 0.25) / 2)


def test_gradients_are_logged_before_they_are_clipped(batch, lines):
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    state = TrainState("text", {}, torch.optim.SGD(module.parameters(), lr=1.0))
    plan = StagePlan(1, clip_norm=0.5, log_gradient_norms_of={"layer": module})
    train_stage(
        state, lambda batch: {"line": 4 * module.weight.sum()}, [batch], plan, "cpu", lines[0], lambda _: None
    )
    assert module.weight.item() == pytest.approx(-0.5)
    assert state.history[0]["gradients"] == {"layer": 4.0}
    assert lines[1][-2:] == [
        "stage text epoch 1/1: mean gradient norm: layer 4.000e+00",
        "Average Grad Norm: 4.000000",
    ]
    module.zero_grad(set_to_none=True)
    assert float(gradient_norm(module)) == 0


def test_a_stage_stops_before_the_epoch_its_plan_does_not_want(loop, batch, lines):
    _, saved = loop(
        lambda weight, batch: {"line": 1.0 * weight},
        [batch],
        epochs=5,
        should_stop=lambda history: len(history) == 2,
    )
    assert (
        saved == [1, 2]
        and lines[1][-1] == "stage text: the loss has reached a plateau, stopped before epoch 3/5"
    )


def test_the_data_goes_on_from_the_epochs_of_stages_before(loop, batch):
    class Loader(list):
        told = []

        def set_epoch(self, epoch):
            self.told.append(epoch)

    loader = Loader([batch])
    loader.sampler = loader
    loop(lambda weight, batch: {"line": 1.0 * weight}, loader, start_epoch=1, epochs=3, epoch_offset=10)
    assert loader.told == [11, 12]


def test_segmentation_adds_the_levels(batch):
    generator = torch.Generator().manual_seed(1)
    levels = [F.normalize(torch.randn(4, 16, 8, generator=generator), dim=-1) for _ in range(2)]
    anchors = F.normalize(torch.randn(8, 2, generator=generator), dim=0).expand(4, 8, 2)
    parts = [segmentation_by_hand(level, anchors, batch["mask"]) for level in levels]
    logits = [patch_logits(level, anchors) for level in levels]
    assert float(segmentation(logits, batch["mask"])) == pytest.approx(sum(parts), rel=1e-6)


def test_a_batch_goes_to_the_device_with_float_masks_and_integer_labels_and_the_callers_stays(batch):
    batch["mask"] = batch["mask"].bool()
    moved = to_device(batch, "cpu")
    assert moved["mask"].dtype == torch.float32 and moved["label"].dtype == torch.int64
    assert batch["mask"].dtype == torch.bool and moved["class_name"] is batch["class_name"]
