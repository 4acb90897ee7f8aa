"""The frozen CLIP backbone: open_clip's modules under AA-CLIP's public interface."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from model.attention import use_batch_first_attention
from model.blocks import block_at, run_blocks, token_at
from model.names import architecture_name, meant
from model.recompute import recomputed
from model.surgery import replace_attention
from model.weights_file import WeightsSource, find_weights, load_backbone_weights

CONFIGS = Path(__file__).parent / "model_configs"
CLIP_VOCABULARY = 49408  # byte pairs of OpenAI's tokenizer


class VisionTower(nn.Module):
    """A CLIP ViT with the parts AA-CLIP reaches for: `ln_post`, `proj`, `DAPM_replace`."""

    def __init__(self, visual: nn.Module, autocast: torch.dtype | None = None):
        """
        Args:
            visual: open_clip's VisionTransformer, with a CLS token and CLS pooling.
            autocast: dtype of the blocks' matrix products (torch.bfloat16); weights, residual stream and projections
                stay as they are. None for the weights' own.
        """
        super().__init__()
        self.conv1 = visual.conv1
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.grid_size, self.patch_size, self.image_size = (
            visual.grid_size,
            visual.patch_size,
            visual.image_size,
        )
        self.ln_pre, self.transformer = visual.ln_pre, visual.transformer
        self.ln_post, self.proj = visual.ln_post, visual.proj
        self.autocast, self.recompute_blocks = autocast, False
        use_batch_first_attention(self.transformer.resblocks)

    def DAPM_replace(self, DPAM_layer: int, across_batch: bool = True) -> None:  # upstream's names
        """Give the last `DPAM_layer` - 1 blocks value-value attention; see model.surgery for `across_batch`."""
        self.transformer.resblocks = replace_attention(
            self.transformer.resblocks, DPAM_layer - 1, across_batch
        )

    def embed(self, image: Tensor) -> Tensor:
        """Input tokens of the first block: images [B, 3, H, W] -> [B, N, C], CLS first.

        Raises:
            ValueError: the images are not of the size the positions were made for.
        """
        if tuple(image.shape[-2:]) != tuple(self.image_size):
            raise ValueError(
                f"images of {tuple(image.shape[-2:])} pixels in a backbone made for {tuple(self.image_size)}: "
                "give create_model and the dataset the same --img_size"
            )
        x = self.conv1(image).flatten(2).transpose(1, 2)  # [B, L, C]
        cls = self.class_embedding.expand(x.shape[0], 1, -1)
        return self.ln_pre(torch.cat([cls, x], dim=1) + self.positional_embedding)

    def run(
        self,
        x: Tensor,
        levels: Sequence[int] = (),
        after_block: Callable[[int, Tensor], Tensor] | None = None,
        stop_after: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """`run_blocks` over the tower's blocks, in its precision: tokens [B, N, C] -> (last, [tokens per level])."""
        return run_blocks(
            self.transformer.resblocks,
            x,
            levels,
            after_block,
            stop_after,
            autocast=self.autocast,
            recompute=self.recompute_blocks,
        )

    def run_to_cls(self, x: Tensor, passed: int = 0) -> Tensor:
        """CLS [B, 1, C] after the last block, of tokens [B, N, C] that have passed some blocks; for frozen passes."""
        blocks = list(self.transformer.resblocks)[passed:]
        if not blocks:
            return x[:, :1]
        x, _ = run_blocks(blocks[:-1], x, autocast=self.autocast)
        with nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast):
            return block_at(x, blocks[-1])


class CLIP(nn.Module):
    """Frozen CLIP; parameter names are OpenAI's and open_clip's."""

    def __init__(
        self, model: nn.Module, source: WeightsSource | None = None, autocast: torch.dtype | None = None
    ):
        """
        Args:
            model: open_clip.model.CLIP with a ViT image tower and end-of-text pooling.
            source: where its weights are from; None for random ones.
            autocast: of the vision tower's blocks, as in VisionTower.
        """
        super().__init__()
        self.source, self.recompute_blocks = source, False
        self.visual = VisionTower(model.visual, autocast)
        self.transformer = model.transformer
        use_batch_first_attention(self.transformer.resblocks)
        self.token_embedding, self.positional_embedding = model.token_embedding, model.positional_embedding
        self.ln_final, self.text_projection, self.logit_scale = (
            model.ln_final,
            model.text_projection,
            model.logit_scale,
        )
        self.register_buffer("attn_mask", model.attn_mask, persistent=False)
        self.context_length, self.vocab_size = model.context_length, model.vocab_size

    @property
    def embed_dim(self) -> int:
        """Width E of the shared image-text space."""
        return self.visual.proj.shape[1]

    @property
    def default_levels(self) -> list[int]:
        """The four quarters of the vision depth: 6, 12, 18, 24 for 24 blocks."""
        depth = len(self.visual.transformer.resblocks)
        return [depth * quarter // 4 for quarter in (1, 2, 3, 4)]

    def encode_image(self, image: Tensor, out_layers: Iterable[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Pooled embedding and the tokens of some levels.

        Args:
            image: [B, 3, H, W], normalised with CLIP's mean and standard deviation.
            out_layers: levels (1-based block counts) to return.

        Returns:
            (pooled [B, E], [tokens [B, N, C] per level]); tokens before `ln_post`, CLS first.
        """
        x, tokens = self.visual.run(self.visual.embed(image), tuple(out_layers))
        return self.pool(x), tokens

    def embed_image(self, image: Tensor) -> Tensor:
        """Pooled embedding [B, E] of images [B, 3, H, W], as `encode_image` gives it; of the last block CLS alone."""
        return self.pool(self.visual.run_to_cls(self.visual.embed(image)))

    def pool(self, tokens: Tensor) -> Tensor:
        """The image embedding [B, E] of the last block's tokens [B, N, C], of which CLS, the first, is read."""
        return self.visual.ln_post(tokens[:, 0]) @ self.visual.proj

    def text_tokens(
        self,
        text: Tensor,
        after_block: Callable[[int, Tensor], Tensor] | None = None,
        stop_after: int | None = None,
    ) -> Tensor:
        """Tokens of the text tower, each of which sees itself and those before: ids [P, T] -> [P, T, W].

        Args:
            after_block, stop_after: of `run_blocks`; all blocks are run when None.
        """
        length = text.shape[1]
        x = self.token_embedding(text) + self.positional_embedding[:length]
        causal = self.attn_mask[:length, :length]
        blocks, again = self.transformer.resblocks, self.recompute_blocks
        return run_blocks(blocks, x, (), after_block, stop_after, attn_mask=causal, recompute=again)[0]

    def text_tokens_at_end(
        self, text: Tensor, after_block: Callable[[int, Tensor], Tensor] | None = None
    ) -> Tensor:
        """`ln_final` features at the end-of-text token: ids [P, T] -> [P, W].

        Attention is causal, so the columns behind the longest prompt cannot change the result and are cut. Of ids on a
        device all columns are used: to read how many are needed would wait for it, so cut them before they go there.
        """
        end = text.argmax(dim=-1)
        if text.device.type == "cpu":
            text = text[:, : int(end.max()) + 1]
        return self.text_at_end(self.text_tokens(text, stop_after=1), end, after_block)

    def text_at_end(
        self, tokens: Tensor, end: Tensor, after_block: Callable[[int, Tensor], Tensor] | None = None
    ) -> Tensor:
        """`ln_final` features of prompts from where text block 0 left them; of the last block the end tokens alone.

        Args:
            tokens: [P, T, W], of `text_tokens(ids, stop_after=1)`: what no adapter or context has changed yet.
            end: [P] of int64, the place of each prompt's end token.
            after_block: of `run_blocks`.

        Returns:
            [P, W].
        """
        adapt, blocks, length = after_block or _unchanged, list(self.transformer.resblocks), tokens.shape[1]
        x, last = adapt(0, tokens), len(blocks) - 1
        if not last:
            return self.ln_final(token_at(x, end)[:, 0])
        causal, again = self.attn_mask[:length, :length], self.recompute_blocks
        later = partial(_shifted, adapt)
        x, _ = run_blocks(blocks[1:last], x, (), later, attn_mask=causal, recompute=again)
        options = {"block": blocks[last], "end": end}
        x = recomputed(block_at, x, **options) if again else block_at(x, **options)
        return self.ln_final(adapt(last, x)[:, 0])

    def encode_text(self, text: Tensor) -> Tensor:
        """Text embedding of token ids [P, T] -> [P, E], not normalised."""
        return self.text_tokens_at_end(text) @ self.text_projection


def _unchanged(i, x):
    """The tokens after block i as they are."""
    return x


def _shifted(after_block, i, x):
    """after_block for the blocks behind the first one, counted from 0."""
    return after_block(i + 1, x)


def create_model(
    model_name: str,
    img_size: int,
    pretrained: str | None = None,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    cache_dir: Path | str | None = None,
    require_pretrained: bool = False,
    *,
    quick_gelu: bool = False,
    clip_weights: Path | str | None = None,
    vision_autocast: torch.dtype | None = None,
) -> CLIP:
    """Build a frozen CLIP backbone and load its weights; the positional arguments are upstream's.

    Args:
        model_name: an open_clip ViT architecture in either spelling (ViT-L-14-336, ViT-L/14@336px), or
            ViT-Tiny-8-demo (shipped with weights).
        img_size: image side in pixels; positions are resized (bicubic) to its patch grid.
        pretrained: "openai" or another open_clip tag, a weight file, or None for random weights.
        precision: "fp32", "fp16" or "bf16".
        device: torch device of the result.
        cache_dir: where open_clip keeps its downloads.
        require_pretrained: raise instead of returning random weights when `pretrained` is None.
        quick_gelu: build the activation OpenAI trained with. Known deviation, kept by default: off, although OpenAI's
            weights are QuickGELU weights. Networks trained with GELU (the tiny demo CLIP) must leave it off.
        clip_weights: weight file; before the environment's AACLIP_CLIP_WEIGHTS, and both before every other place.
        vision_autocast: dtype of the vision blocks' matrix products alone (torch.bfloat16 for `--precision bf16`).

    Raises:
        ValueError: unknown or unsupported architecture, or an image smaller than a patch. Pixels beyond the last
            whole patch are not seen.
        FileNotFoundError: no weights were found; the message says where it looked.
        RuntimeError: the weight file is damaged or belongs to another architecture.
    """
    model_name = architecture_name(model_name)
    with nullcontext() if pretrained is None else torch.device("meta"):  # the file's tensors take the places
        model = _build(model_name, img_size, quick_gelu)
    if pretrained is None and require_pretrained:
        raise ValueError("require_pretrained without `pretrained`: pass pretrained='openai', a tag or a file")
    source = None
    if pretrained is not None:
        path = find_weights(model_name, pretrained, clip_weights, cache_dir)
        source = load_backbone_weights(model, path, model_name)
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision not in dtypes:
        raise ValueError(f"precision {precision!r}: choose one of {sorted(dtypes)}")
    clip = CLIP(model, source, vision_autocast)
    return clip.to(device=device, dtype=dtypes[precision]).requires_grad_(False).eval()


def _build(model_name, img_size, quick_gelu):
    """An open_clip CLIP of random weights, checked to be one this project can adapt."""
    import open_clip  # here, because importing it takes two seconds

    open_clip.add_model_config(CONFIGS)
    config = open_clip.get_model_config(model_name)
    if config is None:
        raise ValueError(
            f"--model_name {model_name}: unknown to open_clip{meant(model_name, open_clip.list_models())}; try "
            "ViT-L-14-336 or ViT-Tiny-8-demo"
        )
    patch = config.get("vision_cfg", {}).get("patch_size")
    foreign = sorted(set(config) - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"})
    text = config.get("text_cfg", {})
    if not patch or foreign or text.get("vocab_size") != CLIP_VOCABULARY or "hf_model_name" in text:
        raise ValueError(
            f"--model_name {model_name}: needs a ViT image tower and CLIP's own text tower and vocabulary"
        )
    if img_size < patch:
        raise ValueError(f"--img_size {img_size} is smaller than one {patch}-pixel patch of {model_name}")
    model = open_clip.CLIP(
        config["embed_dim"],
        vision_cfg=config["vision_cfg"] | {"image_size": img_size},
        text_cfg=text,
        quick_gelu=quick_gelu or config.get("quick_gelu", False),
    )
    visual = getattr(model, "visual", None)
    plain_vit = (
        isinstance(visual, open_clip.transformer.VisionTransformer)
        and visual.pool_type == "tok"
        and visual.attn_pool is None
    )
    if not plain_vit or getattr(model, "text_pool_type", None) != "argmax" or visual.final_ln_after_pool:
        raise ValueError(
            f"--model_name {model_name}: needs CLS pooling and end-of-text pooling, as OpenAI's ViTs have"
        )
    return model


@contextmanager
def full_precision(clip: CLIP) -> Iterator[None]:
    """Float32 in a backbone's vision blocks that was built with `vision_autocast`; as before afterwards."""
    before, clip.visual.autocast = clip.visual.autocast, None
    try:
        yield
    finally:
        clip.visual.autocast = before


def surgery_copy(clip: CLIP, surgery_until_layer: int, across_batch: bool = True) -> CLIP:
    """The surgery model of `clip` with shared weights: blocks before the surgery are the very same modules."""
    surgery, visual = copy.copy(clip), copy.copy(clip.visual)
    surgery._modules, visual._modules = dict(clip._modules), dict(clip.visual._modules)
    surgery.visual, visual.transformer = visual, copy.copy(visual.transformer)
    visual.transformer._modules = dict(visual.transformer._modules)
    visual.DAPM_replace(surgery_until_layer, across_batch)
    return surgery
