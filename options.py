"""Every flag the scripts share, declared once. Names and defaults of AA-CLIP's flags are upstream's."""

import argparse
import json
from pathlib import Path

from context_controls import CONTROLS
from model import self_reference

MODEL_DEFAULTS = Path(__file__).parent / "model" / "run_defaults.json"
ODDITIES = {  # flag: (AA-CLIP's behaviour, the corrected one)
    "text_loss_levels": ("last", "all"),
    "quick_gelu": (False, True),
    "surgery_attention": ("batch", "spatial"),
    "head_temperature": (1.0, 100.0),
    "milestones": ([16000.0, 32000.0], [0.5, 0.8]),
    "text_cls_weight": (0.0, 1.0),
}
GELU_MODELS = ("ViT-Tiny-8-demo",)  # trained with GELU: there is nothing for --quick_gelu to correct


def add_model_flags(parser):
    """Backbone and adapter flags; training and testing must agree on them."""
    group = parser.add_argument_group("model")
    group.add_argument("--model_name", default="ViT-L-14-336", help="open_clip ViT, or ViT-Tiny-8-demo (shipped)")
    group.add_argument("--clip_weights", help="weight file (.pt, .safetensors); else AACLIP_CLIP_WEIGHTS")
    group.add_argument("--img_size", type=int, default=518, help="image side in pixels")
    group.add_argument("--surgery_until_layer", type=int, default=20, help="last n-1 vision blocks: value-value")
    group.add_argument("--relu", action="store_true", help="LeakyReLU after the segmentation and detection projections")
    group.add_argument("--text_adapt_weight", type=float, default=0.1, help="residual weight of the text adapters")
    group.add_argument("--image_adapt_weight", type=float, default=0.1, help="residual weight of the image adapters")
    group.add_argument("--text_adapt_until", type=int, default=3, help="text blocks followed by an adapter")
    group.add_argument("--image_adapt_until", type=int, default=6, help="vision blocks followed by an adapter")


def add_cross_attention_flags(parser):
    """The cross-attention modules; training and testing must agree on them."""
    group = parser.add_argument_group("cross-attention")
    group.add_argument("--cross_attn_heads", type=int, default=8)
    group.add_argument("--cross_attn_dropout", type=float, default=0.1, help="on attention weights, in training only")
    group.add_argument("--text_cross_attn_weight", type=float, default=0.1, help="scale of text -> image; 0 = off")
    group.add_argument("--image_cross_attn_weight", type=float, default=0.1, help="scale of image -> text; 0 = off")
    group.add_argument("--context_scope", choices=["class", "batch"], default="class",
                       help="stage 1: a class sees its own images of the batch, or the batch's mean")  # fmt: skip
    group.add_argument("--text_context", choices=["none", "train_mean", "image"], default="none",
                       help="image context of the anchors after stage 1")  # fmt: skip
    group.add_argument("--context_control", choices=CONTROLS, default="none",
                       help="control of a study: contexts without information, same parameters")  # fmt: skip
    group.add_argument("--cross_attn_gate", choices=["fixed", "learned", "zero"], default="fixed",
                       help="the scales: as given, or learned from there, or learned from 0")  # fmt: skip
    group.add_argument("--image_cross_attn_after", type=int, default=0, help="vision block (from 0) of image -> text")
    group.add_argument("--self_reference", type=float, default=0.0,
                       help="start of the weight of each patch's rarity in its own image; 0 = off")  # fmt: skip
    group.add_argument("--self_reference_head", type=float, default=1.0,
                       help="start of the weight of the rarest patches in the head score; 0 = off")  # fmt: skip
    group.add_argument("--self_reference_neighbours", type=float, default=0.08,
                       help="share of the image's patches that a patch is compared with")  # fmt: skip
    group.add_argument("--self_reference_control", choices=self_reference.CONTROLS, default="none",
                       help="control of a study: no rarity, or in the wrong places")  # fmt: skip
    group.add_argument("--no_norm_match", action="store_true", help="ablation: residual without norm matching")
    group.add_argument("--no_normalize_context", action="store_true", help="ablation: text context of any length")


def add_base_flags(parser):
    """Starting from a baseline's checkpoints."""
    group = parser.add_argument_group("start")
    group.add_argument("--load_base_text_adapter", help="text_adapter.pth of a baseline run")
    group.add_argument("--load_base_image_adapter", help="image_adapter.pth of a baseline run")


def add_run_flags(parser, save_path):
    """Where a run lives and what it runs on."""
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=int, default=111, help="seed of weights, order, augmentation and k-shot choice")
    group.add_argument("--save_path", default=save_path, help="the run's folder")
    group.add_argument("--device", help="torch device; default CUDA if there, else CPU")
    group.add_argument("--workers", type=int, default=0, help="data loader processes; never changes a number")


def add_data_flags(parser, dataset, shot):
    """Dataset flags; see the README for own datasets."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default=dataset, help="dataset name")
    group.add_argument("--shot", type=int, default=shot, help="images per class of few_shot, half abnormal; 0 = all")
    group.add_argument("--data_root", help="folder that holds the datasets; else AACLIP_DATA, else ./data")
    group.add_argument("--dataset_config", help="JSON/YAML file that declares own datasets")
    group.add_argument("--real_names", help="JSON/YAML file {dataset: {class: real name}} that overrides prompt names")


def add_network_oddity_flags(parser):
    """The oddities that live in the frozen network, and so in testing too."""
    group = parser.add_argument_group("corrections of AA-CLIP's oddities in the network")
    group.add_argument("--quick_gelu", action=argparse.BooleanOptionalAction, default=False,
                       help="run OpenAI's QuickGELU weights with QuickGELU")  # fmt: skip
    group.add_argument("--surgery_attention", choices=["batch", "spatial"], default="batch",
                       help="axis of the surgery model's attention")  # fmt: skip


def add_oddity_flags(parser):
    """AA-CLIP's oddities are the defaults; each flag corrects one of them, --corrected all."""
    add_network_oddity_flags(parser)
    group = parser.add_argument_group("corrections of AA-CLIP's oddities (defaults are the untouched baseline)")
    group.add_argument("--corrected", action="store_true", help="turn every correction on; single flags still win")
    group.add_argument("--text_loss_levels", choices=["last", "all"], default="last", help="levels in stage 1's loss")
    group.add_argument("--head_temperature", type=float, default=1.0, help="factor on stage 2's image logits")
    group.add_argument("--milestones", type=float, nargs="+", default=[16000.0, 32000.0],
                       help="image LR steps: batches, or fractions of the run when all are below 1")  # fmt: skip
    group.add_argument("--text_cls_weight", type=float, default=0.0, help="weight of stage 1's image loss (Eq. 4)")


def add_training_flags(parser):
    """The two stages' schedule."""
    group = parser.add_argument_group("training")
    group.add_argument("--training_mode", choices=["few_shot", "full_shot"], default="few_shot",
                       help="--shot images per class, or all")  # fmt: skip
    group.add_argument("--extra_meta", help="jsonl of more training images, such as generate_anomalies.py's; paths "
                       "relative to its folder or as in the dataset's metadata")  # fmt: skip
    group.add_argument("--extra_ratio", type=float, help="share of the training set that --extra_meta's rows make up")
    group.add_argument("--text_batch_size", type=int, default=16, help="images per step of stage 1")
    group.add_argument("--image_batch_size", type=int, default=2, help="images per step of stage 2")
    group.add_argument("--text_epoch", type=int, default=5, help="0: anchors come from plain CLIP")
    group.add_argument("--image_epoch", type=int, default=20, help="passes of stage 2")
    group.add_argument("--text_lr", type=float, default=1e-5, help="learning rate of stage 1")
    group.add_argument("--image_lr", type=float, default=5e-4, help="learning rate of stage 2")
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32",
                       help="products in the vision blocks and their adapters in training")  # fmt: skip
    group.add_argument("--text_norm_weight", type=float, default=0.1, help="weight of the anchors' orthogonality loss")
    group.add_argument("--criterion", nargs="*", default=["dice_loss", "focal_loss"],
                       help="accepted for AA-CLIP's command lines; never read, there or here")  # fmt: skip


def parse(parser, argv=None):
    """Parse flags; values the user did not type come from the chosen backbone's defaults, then from --corrected.

    `model/run_defaults.json` holds the backbone's own defaults (a 12-block CLIP cannot use a 24-block one's).

    Returns:
        namespace with one attribute more, `typed`: the names of the flags on the command line.
    """
    typed = typed_flags(parser, argv)
    model_name, _ = parser.parse_known_args(argv)
    per_model = json.loads(MODEL_DEFAULTS.read_text(encoding="utf-8")).get(model_name.model_name, {})
    own = {action.dest for action in parser._actions}
    parser.set_defaults(**{key: value for key, value in per_model.items() if key in own})
    args = parser.parse_args(argv)
    args.typed = typed
    if getattr(args, "corrected", False):
        for flag, (_, corrected) in ODDITIES.items():
            if flag not in typed:
                setattr(args, flag, corrected)
    control = getattr(args, "context_control", "none")
    if control != "none" and args.text_context != "none":
        parser.error(f"--context_control {control}: needs --text_context none")
    if control == "other_class" and args.context_scope == "batch":
        parser.error("--context_control other_class: in --context_scope batch all classes share one context already")
    for flag in ("self_reference_head", "self_reference_neighbours", "self_reference_control"):
        if flag in typed and not args.self_reference and getattr(args, flag) != parser.get_default(flag):
            parser.error(f"--{flag} {getattr(args, flag)}: does nothing without --self_reference")
    if getattr(args, "quick_gelu", False) and args.model_name in GELU_MODELS:
        if "quick_gelu" in typed:
            parser.error(f"--quick_gelu: {args.model_name} was trained with GELU, QuickGELU would only distort it")
        args.quick_gelu = False
    return args


def typed_flags(parser, argv=None):
    """Names of the flags that stand on the command line."""
    class Seen(argparse.Namespace):
        pass

    seen = Seen()
    for action in parser._actions:
        if action.dest != "help":
            setattr(seen, action.dest, NOT_TYPED)
    namespace, _ = parser.parse_known_args(argv, seen)
    return sorted(name for name, value in vars(namespace).items() if value is not NOT_TYPED)


NOT_TYPED = object()


def settings(args):
    """The flags as plain values for a checkpoint."""
    return {key: value for key, value in vars(args).items() if key != "typed"}


def changed_oddities(stored):
    """{flag: value} of the oddity flags in stored settings that differ from AA-CLIP's behaviour."""
    return {flag: stored[flag] for flag, (kept, _) in ODDITIES.items() if flag in stored and stored[flag] != kept}
