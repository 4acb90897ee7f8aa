"""Steps that are not finite: what ends a stage, what --on_nan skip leaves out: training/finite_steps.py."""

import json
import shutil
from functools import partial

import pytest
import torch

import train
from files.tensors import DamagedFile, load_tensors
from run_folder.guarded_step import LeftOut
from run_folder.state import TrainState
from training.engine import StagePlan, train_stage

BROKEN = float("nan")


@pytest.fixture(params=[1, 3])
def every(request, monkeypatch):
    """Steps between two looks: a CPU's, and those of a device that has to be waited for."""
    monkeypatch.setattr("training.engine.steps_per_look", lambda plan, device: request.param)
    return request.param


@pytest.fixture
def train_on(lines, batch):
    """Function (factors of the batches, steps that may be left out, optimiser) -> TrainState of one weight, trained."""

    def run(factors, more=None, kind=torch.optim.Adam, gradient=1.0, saved=None):
        weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        run.state = state = TrainState("text", {}, kind([weight], lr=0.1))
        batches = [
            batch | {"file_name": [f"{number}.png"], "factor": factor}
            for number, factor in enumerate(factors)
        ]

        def step_loss(batch):
            loss = (weight * (1.0 if gradient is BROKEN else batch["factor"])).sum()
            if gradient is BROKEN:  # the loss stays finite
                loss.register_hook(lambda _: None)
                weight.register_hook(lambda grad, factor=batch["factor"]: grad * factor)
            return {"line": loss}

        left_out = None if more is None else LeftOut(more, lines[0].warning)
        plan = StagePlan(1, left_out=left_out)
        saves = [] if saved is None else saved
        train_stage(state, step_loss, batches, plan, "cpu", lines[0], lambda now: saves.append(now.epoch))
        return state

    return run


def values_of(state):
    (weight,) = state.optimizer.param_groups[0]["params"]
    return [
        weight.detach(),
        *(value for value in state.optimizer.state[weight].values() if value is not None),
    ]


@pytest.mark.bit_equality
@pytest.mark.parametrize("kind", [torch.optim.Adam, partial(torch.optim.Adam, fused=True), torch.optim.SGD])
@pytest.mark.parametrize("broken", [(0,), (2,), (5,), (1, 2, 4)])
def test_a_step_that_is_left_out_leaves_no_trace(train_on, every, lines, kind, broken):
    state = train_on([BROKEN if number in broken else 1.0 + number for number in range(6)], 10, kind)
    wanted = train_on([1.0 + number for number in range(6) if number not in broken], None, kind)
    assert all(torch.equal(*pair) for pair in zip(values_of(state), values_of(wanted), strict=True))
    (entry,), (wanted_entry,) = state.history, wanted.history
    assert entry["steps_left_out"] == len(broken) and "steps_left_out" not in wanted_entry
    assert entry["loss"] == pytest.approx(wanted_entry["loss"], rel=1e-6)
    assert entry["terms"]["line"] == pytest.approx(wanted_entry["terms"]["line"], rel=1e-6)
    said = [line for line in lines[1] if "the step is left out" in line]
    assert [f"for {number}.png: the step is left out, {9 - place} more" in said[place]
            for place, number in enumerate(broken)] == [True] * len(broken)  # fmt: skip


def test_the_eleventh_step_ends_the_stage_and_nothing_behind_it_moves(train_on, every):
    saved, factors = [], [1.0, 1.0, *[BROKEN] * 11, 1.0, 1.0]  # the eleventh is the first of three looked at
    with pytest.raises(
        FloatingPointError, match=r"line = nan\) for 12.png. Nothing was updated; as many steps as may"
    ):
        train_on(factors, 10, saved=saved)
    assert saved == []
    stopped = values_of(train_on.state)
    once = values_of(train_on([1.0, 1.0]))
    assert all(torch.equal(*pair) for pair in zip(stopped, once, strict=True))


def test_an_epoch_of_left_out_steps_alone_is_an_error(train_on, every):
    with pytest.raises(FloatingPointError, match="no step had a finite loss and gradient"):
        train_on([BROKEN, BROKEN], 10)


@pytest.mark.parametrize("factor", [BROKEN, float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_broken_gradient_under_a_finite_loss_is_neither_stepped_nor_saved(train_on, every, factor, at):
    saved = []
    with pytest.raises(FloatingPointError, match=rf"the gradient is not finite \(line = .*\) for {at}.png"):
        train_on([factor if number == at else 1.0 for number in range(4)], gradient=BROKEN, saved=saved)
    assert saved == []
    assert all(value.isfinite().all() for value in values_of(train_on.state))


def test_weights_that_are_not_finite_are_named_and_no_image_is_blamed(lines, batch):
    module = torch.nn.Linear(2, 1)
    module.weight.data[0, 1] = BROKEN
    state = TrainState("text", {"text_adapter": module}, torch.optim.SGD(module.parameters(), lr=0.1))
    with pytest.raises(
        FloatingPointError, match="The cause is no file: of the weights text_adapter.weight was not"
    ):
        train_stage(
            state,
            lambda batch: {"line": module(torch.ones(1, 2)).sum()},
            [batch],
            StagePlan(1),
            "cpu",
            lines[0],
            lambda now: None,
        )


@pytest.fixture
def broken_batches(monkeypatch):
    """Function (numbers of the steps of stage 1 whose loss is not finite)."""
    whole = train.text_stage_loss

    def break_them(numbers):
        count = [0]

        def step_loss(*args, **options):
            terms = whole(*args, **options)
            count[0] += 1
            return {term: value * (BROKEN if count[0] in numbers else 1) for term, value in terms.items()}

        monkeypatch.setattr(train, "text_stage_loss", step_loss)

    return break_them


def test_the_flag_leaves_steps_out_and_counts_those_of_calls_before(train_flags, broken_batches, tmp_path):
    longer = [*train_flags, "--text_epoch", "5", "--image_epoch", "0"]
    broken_batches(range(2, 7))  # of 3 steps an epoch
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        train.main([*longer, "--save_path", str(tmp_path / "stop")])
    broken_batches(range(2, 7))
    with pytest.raises(FloatingPointError, match="no step had a finite loss and gradient"):
        train.main([*longer, "--on_nan", "skip"])  # steps 4 to 6 are all of the second epoch
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert log.count("the step is left out") == 5 and "the step is left out, 5 more may be" in log
    content = load_tensors(tmp_path / "run" / "text_adapter.pth")
    assert content["epoch"] == 1 and content["history"][0]["steps_left_out"] == 2
    broken_batches([1])
    train.main([*longer, "--on_nan", "skip"])
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "the step is left out, 7 more may be" in log  # 2 in the epoch that was saved, 1 now
    history = json.loads((tmp_path / "run" / "history.json").read_text(encoding="utf-8"))
    assert [entry.get("steps_left_out", 0) for entry in history["loops"][0]["text"]] == [2, 1, 0, 0, 0]


@pytest.mark.parametrize("value", [BROKEN, float("inf")])
def test_a_checkpoint_that_is_not_finite_is_refused_with_file_and_tensor(tmp_path, value):
    path = tmp_path / "a.pth"
    torch.save({"text_adapter": {"0.weight": torch.tensor([1.0, value, value])}}, path)
    with pytest.raises(
        DamagedFile, match=r"a.pth holds .*text_adapter/0.weight \(2 of 3\).*images are not the cause"
    ):
        load_tensors(path)


def test_a_backbone_that_is_not_finite_is_refused_with_file_and_tensor(clip, weights, model_name, tmp_path):
    from safetensors.torch import load_file, save_file

    from model.clip import create_model

    state = load_file(weights)
    name = next(name for name in state if name.endswith("mlp.c_fc.weight"))
    state[name][0, 0] = BROKEN
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(DamagedFile, match=rf"broken.safetensors holds CLIP weights .*{name} \(1 of"):
        create_model(model_name, 32, "openai", clip_weights=tmp_path / "broken.safetensors")


@pytest.mark.bit_equality
def test_a_stage_whose_last_file_is_not_finite_goes_on_from_the_one_before(train_flags, tmp_path):
    run, two = tmp_path / "run", [*train_flags, "--text_epoch", "1", "--image_epoch", "2"]
    train.main(two)
    wanted = load_tensors(run / "image_adapter.pth")["image_adapter"]
    for name in ("image_adapter.pth", "image_adapter_2.pth"):
        content = torch.load(run / name, weights_only=True)
        content.pop("digests")
        next(iter(content["image_adapter"].values()))[:] = BROKEN
        torch.save(content, run / name)
    shutil.copy(run / "image_adapter.pth", run / "broken")
    train.main(two)
    found = load_tensors(run / "image_adapter.pth")["image_adapter"]
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert "image_adapter.pth holds values that are not finite" in (run / "train.log").read_text(
        encoding="utf-8"
    )
