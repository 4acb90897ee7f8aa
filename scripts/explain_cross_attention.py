"""What trained cross-attention does: what it looks at, whether its content matters, how much gradient it gets.

    python -m scripts.explain_cross_attention

explains the runs that `python -m scripts.evidence` left; other runs by --runs, --baselines and --data.

Per run, on the test set: the share of image -> text attention on the words for damage, on the class's own words and on
the rest, for patches inside and outside defects, beside the share of the tokens (attention that looks at nothing in
particular); metrics with the class's own prompts, another class's, a constant and none; the anchors' cosine; and the
part of both stages' gradient that goes to the attention. Written as JSON and Markdown.
"""

import argparse
import glob
import json
import logging
import statistics
from pathlib import Path

import torch

import options
import train_cross_attention
from checkpoints import load_checkpoint
from context_controls import controlled_text_contexts
from dataset import DOMAINS, get_dataset
from dataset.constants import REAL_NAMES
from engine import gradient_norm, to_device
from evaluation import cross_attention_predictor, evaluate, write_text
from forward_utils import class_tokens, get_adapted_text_embedding
from forward_utils_cross_attention import fixed_anchors, text_context_dictionary
from model.adapter import AdaptedCLIP
from model.clip import surgery_copy
from model.tokenizer import tokenize
from run_files import BASELINE, CROSS_ATTENTION
from runs import create_backbone, create_cross_attention_model, only_training, training_loaders
from test_stage2_gradients import load_run

STUDY = "runs/evidence/DemoA_DemoB_data1"
DAMAGE = ("damaged", "broken", "flaw", "defect", "damage")
BATCHES = 8  # of each stage, for the gradients


def token_kinds(dataset, class_name):
    """Kind of every real token of a class's prompts, in the order of its TextContext: "damage", "class" or "other"."""
    damage, own = (set(words_ids(words)) for words in (DAMAGE, REAL_NAMES[dataset][class_name].split()))
    tokens = class_tokens(dataset, class_name)[0]
    real = torch.arange(tokens.shape[1]) <= tokens.argmax(dim=-1, keepdim=True)
    return ["damage" if token in damage else "class" if token in own else "other" for token in tokens[real].tolist()]


def words_ids(words):
    """Token ids of words, without start and end."""
    return [token for row in tokenize(list(words)).tolist() for token in row[1 : row.index(max(row))]]


@torch.no_grad()
def attention_shares(model, dataset, test_sets, contexts):
    """{"inside" or "outside": {kind: share of the attention}, "tokens": {kind: share of the tokens}}, class means."""
    found = {"inside": [], "outside": [], "tokens": []}
    for name, images in test_sets.items():
        kinds = token_kinds(dataset, name)
        member = torch.tensor([[kind == wanted for kind in kinds] for wanted in ("damage", "class", "other")]).float()
        found["tokens"].append(member.mean(dim=1))
        sums = {"inside": [], "outside": []}
        for item in images:
            x = model.attending_tokens(item["image"][None])[:, 1:]
            weights = model.image_cross_attn.attention_map(x, contexts[name].tokens[contexts[name].real])[0]
            side = int(weights.shape[0] ** 0.5)
            covered = torch.nn.functional.adaptive_avg_pool2d(torch.as_tensor(item["mask"]).float(), side).flatten()
            shares = weights @ member.T
            sums["inside"].append(shares[covered > 0.5])
            sums["outside"].append(shares[covered == 0])
        for where, parts in sums.items():
            found[where].append(torch.cat(parts).mean(dim=0))
    return {where: dict(zip(("damage", "class", "other"), torch.stack(parts).mean(dim=0).tolist(), strict=True))
            for where, parts in found.items()}  # fmt: skip


def arguments(folder, kind, args):
    """A run's training flags, as its checkpoint has them, with the data's place and in float32."""
    stored = load_checkpoint(Path(folder) / f"{kind.image_prefix}.pth", keys=["settings"])["settings"]
    flags = options.parse(train_cross_attention.build_parser(), ["--model_name", stored["model_name"]])
    for key, value in stored.items():
        setattr(flags, key, value)
    flags.data_root, flags.precision = args.data, "fp32"
    return flags


def separation(model, dataset):
    """Mean cosine of a dataset's normal and abnormal anchors."""
    with torch.no_grad():
        anchors = get_adapted_text_embedding(model, dataset, "cpu")
    return statistics.mean(float(pair[:, 0] @ pair[:, 1]) for pair in anchors.values())


def gradient_shares(model, clip, flags):
    """Share of the squared gradient norm that goes to each stage's attention, on training batches: {stage: share}."""
    surgery = surgery_copy(clip, flags.surgery_until_layer, across_batch=flags.surgery_attention == "batch")
    patches_of, _ = train_cross_attention.frozen_paths(model, surgery, flags)
    contexts = text_context_dictionary(model, flags.dataset, "cpu", flags.context_control)
    stages = {
        "text": (train_cross_attention.text_modules(model), train_cross_attention.text_loss(
            model, patches_of, flags, "cpu")),
        "image": (train_cross_attention.image_modules(model), train_cross_attention.image_loss(
            model, contexts, fixed_anchors(model, flags.dataset, {}, "cpu"), flags)),
    }  # fmt: skip
    found = {}
    for (stage, (modules, loss_of)), loader in zip(
        stages.items(), training_loaders(flags, logging.getLogger(__name__)), strict=True
    ):
        shares = []
        with only_training(model, modules):
            for _, batch in zip(range(BATCHES), loader, strict=False):
                model.zero_grad(set_to_none=True)
                sum(loss_of(to_device(batch, "cpu")).values()).backward()
                squares = {key: float(gradient_norm(module)) ** 2 for key, module in modules.items()}
                shares.append(squares[f"{stage}_cross_attn"] / sum(squares.values()))
        found[stage] = statistics.mean(shares)
    return found


def explain(folder, args):
    """Everything this script measures of one cross-attention run."""
    flags = arguments(folder, CROSS_ATTENTION, args)
    clip = create_backbone(flags, "cpu")
    model = create_cross_attention_model(clip, flags, "cpu").eval()
    load_run(model, folder)
    test_sets = get_dataset(args.dataset, flags.img_size, "full_shot", 0, "test", logging.getLogger(__name__),
                            data_root=args.data)  # fmt: skip
    contexts = text_context_dictionary(model, args.dataset, "cpu")
    found = {"shares": attention_shares(model, args.dataset, test_sets, contexts),
             "anchor cosine": separation(model, args.dataset), "metrics": {}}  # fmt: skip
    anchors_of, domain = fixed_anchors(model, args.dataset, {}, "cpu"), DOMAINS[args.dataset]
    seen = {control: controlled_text_contexts(contexts, control) for control in ("none", "other_class", "constant")}
    for name, shown in {"own prompts": seen["none"], "another class's": seen["other_class"],
                        "a constant": seen["constant"], "nothing": {}}.items():  # fmt: skip
        predict = cross_attention_predictor(model, shown, anchors_of, flags.img_size, domain)
        mean = evaluate(predict, test_sets, domain, len(model.levels), batch_size=32, device="cpu")["mean"]
        found["metrics"][name] = {key: mean[key] for key in ("pixel_ap", "image_auroc")}
    found["gradient"] = gradient_shares(model, clip, flags)
    return found


def explain_baseline(folder, args):
    """The anchors' cosine of a baseline run."""
    flags = arguments(folder, BASELINE, args)
    model = AdaptedCLIP(create_backbone(flags, "cpu"), flags.text_adapt_weight, flags.image_adapt_weight,
                        flags.text_adapt_until, flags.image_adapt_until, relu=flags.relu).eval()  # fmt: skip
    load_run(model, folder)
    return {"anchor cosine": separation(model, args.dataset)}


def markdown(found, baselines):
    """The runs' means as text."""
    def mean(*keys, of=found):
        values = []
        for one in of.values():
            for key in keys:
                one = one[key]
            values.append(one)
        return statistics.mean(values)

    lines = ["| image → text attention on | damage words | class's words | other |", "|--|--|--|--|"]
    for where, label in (("inside", "patches inside defects"), ("outside", "patches outside"),
                         ("tokens", "(share of the tokens)")):  # fmt: skip
        cells = [f"{100 * mean('shares', where, kind):.1f} %" for kind in ("damage", "class", "other")]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| images see at test | pixel AP | image AUROC |", "|--|--|--|"]
    for name in next(iter(found.values()))["metrics"]:
        cells = [f"{100 * mean('metrics', name, key):.2f}" for key in ("pixel_ap", "image_auroc")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text, image = (100 * mean("gradient", stage) for stage in ("text", "image"))
    lines += ["", f"Share of the squared gradient that goes to the attention: stage 1 {text:.1f} %, stage 2 "
              f"{image:.1f} %.", "", f"Cosine of normal and abnormal anchor: {mean('anchor cosine'):.3f}"]  # fmt: skip
    if baselines:
        lines[-1] += f", baseline {mean('anchor cosine', of=baselines):.3f}."
    return "\n".join(lines) + "\n"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=f"{STUDY}/cross_attention_seed*", help="cross-attention runs, as a pattern")
    parser.add_argument("--baselines", default=f"{STUDY}/baseline_seed*", help="baseline runs, as a pattern")
    parser.add_argument("--dataset", default="DemoB", help="the test set")
    parser.add_argument("--data", default="runs/evidence/data_seed1", help="folder of the rendered sets")
    parser.add_argument("--out", default="results/evidence/explanation", help="file without its ending")
    args = parser.parse_args(argv)
    folders = sorted(glob.glob(args.runs))
    if not folders:
        raise FileNotFoundError(f"--runs {args.runs}: no such folder")
    others = sorted(glob.glob(args.baselines))
    if not others:
        raise FileNotFoundError(f"--baselines {args.baselines}: no such folder")
    found = {Path(folder).name: explain(folder, args) for folder in folders}
    baselines = {Path(folder).name: explain_baseline(folder, args) for folder in others}
    write_text(f"{args.out}.json", json.dumps(found | baselines, indent=1) + "\n")
    told = markdown(found, baselines)
    write_text(f"{args.out}.md", told)
    print(told)


if __name__ == "__main__":
    main()
