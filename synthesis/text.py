"""Prompts as T5 and CLIP embeddings: encoded once, kept, encoders dropped."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from diffusers import FluxFillPipeline
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

TINY_TEXT_SEED = 21
TINY_WIDTH = 32


class Prompt(NamedTuple):
    """One encoded prompt."""

    tokens: torch.Tensor  # [1, L, D] of T5
    pooled: torch.Tensor  # [1, P] of CLIP


class Prompts:
    """Encoded prompts by their text; the encoders are loaded for what is not known yet and dropped at once."""

    def __init__(self, load_text, length, device="cpu", dtype=torch.float32):
        """
        Args:
            load_text: () -> FluxFillPipeline that holds tokenizers and text encoders.
            length: L, tokens of the T5 sequence; longer prompts are cut.
            device, dtype: of the embeddings; encoding happens there too.
        """
        self.load_text, self.length, self.device, self.dtype = load_text, length, device, dtype
        self.known = {}

    def encode(self, texts: Iterable[str]) -> None:
        """Make sure that all `texts` are known."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self.known]
        if not unknown:
            return
        pipeline = self.load_text().to(self.device)
        with torch.no_grad():
            for text in unknown:
                tokens, pooled, _ = pipeline.encode_prompt(
                    text, device=self.device, max_sequence_length=self.length
                )
                self.known[text] = Prompt(tokens.to(self.dtype), pooled.to(self.dtype))

    def batch(self, texts: Sequence[str]) -> Prompt:
        """Prompt([B, L, D], [B, P]) of a list of B texts."""
        self.encode(texts)
        chosen = [self.known[text] for text in texts]
        return Prompt(
            torch.cat([prompt.tokens for prompt in chosen]), torch.cat([prompt.pooled for prompt in chosen])
        )


def tiny_text_pipeline() -> FluxFillPipeline:
    """Byte-level tokenizers and one-layer encoders, random from a fixed seed: every text has its own embedding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY_TEXT_SEED)
        clip_tokenizer = byte_clip_tokenizer()
        end = clip_tokenizer.eos_token_id
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip_tokenizer),
                hidden_size=TINY_WIDTH,
                intermediate_size=TINY_WIDTH,
                projection_dim=TINY_WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=clip_tokenizer.bos_token_id,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        t5_tokenizer = ByT5Tokenizer(extra_ids=0)
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(t5_tokenizer),
                d_model=TINY_WIDTH,
                d_kv=16,
                d_ff=TINY_WIDTH,
                num_layers=1,
                num_heads=2,
            )
        )
    return FluxFillPipeline(
        scheduler=None,
        vae=None,
        transformer=None,
        text_encoder=clip.eval(),
        tokenizer=clip_tokenizer,
        text_encoder_2=t5.eval(),
        tokenizer_2=t5_tokenizer,
    )


def byte_clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with the 256 bytes, inside and at the end of a word, as its whole vocabulary."""
    byte_letters = sorted(ByteLevel.alphabet())  # printable letters that stand for the bytes
    words = [*byte_letters, *(f"{letter}</w>" for letter in byte_letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)
