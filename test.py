"""Evaluate a run (or unadapted CLIP) on a dataset: table, metrics.json, metrics.csv, pictures."""

import argparse
from pathlib import Path

import torch

import options
from checkpoints import load_checkpoint, load_module, numbered_checkpoints
from dataset import DOMAINS, get_dataset, load_dataset_config, load_real_names
from evaluation import adapted_predictor, evaluate, format_table, raw_clip_predictor, write_metrics
from forward_utils import get_adapted_text_embedding
from model.adapter import AdaptedCLIP
from model.clip import create_model
from runs import adopt_settings, record_of
from utils import choose_device, close_logger, get_logger, setup_seed
from visualization import visualize


def build_parser():
    """The flags of this script: AA-CLIP's and what chooses a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_model_flags(parser)
    parser.add_argument("--quick_gelu", action=argparse.BooleanOptionalAction, default=False,
                        help="run OpenAI's QuickGELU weights with QuickGELU (a correction, see train.py)")  # fmt: skip
    options.add_data_flags(parser, dataset="MVTec", shot=4)
    options.add_run_flags(parser, save_path="ckpt/baseline")
    group = parser.add_argument_group("evaluation")
    group.add_argument("--batch_size", type=int, default=32)
    group.add_argument("--checkpoint", help="image adapter file; default the run's last")
    group.add_argument("--all", action="store_true", help="evaluate every image_adapter_{n}.pth of the run, by number")
    group.add_argument("--raw_clip", action="store_true", help="evaluate the unadapted backbone instead of a run")
    group.add_argument("--visualize", action="store_true", help="write original, truth and heatmap as PNGs")
    return parser


def find_checkpoints(args):
    """The image adapter files to evaluate.

    Raises:
        FileNotFoundError: the run has none.
    """
    folder = Path(args.save_path)
    if args.checkpoint:
        return [Path(args.checkpoint)]
    numbered = [path for _, path in numbered_checkpoints(folder)]
    if args.all and numbered:
        return numbered
    last = folder / "image_adapter.pth"
    if last.is_file():
        return [last]
    if numbered:
        return numbered[-1:]
    raise FileNotFoundError(
        f"no image_adapter.pth in {folder}: train with --save_path {folder}, or name the run's folder; "
        "--raw_clip evaluates the unadapted backbone"
    )


def load_text_adapter(model, args, image_checkpoint, logger):
    """Load the run's text adapter; False if the run has none (trained with --text_epoch 0)."""
    path = image_checkpoint.parent / "text_adapter.pth"
    if not path.is_file():
        logger.info(f"no {path.name} beside {image_checkpoint.name}: anchors from plain CLIP")
        return False
    content = load_checkpoint(path, keys=["text_adapter"])
    load_module(model.text_adapter, content["text_adapter"], path)
    logger.info(f"{path.name}: epoch {content.get('epoch')}")
    return True


def main(argv=None):
    args = options.parse(build_parser(), argv)
    setup_seed(args.seed)
    files = [] if args.raw_clip else find_checkpoints(args)
    stored = load_checkpoint(files[-1], keys=["image_adapter"]).get("settings") if files else None
    logger = get_logger(args.save_path, "test.log")
    device = choose_device(args.device)
    adopt_settings(args, stored, files[-1] if files else None, logger)
    if args.dataset_config:
        load_dataset_config(args.dataset_config)
    if args.real_names:
        load_real_names(args.real_names)
    test_sets = get_dataset(args.dataset, args.img_size, "full_shot", args.shot, "test", logger,
                            data_root=args.data_root)  # fmt: skip
    domain = DOMAINS[args.dataset]
    clip = create_model(args.model_name, args.img_size, pretrained="openai", device=device, require_pretrained=True,
                        quick_gelu=args.quick_gelu, clip_weights=args.clip_weights)  # fmt: skip
    about = {"model_name": args.model_name, "img_size": args.img_size, "domain": domain}

    def report(name, predict, levels, settings):
        def pictures(class_name, found):
            images = [item["image"] for item in test_sets[class_name]]
            visualize(found["masks"], found["maps"], found["files"], args.save_path, args.dataset, class_name, images)

        result = evaluate(predict, test_sets, domain, levels, batch_size=args.batch_size, device=device,
                          workers=args.workers, on_class=pictures if args.visualize else None)  # fmt: skip
        logger.info(f"{args.dataset} with {name} @{args.img_size}px\n{format_table(result['upstream'])}")
        mean = {key: f"{value:.4f}" for key, value in result["mean"].items() if isinstance(value, float)}
        logger.info("mean over classes: " + ", ".join(f"{key} {value}" for key, value in mean.items()))
        write_metrics(args.save_path, args.dataset, name, result, about | {"settings": settings})
        return result

    if args.raw_clip:
        with torch.no_grad():
            anchors = get_adapted_text_embedding(clip, args.dataset, device)
        predict = raw_clip_predictor(clip, anchors, args.img_size, domain)
        results = [report("raw_clip", predict, 1, record_of(args).settings)]
    else:
        results = []
        model = AdaptedCLIP(clip, args.text_adapt_weight, args.image_adapt_weight, args.text_adapt_until,
                            args.image_adapt_until, relu=args.relu).to(device).eval()  # fmt: skip
        adapted_text = load_text_adapter(model, args, files[-1], logger)
        with torch.no_grad():
            anchors = get_adapted_text_embedding(model if adapted_text else clip, args.dataset, device)
        for file in files:
            content = load_checkpoint(file, keys=["image_adapter"])
            load_module(model.image_adapter, content["image_adapter"], file)
            predict = adapted_predictor(model, anchors, args.img_size, domain)
            results.append(report(file.name, predict, len(model.levels), content.get("settings")))
    close_logger(logger)
    return results


if __name__ == "__main__":
    main()
