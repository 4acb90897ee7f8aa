"""Evaluate a run (or unadapted CLIP) on a dataset: table, metrics.json, metrics.csv, scores to compare, pictures."""

import argparse

import torch

import options
from attention_pictures import draw_attention
from checkpoints import load_checkpoint, load_module
from comparison.scores import class_scores, scores_file, sha256, write_scores
from dataset import DOMAINS, get_dataset
from evaluation import adapted_predictor, evaluate, format_table, raw_clip_predictor, write_metrics
from feedback_evaluation import cross_attention_weights, load_loop, loop_of, loop_predictor, write_loop_table
from forward_utils import get_adapted_text_embedding
from metrics import METRICS_VERSION
from model.adapter import AdaptedCLIP
from run_files import BASELINE, CROSS_ATTENTION, FEEDBACK, find_run, text_checkpoint
from runs import adopt_settings, create_backbone, create_cross_attention_model, declare_datasets, record_of
from utils import choose_device, close_logger, get_logger, setup_seed
from visualization import visualize


def build_parser():
    """The flags of this script: AA-CLIP's and what chooses a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_model_flags(parser)
    options.add_cross_attention_flags(parser)
    options.add_network_oddity_flags(parser)
    options.add_data_flags(parser, dataset="MVTec", shot=4)
    options.add_run_flags(parser, save_path="ckpt/baseline")
    group = parser.add_argument_group("evaluation")
    group.add_argument("--batch_size", type=int, default=32, help="images scored together; changes rounding only")
    group.add_argument("--checkpoint", help="image checkpoint file; default the run's last")
    group.add_argument("--all", action="store_true", help="evaluate every numbered image checkpoint, or every loop")
    group.add_argument("--loop", type=int, help="this loop of a feedback run instead of its final model")
    group.add_argument("--raw_clip", action="store_true", help="evaluate the unadapted backbone instead of a run")
    group.add_argument("--no_cross_attention", action="store_true", help="ablation: cross-attention off at test")
    group.add_argument("--visualize", action="store_true", help="write original, truth and heatmap as PNGs")
    group.add_argument("--attention_of", nargs="+", default=[], metavar="IMAGE",
                       help="draw both cross-attentions for these images (paths as in the metadata)")  # fmt: skip
    group.add_argument("--attention_word", default="damaged", help="the prompt word whose attention is drawn")
    return parser


def load_text_side(model, kind, image_checkpoint, logger):
    """Load the run's text checkpoint; False for a baseline that has none (trained with --text_epoch 0).

    Raises:
        FileNotFoundError: a cross-attention run lacks it, whose images cannot attend to prompts without it.
    """
    path = text_checkpoint(kind, image_checkpoint)
    if not path.is_file() and kind is BASELINE:
        logger.info(f"no {path.name} beside {image_checkpoint.name}: anchors from plain CLIP")
        return False
    content = load_checkpoint(path, keys=kind.text_keys)
    for key in kind.text_keys:
        load_module(getattr(model, key), content[key], path)
    logger.info(f"{path.name}: epoch {content.get('epoch')}")
    return True


def stored_means(folder, text_context):
    """Anchors averaged over training images, from the run's text_context_dict.pth; {} unless `train_mean` is wanted.

    Raises:
        FileNotFoundError, RuntimeError: `train_mean` is wanted and the file is missing or holds no such anchors.
    """
    if text_context != "train_mean":
        return {}
    return load_checkpoint(folder / "text_context_dict.pth", keys=["mean_anchors"])["mean_anchors"]


def used_files(kind, image_checkpoint, args):
    """The files of a run that decide an evaluation's numbers, those of them that exist."""
    files = [image_checkpoint, text_checkpoint(kind, image_checkpoint)]
    if kind is CROSS_ATTENTION and args.text_context == "train_mean":
        files.append(image_checkpoint.parent / "text_context_dict.pth")
    return [file for file in files if file.is_file()]


def main(argv=None):
    args = options.parse(build_parser(), argv)
    setup_seed(args.seed)
    kind, files = (BASELINE, []) if args.raw_clip else find_run(args.save_path, args.checkpoint, args.all, args.loop)
    if args.attention_of and kind is BASELINE:
        raise ValueError("--attention_of draws cross-attention, which raw CLIP and a baseline run do not have")
    stored = load_checkpoint(files[-1], keys=kind.image_keys).get("settings") if files else None
    logger = get_logger(args.save_path, "test.log")
    device = choose_device(args.device)
    adopt_settings(args, stored, files[-1] if files else None, logger)
    declare_datasets(args)
    test_sets = get_dataset(args.dataset, args.img_size, "full_shot", args.shot, "test", logger,
                            data_root=args.data_root)  # fmt: skip
    domain = DOMAINS[args.dataset]
    clip = create_backbone(args, device)
    about = {"model_name": args.model_name, "img_size": args.img_size, "domain": domain, "kind": kind.name}

    def report(name, predict, levels, settings, used=()):
        scores = {}

        def keep(class_name, found):
            scores[class_name] = class_scores(found, test_sets[class_name].samples, domain, levels)
            if args.visualize:
                images = [item["image"] for item in test_sets[class_name]]
                visualize(found["masks"], found["maps"], found["files"], args.save_path, args.dataset, class_name,
                          images)  # fmt: skip

        result = evaluate(predict, test_sets, domain, levels, batch_size=args.batch_size, device=device,
                          workers=args.workers, on_class=keep)  # fmt: skip
        logger.info(f"{args.dataset} with {name} @{args.img_size}px\n{format_table(result['upstream'])}")
        mean = {key: f"{value:.4f}" for key, value in result["mean"].items() if isinstance(value, float)}
        logger.info("mean over classes: " + ", ".join(f"{key} {value}" for key, value in mean.items()))
        write_metrics(args.save_path, args.dataset, name, result, about | {"settings": settings})
        stored_about = about | {
            "settings": settings, "tested_with": options.settings(args), "metrics_version": METRICS_VERSION,
            "levels": levels, "checkpoint": name, "checkpoints": {file.name: sha256(file) for file in used},
            "classes": result["classes"],
        }  # fmt: skip
        write_scores(scores_file(args.save_path, args.dataset, name), scores, stored_about)
        return result

    if args.raw_clip:
        with torch.no_grad():
            anchors = get_adapted_text_embedding(clip, args.dataset, device)
        predict = raw_clip_predictor(clip, anchors, args.img_size, domain)
        results = [report("raw_clip", predict, 1, record_of(args).settings)]
    else:
        results = evaluate_run(kind, files, clip, args, device, logger, test_sets, report)
    close_logger(logger)
    return results


def evaluate_run(kind, files, clip, args, device, logger, test_sets, report):
    """Evaluate every checkpoint file of a run; the results of `report`."""
    if kind is BASELINE:
        return evaluate_baseline(files, clip, args, device, logger, report)
    model = create_cross_attention_model(clip, args, device).eval()
    evaluate_files = evaluate_feedback if kind is FEEDBACK else evaluate_cross_attention
    results, predict, contexts, first_patches = evaluate_files(model, files, args, device, logger, report)
    if args.attention_of:
        draw_attention(model, predict, test_sets, contexts, first_patches, args, device, logger)
    return results


def evaluate_baseline(files, clip, args, device, logger, report):
    """Every image checkpoint of a baseline run with its one text checkpoint."""
    model = AdaptedCLIP(clip, args.text_adapt_weight, args.image_adapt_weight, args.text_adapt_until,
                        args.image_adapt_until, relu=args.relu).to(device).eval()  # fmt: skip
    adapted_text = load_text_side(model, BASELINE, files[-1], logger)
    with torch.no_grad():
        anchors = get_adapted_text_embedding(model if adapted_text else clip, args.dataset, device)
    predict, results = adapted_predictor(model, anchors, args.img_size, DOMAINS[args.dataset]), []
    for file in files:
        content = load_checkpoint(file, keys=BASELINE.image_keys)
        load_module(model.image_adapter, content["image_adapter"], file)
        used = used_files(BASELINE, file, args)
        results.append(report(file.name, predict, len(model.levels), content.get("settings"), used))
    return results


def evaluate_cross_attention(model, files, args, device, logger, report):
    """Every image checkpoint of a cross-attention run with its one text checkpoint."""
    load_text_side(model, CROSS_ATTENTION, files[-1], logger)
    predict, contexts, first_patches = loop_predictor(
        model, args.dataset, 1, stored_means(files[-1].parent, args.text_context), args, device,
        cross_attention=not args.no_cross_attention,
    )  # fmt: skip
    results = []
    for file in files:
        content = load_checkpoint(file, keys=list(model.image_modules))
        for key, module in model.image_modules.items():
            load_module(module, content[key], file)
        used = used_files(CROSS_ATTENTION, file, args)
        results.append(report(file.name + ending(args), predict, len(model.levels), content.get("settings"), used))
    return results, predict, contexts, first_patches


def evaluate_feedback(model, files, args, device, logger, report):
    """Every loop in `files`, each with its own text side, and their table if `--all`."""
    results = []
    for file in files:
        content = load_loop(model, file)
        model.text_cross_attn_weight, model.image_cross_attn_weight = cross_attention_weights(args, content)
        logger.info(f"{file.name}: loop {loop_of(content)}")
        predict, contexts, first_patches = loop_predictor(
            model, args.dataset, loop_of(content), content.get("mean_anchors", {}), args, device,
            cross_attention=not args.no_cross_attention,
        )  # fmt: skip
        results.append(report(file.name + ending(args), predict, len(model.levels), content.get("settings"), [file]))
    if args.all and args.checkpoint is None and args.loop is None:
        logger.info(write_loop_table(args.save_path))
    return results, predict, contexts, first_patches


def ending(args):
    """What the entry of an ablation is called behind its file's name."""
    return " without cross-attention" if args.no_cross_attention else ""


if __name__ == "__main__":
    main()
