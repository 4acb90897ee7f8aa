"""What the image -> text attention of a trained run looks at: damage words, class words or the rest, by region."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from dataset.constants import REAL_NAMES
from forward_utils import class_tokens
from forward_utils_cross_attention import TextContext
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.tokenizer import tokenize

KINDS = ("damage", "class", "other")  # of tokens
DAMAGE = ("damaged", "broken", "flaw", "defect", "damage")


def token_kinds(dataset: str, class_name: str) -> list[str]:
    """Kind of every real token of a class's prompts, in the order of its TextContext: "damage", "class" or "other"."""
    damage_words, class_words = (
        set(words_ids(words)) for words in (DAMAGE, REAL_NAMES[dataset][class_name].split())
    )
    tokens = class_tokens(dataset, class_name)[0]
    real = torch.arange(tokens.shape[1]) <= tokens.argmax(dim=-1, keepdim=True)
    return [
        "damage" if token in damage_words else "class" if token in class_words else "other"
        for token in tokens[real].tolist()
    ]


def words_ids(words: Sequence[str]) -> list[int]:
    """Token ids of words, without start and end."""
    return [token for row in tokenize(list(words)).tolist() for token in row[1 : row.index(max(row))]]


@torch.no_grad()
def attention_shares(
    model: AdaptedCLIPWithCrossAttention,
    dataset: str,
    test_sets: dict[str, Dataset],
    contexts: dict[str, TextContext],
) -> dict[str, dict[str, float]]:
    """Attention shares of a test set, inside and outside its defects.

    Args:
        test_sets: {class: dataset}.
        contexts: {class: the prompts its images see}.

    Returns:
        {"inside" or "outside": {kind: share of the attention}, "tokens": {kind: share of the tokens}}, class means.
    """
    class_shares = {"inside": [], "outside": [], "tokens": []}
    for name, images in test_sets.items():
        kinds = token_kinds(dataset, name)
        # [3, tokens]: 1 where the token is of the kind
        is_kind = torch.tensor([[kind == one for kind in kinds] for one in KINDS]).float()
        class_shares["tokens"].append(is_kind.mean(dim=1))
        image_shares = {"inside": [], "outside": []}
        for item in images:
            if not item["mask_known"]:
                continue
            x = model.attending_tokens(item["image"][None])[:, 1:]
            weights = model.image_cross_attn.attention_map(x, contexts[name].seen)[0]
            side = int(weights.shape[0] ** 0.5)
            covered = F.adaptive_avg_pool2d(torch.as_tensor(item["mask"]).float(), side).flatten()
            shares = weights @ is_kind.T  # [patches, 3]
            image_shares["inside"].append(shares[covered > 0.5])
            image_shares["outside"].append(shares[covered == 0])
        for region, parts in image_shares.items():
            class_shares[region].append(torch.cat(parts).mean(dim=0))
    return {
        region: dict(zip(KINDS, torch.stack(parts).mean(dim=0).tolist(), strict=True))
        for region, parts in class_shares.items()
    }
