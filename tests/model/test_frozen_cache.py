"""model/frozen_cache.py and who looks up in it: what is computed is counted, in images that enter the image tower."""

import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock

from evaluation.scorer import raw_clip_scorer
from files.tensor_cache import TensorCache
from forward_utils import frozen_image_features
from model.adapter_cross_attention import AdaptedCLIPWithCrossAttention
from model.clip import CLIP, create_model, full_precision, surgery_copy
from model.frozen_cache import FrozenCache, image_digests, look_up_of
from model.frozen_patches import frozen_cls, frozen_patches
from model.matrix_products import onednn_products, why_not

LEVELS = [1, 2, 4]
WITHIN, ACROSS = False, True


@pytest.fixture
def counted(monkeypatch):
    """{"images": that entered an image tower, "blocks": of any tower that were run}."""
    counts = {"images": 0, "blocks": 0}
    conv, block = torch.nn.Conv2d.forward, ResidualAttentionBlock.forward

    def counting_images(self, image):
        counts["images"] += len(image)
        return conv(self, image)

    def counting_blocks(self, *arguments, **named):
        counts["blocks"] += 1
        return block(self, *arguments, **named)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counting_images)
    monkeypatch.setattr(ResidualAttentionBlock, "forward", counting_blocks)
    return counts


@pytest.fixture
def entries(tmp_path, lines):
    return TensorCache(tmp_path / "features", 1, "feature_cache", lines[0])


def cached(cache, surgery, images, levels=LEVELS):
    return frozen_patches(cache.clip, surgery, images, levels, look_up_of(cache, {"image": images}))


def assert_same(found, wanted, **tolerance):
    (patches, cls), (wanted_patches, wanted_cls) = found, wanted
    assert patches.keys() == wanted_patches.keys()
    for level, values in wanted_patches.items():
        torch.testing.assert_close(patches[level], values, **tolerance)
    torch.testing.assert_close(cls, wanted_cls, **tolerance)


BITS = {"rtol": 0, "atol": 0}
ROUNDING = {"rtol": 0, "atol": 1e-5}


@pytest.mark.bit_equality
@pytest.mark.parametrize("across", [WITHIN, ACROSS])
def test_what_is_computed_for_the_cache_and_found_in_it_has_the_bits_of_what_is_computed_without(
    across, clip, images, entries
):
    surgery, cache = surgery_copy(clip, 3, across), FrozenCache(entries, clip)
    wanted = frozen_patches(clip, surgery, images, LEVELS)
    assert_same(cached(cache, surgery, images), wanted, **BITS)
    assert_same(cached(cache, surgery, images), wanted, **BITS)
    assert (cache.wanted, cache.found) == (8, 4)


def test_images_seen_before_do_not_enter_the_image_tower_again(clip, images, entries, counted):
    surgery, cache = surgery_copy(clip, 3, WITHIN), FrozenCache(entries, clip)
    cached(cache, surgery, images)
    assert counted["images"] == 4
    counted.update(images=0, blocks=0)
    cached(cache, surgery, images.flip(0))  # in another order
    assert counted == {"images": 0, "blocks": 0}


def test_surgery_across_the_batch_goes_on_from_the_kept_trunk(clip, images, entries, counted):
    surgery, cache = surgery_copy(clip, 3, ACROSS), FrozenCache(entries, clip)
    cached(cache, surgery, images)
    counted.update(images=0, blocks=0)
    mixed = images.flip(0)  # another batch: its features past the surgery differ
    found = cached(cache, surgery, mixed)
    assert counted["images"] == 0 and counted["blocks"] == 2  # the blocks of value-value attention
    assert_same(found, frozen_patches(clip, surgery, mixed, LEVELS), **ROUNDING)
    halves = cached(cache, surgery, images[:2])
    assert_same(halves, frozen_patches(clip, surgery, images[:2], LEVELS), **ROUNDING)
    assert (halves[0][4] - cached(cache, surgery, images)[0][4][:2]).abs().max() > 1e-3


@pytest.mark.parametrize("across", [WITHIN, ACROSS])
def test_of_a_batch_the_images_that_are_missing_are_computed_and_no_others(
    across, clip, images, entries, counted
):
    surgery, cache = surgery_copy(clip, 3, across), FrozenCache(entries, clip)
    cached(cache, surgery, images[1:3])
    counted.update(images=0)
    found = cached(cache, surgery, images)
    assert counted["images"] == 2
    assert_same(found, frozen_patches(clip, surgery, images, LEVELS), **ROUNDING)
    assert (cache.wanted, cache.found) == (6, 2)


def test_another_level_is_computed_and_then_kept_too(clip, images, entries, counted):
    surgery, cache = surgery_copy(clip, 3, WITHIN), FrozenCache(entries, clip)
    cached(cache, surgery, images, [4])
    cached(cache, surgery, images, [1, 4])
    counted.update(images=0)
    cached(cache, surgery, images, [1])
    assert counted["images"] == 0


CHANGES = {
    "other weights": lambda new_clip: new_weights(new_clip()),
    "QuickGELU": lambda new_clip: new_clip(quick_gelu=True),
    "bfloat16 products": lambda new_clip: new_clip(vision_autocast=torch.bfloat16),
    "bfloat16 weights": lambda new_clip: new_clip(precision="bf16"),
}


def new_weights(clip):
    clip.source = clip.source._replace(sha256="0" * 64)
    return clip


@pytest.mark.parametrize("change", CHANGES)
def test_another_backbone_or_precision_finds_nothing(change, clip, new_clip, images, entries):
    frozen_cls(clip, images, look_up_of(FrozenCache(entries, clip), {"image": images}))
    other = CHANGES[change](new_clip)
    cache = FrozenCache(entries, other)
    images = images.to(other.visual.proj.dtype)
    frozen_cls(other, images, look_up_of(cache, {"image": images}))
    assert (cache.wanted, cache.found) == (4, 0)


def test_weights_of_no_file_are_known_by_their_values(model_name, images, entries):
    torch.manual_seed(0)
    one, other = create_model(model_name, 32), create_model(model_name, 32)
    found = []
    for clip in (one, one, other):
        cache = FrozenCache(entries, clip)
        frozen_cls(clip, images, look_up_of(cache, {"image": images}))
        found.append(cache.found)
    assert found == [0, 4, 0]


def test_another_size_finds_nothing_even_for_one_image(clip, new_clip, entries):
    image, larger = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 40, 40)
    frozen_cls(clip, image, look_up_of(FrozenCache(entries, clip), {"image": image, "image_digest": ["a"]}))
    cache = FrozenCache(entries, new_clip(img_size=40))
    frozen_cls(cache.clip, larger, look_up_of(cache, {"image": larger, "image_digest": ["a"]}))
    assert cache.found == 0


@pytest.mark.parametrize(
    ("one", "other"), [((3, WITHIN), (4, WITHIN)), ((3, WITHIN), (3, ACROSS)), ((3, ACROSS), (4, ACROSS))]
)
def test_another_surgery_finds_no_patches_past_it_and_gets_its_own(one, other, clip, images, entries):
    cache = FrozenCache(entries, clip)
    cached(cache, surgery_copy(clip, *one), images)
    surgery = surgery_copy(clip, *other)
    assert_same(cached(cache, surgery, images), frozen_patches(clip, surgery, images, LEVELS), **ROUNDING)
    assert cache.found == 0


def test_precision_is_that_of_the_moment(new_clip, images, entries):
    low = new_clip(vision_autocast=torch.bfloat16)
    cache = FrozenCache(entries, low)
    look_up = look_up_of(cache, {"image": images})
    in_bfloat16 = frozen_cls(low, images, look_up)
    with full_precision(low):
        full = frozen_cls(low, images, look_up)
        torch.testing.assert_close(full, frozen_cls(low, images), **ROUNDING)
    assert cache.found == 0 and (full - in_bfloat16).abs().max() > 1e-5
    torch.testing.assert_close(frozen_cls(low, images, look_up), in_bfloat16, **BITS)


@pytest.mark.skipif(why_not("cpu") is not None, reason="this torch was built without oneDNN")
def test_features_of_the_other_library_s_products_are_not_taken(clip, images, entries):
    cache = FrozenCache(entries, clip)
    look_up = look_up_of(cache, {"image": images})
    frozen_cls(clip, images, look_up)
    with onednn_products():
        frozen_cls(clip, images, look_up)
    assert cache.found == 0
    frozen_cls(clip, images, look_up)
    assert cache.found == len(images)


def test_one_changed_pixel_is_another_image(clip, images, entries):
    assert len({*image_digests(images)}) == 4
    changed = images.clone()
    changed[2, 1, 5, 7] += 1e-3
    same = [a == b for a, b in zip(image_digests(images), image_digests(changed), strict=True)]
    assert same == [True, True, False, True]


def test_a_full_cache_changes_nothing_but_the_time(clip, images, tmp_path, lines, counted):
    cache = FrozenCache(TensorCache(tmp_path, 1e-6, "feature_cache", lines[0]), clip)
    surgery = surgery_copy(clip, 3, WITHIN)
    for _ in range(2):
        assert_same(cached(cache, surgery, images), frozen_patches(clip, surgery, images, LEVELS), **ROUNDING)
    assert cache.found == 0 and len(lines[1]) == 1 and "is full" in lines[1][0]


def test_a_damaged_entry_is_computed_again_and_the_next_pass_finds_it(clip, images, entries, lines, counted):
    surgery, cache = surgery_copy(clip, 3, WITHIN), FrozenCache(entries, clip)
    cached(cache, surgery, images)
    paths = sorted(entries.folder.rglob("*.safetensors"))
    content = bytearray(paths[0].read_bytes())
    content[-1] ^= 1
    paths[0].write_bytes(content)
    counted.update(images=0)
    wanted = frozen_patches(clip, surgery, images, LEVELS)
    counted.update(images=0)
    assert_same(cached(cache, surgery, images), wanted, **ROUNDING)
    assert counted["images"] == 1 and sum("is damaged" in line for line in lines[1]) == 1
    cached(cache, surgery, images)
    assert counted["images"] == 1


def test_a_surgery_model_of_another_make_is_computed_and_not_kept(clip, new_clip, images, entries):
    cache, stranger = FrozenCache(entries, clip), surgery_copy(new_clip(), 3, WITHIN)
    assert_same(cached(cache, stranger, images), frozen_patches(clip, stranger, images, LEVELS), **ROUNDING)
    assert cache.wanted == 0


def test_raw_clip_scores_images_seen_before_without_the_image_tower(clip, images, entries, counted):
    plain = raw_clip_scorer(clip, "MVTec", 32).score(images, "bottle")
    scorer = raw_clip_scorer(clip, "MVTec", 32, FrozenCache(entries, clip))
    for _ in range(2):
        counted.update(images=0)
        found = scorer.score(images, "bottle", image_digests(images))
        for values, wanted in zip(found, plain, strict=True):
            torch.testing.assert_close(values, wanted, rtol=0, atol=1e-4)  # of maps scaled by 100
    assert counted["images"] == 0


def test_the_rarity_of_an_image_is_looked_up_whatever_the_adapters_learned(
    cross_weights, images, entries, counted
):
    from cross_attention_world import MODEL

    clip = create_model(MODEL, 32, "openai", clip_weights=cross_weights)
    adapters = dict(text_adapt_until=2, image_adapt_until=2, cross_attn_heads=4)
    model = AdaptedCLIPWithCrossAttention(clip, **adapters, self_reference=0.3).eval()
    cache = FrozenCache(entries, clip)
    anchors = torch.randn(4, clip.embed_dim, 2)
    with torch.no_grad():
        for step in range(2):
            counted.update(images=0)
            wanted = model.compare(images, anchors)
            assert counted["images"] == 8  # the adapted pass and the frozen one
            counted.update(images=0)
            frozen = model.frozen_arguments(images, look_up_of(cache, {"image": images}))
            found = model.compare(images, anchors, **frozen)
            assert counted["images"] == (8 if step == 0 else 4)
            for values, others in zip([*found[0], found[1]], [*wanted[0], wanted[1]], strict=True):
                torch.testing.assert_close(values, others, rtol=0, atol=1e-4)
            model.image_adapter["layer_adapters"][0].fc[0].weight.mul_(1.5)


def test_features_take_the_digests_of_the_batch_where_it_has_them(adapted, images, entries, monkeypatch):
    cache = FrozenCache(entries, adapted.clipmodel)
    features = frozen_image_features(adapted, surgery_copy(adapted.clipmodel, 3, WITHIN), [4], cache)
    digests = image_digests(images)
    monkeypatch.setattr("model.frozen_cache.image_digests", None)
    features({"image": images, "image_digest": digests})
    features({"image": images, "image_digest": digests})
    assert cache.found == 4 and isinstance(cache.clip, CLIP)
