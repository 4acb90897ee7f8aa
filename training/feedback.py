"""The feedback loop: both stages alternate, and the text learns again from the better image features.

Two commands run it, each with a recipe of its own as default; evaluation is handed in by them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.utils.data import DataLoader

from forward_utils import ImageFeatures, fixed_anchors, frozen_image_features
from forward_utils_cross_attention import (
    anchors_and_means,
    anchors_seeing_images,
    comparison_seeing_prompts,
    no_scope,
    scope_named,
    text_context_dictionary,
    trained_image_features,
)
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import CLIP
from model.contexts import TextContext
from model.frozen_cache import FrozenCache
from model.mixing import mixed_anchors, mixed_features
from model.settings import CrossAttentionSettings
from run_folder.caches import feature_cache, say_how_it_served
from run_folder.checkpoints import rng_state, save_checkpoint
from run_folder.kinds import FEEDBACK, FINAL_MODEL, loop_file
from run_folder.manifest import write_start
from run_folder.processes import current
from run_folder.resume import begin_run, finished_loops_of
from run_folder.session import Session, create_adapted_model, create_backbone, surgery_of
from run_folder.state import Record, TrainState, save_contexts
from training import feedback_recipes as recipes
from training.base_weights import Origins, load_base
from training.engine import StagePlan, StepLoss
from training.history import draw_curves, loop_lines, training_warnings, write_history
from training.loaders import training_loaders, unaugmented
from training.stages import Stage, continue_stage, image_stage_loss, loss_levels, text_stage_loss

EXTENDABLE = frozenset({"num_feedback_loops"})  # nothing depends on their number: a run may go on with more


class Run(NamedTuple):
    """What stays the same over the loops of a run."""

    session: Session
    model: AdaptedCLIPWithCrossAttention
    clip_surgery: CLIP
    text_loader: DataLoader
    image_loader: DataLoader
    record: Record
    origins: Origins  # from training.base_weights.load_base
    evaluate: Callable[[dict], None] | None = None  # a loop, by what its file will hold; None without
    cache: FrozenCache | None = None  # of what no training changes; None to compute it

    def file(self, loop: int, name: str) -> Path:
        """Path of one of a loop's files."""
        return loop_file(self.session.settings.run.save_path, loop, name)


def text_loss(run: Run, features: ImageFeatures, attends: bool) -> StepLoss:
    """Stage 1's loss, a function of a batch, as train_cross_attention.py's but with the loop's image features."""
    model, settings = run.model, run.session.settings
    scope = (
        scope_named(settings.contexts.context_scope, settings.contexts.context_control)
        if attends
        else no_scope
    )
    return partial(
        text_stage_loss,
        patches_of=features,
        anchors_of=anchors_seeing_images(model, settings.data.dataset, scope),
        loss_levels=loss_levels(model, settings.corrections),
        norm_weight=settings.training.text_norm_weight,
        cls_weight=settings.corrections.text_cls_weight,
    )


def image_loss(run: Run, contexts: dict, anchors_of: Callable) -> StepLoss:
    """Stage 2's loss, a function of a batch, as train_cross_attention.py's."""
    return partial(
        image_stage_loss,
        compare=comparison_seeing_prompts(run.model, contexts, run.cache),
        anchors_of=anchors_of,
        head_temperature=run.session.settings.corrections.head_temperature,
    )


def prepare(session: Session) -> Run:
    """What a run starts from: backbone, adapted model with a baseline's adapters if wanted, batches."""
    settings, device, logger, *_ = session
    text_loader, image_loader = training_loaders(settings, logger)  # read before any weight is looked for
    clip = create_backbone(settings, device, logger)
    clip_surgery = surgery_of(clip, settings)
    model = create_adapted_model(clip, settings, device)
    origins, base = load_base(model, settings, logger)
    record = begin_run(session, FEEDBACK, clip, text_loader.dataset.samples, base, EXTENDABLE)
    cache = feature_cache(settings, clip, logger)
    return Run(session, model, clip_surgery, text_loader, image_loader, record, origins, cache=cache)


def train(session: Session, test_sets_of: Callable, evaluate_loop: Callable) -> None:
    """All loops of a run, from where its files left it.

    Args:
        test_sets_of, evaluate_loop: evaluation.loops's, for `--eval_every_loop`.
    """
    settings, _, logger, *_ = session
    save_path, plans = settings.run.save_path, recipes.plan(settings)
    # Before anything is trained, so that a missing dataset stops the run at once.
    test_sets = test_sets_of(settings, settings.feedback.eval_every_loop, logger)
    run = prepare(session)
    write_start(session, run.record)
    if test_sets:
        run = run._replace(evaluate=partial(evaluate_loop, session, run.model, test_sets=test_sets))

    loops, final = finished_loops_of(session, run.model, EXTENDABLE, run.record)
    current().check_same("finished loops", len(loops))
    for loop in loops if session.left_out else ():
        session.left_out.before(loop["text"] + loop["image"])
    if loops:
        write_loops(save_path, loops)  # a run killed between its last loop and these files gets them now
    for plan in plans[len(loops) :]:
        logger.info(
            f"loop {plan.loop} of {len(plans)}: text {plan.text_epochs} epochs at lr {plan.text_lr:.3g}, image "
            f"{plan.image_epochs} at {plan.image_lr:.3g}, cross-attention {'on' if plan.cross_attention else 'off'}"
        )
        final = train_loop(run, plan, plans[: plan.loop - 1])
        loops.append({"loop": plan.loop} | final["history"])
        write_loops(save_path, loops)
    save_checkpoint(
        Path(save_path) / FINAL_MODEL,
        {"total_loops": len(plans)}
        | {key: value for key, value in final.items() if key not in ("rng", "history")},
    )
    say_how_it_served(run.cache, logger)
    logger.info(f"done: checkpoints, history.json and learning_curves.png in {save_path}")


def write_loops(save_path: str, loops: list[dict]) -> None:
    """history.json and learning_curves.png of the loops so far."""
    write_history(save_path, loops)
    draw_curves(Path(save_path) / "learning_curves.png", loops)


def train_loop(run: Run, plan: recipes.LoopPlan, earlier: list[recipes.LoopPlan]) -> dict[str, Any]:
    """One loop: stage 1 on what the image path gives now, then stage 2 on the new text; everything is carried over.

    Args:
        plan: the loop's LoopPlan.  earlier: those of the loops before.

    Returns:
        the content of the loop's loop_{n}_final.pth.
    """
    settings, model, loop = run.session.settings, run.model, plan.loop
    dataset, control = settings.data.dataset, settings.contexts.context_control
    text_contexts = partial(text_context_dictionary, model, dataset, control)
    # The image path is the one the loop before trained: without attention, if that loop had none.
    seen = text_contexts() if earlier and earlier[-1].cross_attention else {}
    features = stage_1_features(run, loop, seen)
    text = train_one_stage(run, plan, "text", earlier, text_loss(run, features, plan.cross_attention))

    run = run._replace(record=run.record.built_on(model, run.file(loop, "image_adapter")))
    contexts = text_contexts()
    if loop == 1:
        features = frozen_image_features(model, run.clip_surgery, model.levels[:1], run.cache)
    else:  # anchors of each image are made while this loop's attention trains, their means before
        on = (
            plan.cross_attention if settings.contexts.text_context == "image" else earlier[-1].cross_attention
        )
        features = trained_image_features(model, contexts if on else {}, run.cache)
    seen = features if plan.cross_attention else None
    images = unaugmented(run.text_loader)
    anchors_of, means = anchors_and_means(model, dataset, settings.contexts.text_context, seen, images)
    save_contexts(run.file(loop, "text_context_dict"), contexts, means, run.record)
    if settings.mix.feedback_mix != 1:
        frozen = fixed_anchors(model.clipmodel, dataset)
        anchors_of = mixed_anchors(frozen, anchors_of, settings.mix.feedback_mix)

    loss = image_loss(run, contexts if plan.cross_attention else {}, anchors_of)
    image = train_one_stage(run, plan, "image", earlier, loss)

    content = {"loop": loop, "cross_attention": plan.cross_attention, "mean_anchors": means}
    content |= {
        key: module.state_dict() for key, module in (model.text_modules | model.image_modules).items()
    }
    content |= run.record.content() | {
        "rng": rng_state(),
        "history": {"text": text.history, "image": image.history},
    }
    # Before the loop counts as finished, so that a killed run does not leave an evaluation out.
    if run.evaluate:
        run.evaluate(content)
    save_checkpoint(run.file(loop, "final"), content)
    return content


def stage_1_features(run: Run, loop: int, contexts: dict[str, TextContext]) -> ImageFeatures:
    """What a loop's stage 1 learns against: frozen patches, from loop 2 on mixed with those of the trained image path.

    Args:
        contexts: {class name: TextContext} the trained image path attends to.
    """
    model, settings = run.model, run.session.settings
    levels = [model.levels[0], *loss_levels(model, settings.corrections)]
    frozen = frozen_image_features(model, run.clip_surgery, levels, run.cache)
    if loop == 1:
        return frozen
    trained = trained_image_features(model, contexts, run.cache)
    return mixed_features(frozen, trained, settings.mix.feedback_mix)


def train_one_stage(
    run: Run, plan: recipes.LoopPlan, name: str, earlier: list[recipes.LoopPlan], step_loss: StepLoss
) -> TrainState:
    """Train one stage of a loop from where its file left it."""
    settings, logger, model = run.session.settings, run.session.logger, run.model
    modules, loader, epochs, lr = (
        (model.text_modules, run.text_loader, plan.text_epochs, plan.text_lr)
        if name == "text"
        else (model.image_modules, run.image_loader, plan.image_epochs, plan.image_lr)
    )
    optimizer = recipes.optimizer(
        settings.feedback, modules, lr, settings.training.fused_adam, plan.attention_lr
    )
    scheduler = recipes.scheduler(settings, optimizer, name, epochs, len(loader))
    active = active_modules(modules, settings.cross_attention if plan.cross_attention else None)
    stage = Stage(name, model, modules, run.file(plan.loop, f"{name}_adapter"), extendable=EXTENDABLE)
    stage_plan = StagePlan(
        epochs,
        sum(getattr(one, f"{name}_epochs") for one in earlier),
        settings.feedback.clip_norm or None,
        log_gradient_norms_of=active,
        should_stop=recipes.plateau(settings.feedback, epochs),
        log_every=settings.training.log_every,
    )
    origins = (
        run.origins if plan.loop == 1 else dict.fromkeys(modules, f"carried over from loop {plan.loop - 1}")
    )
    origins = origins | dict.fromkeys(modules.keys() - active.keys())
    state = TrainState(name, modules, optimizer, scheduler)
    continue_stage(
        run.session, stage, state, step_loss, loader, stage_plan, record=run.record, origins=origins
    )
    for line in loop_lines(plan.loop, name, state.history):
        logger.info(line)
    for warning in training_warnings(plan.loop, name, state.history):
        logger.warning(warning)
    return state


def active_modules(
    modules: dict[str, nn.Module], attention: CrossAttentionSettings | None
) -> dict[str, nn.Module]:
    """The modules of a stage without a cross-attention that is off, by its weight or (None) in this loop."""
    off = {
        key for key in ("text_cross_attn", "image_cross_attn") if not getattr(attention, f"{key}_weight", 0)
    }
    return {key: module for key, module in modules.items() if key not in off}
