"""files/tensor_cache.py: what is kept comes back whole or not at all, whoever else writes there."""

import multiprocessing

import pytest
import torch

from files import tensor_cache
from files.tensor_cache import TensorCache

KEYS = [f"{number:02x}" * 32 for number in range(12)]


def entry(number=0):
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(number))
    return {"values": values, "count": torch.tensor(number), "low": values.bfloat16()}


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in wanted.items()
    )


@pytest.fixture
def cache(tmp_path, lines):
    return TensorCache(tmp_path / "kept", 1, "feature_cache", lines[0])


@pytest.mark.bit_equality
def test_an_entry_comes_back_with_its_bits_also_in_another_process_s_cache(cache):
    assert cache.get(KEYS[0]) is None
    assert cache.put(KEYS[0], entry()) and same(cache.get(KEYS[0]), entry())
    assert cache.put(KEYS[1], {"part": entry()["values"][:, 2:4]})  # not contiguous
    other = TensorCache(cache.folder, 1)
    assert same(other.get(KEYS[0]), entry()) and other.bytes == cache.bytes > 0
    assert torch.equal(other.get(KEYS[1])["part"], entry()["values"][:, 2:4])


def test_a_full_cache_takes_no_more_says_so_once_and_still_gives_what_it_has(tmp_path, lines):
    logger, messages = lines
    size = TensorCache(tmp_path / "one", 1)
    size.put(KEYS[0], entry())
    cache = TensorCache(tmp_path / "kept", 2.5 * size.bytes / 1e9, "feature_cache", logger)
    assert [cache.put(key, entry()) for key in KEYS[:5]] == [True, True, False, False, False]
    assert same(cache.get(KEYS[1]), entry()) and cache.get(KEYS[2]) is None
    assert len(messages) == 1 and "is full" in messages[0] and "--feature_cache_gb" in messages[0]


def test_what_another_process_wrote_counts_before_the_limit_is_passed(tmp_path):
    ours, theirs = TensorCache(tmp_path, 1), TensorCache(tmp_path, 1)
    theirs.put(KEYS[0], entry())
    ours.limit = 1.5 * theirs.bytes
    ours.put(KEYS[1], entry())  # within the limit by its own count
    assert ours.put(KEYS[2], entry()) is False and ours.bytes == 2 * theirs.bytes


DAMAGE = {
    "a bit of a value": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    "cut short": lambda content: content[:-10],
    "empty": lambda content: b"",
    "a bit of the header": lambda content: content[:20] + bytes([content[20] ^ 1]) + content[21:],
    "foreign": lambda content: b"something else" * 40,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_entry_is_named_counts_as_none_and_is_replaced(kind, cache, lines):
    cache.put(KEYS[0], entry())
    path = cache.path(KEYS[0])
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    assert cache.get(KEYS[0]) is None and cache.get(KEYS[0]) is None
    assert len(lines[1]) == 1 and str(path) in lines[1][0] and "is damaged" in lines[1][0]
    assert "computed again and replaced" in lines[1][0]
    cache.put(KEYS[0], entry())
    assert same(cache.get(KEYS[0]), entry())


def test_the_entry_of_another_key_is_not_taken(cache, lines):
    cache.put(KEYS[0], entry())
    cache.put(KEYS[1], entry(1))
    cache.path(KEYS[0]).write_bytes(cache.path(KEYS[1]).read_bytes())
    assert cache.get(KEYS[0]) is None and "the entry of another key" in lines[1][0]


def test_only_the_first_damaged_entries_are_named(cache, lines):
    for key in KEYS:
        cache.put(key, entry())
        cache.path(key).write_bytes(b"")
        assert cache.get(key) is None
    assert len(lines[1]) == tensor_cache.NAMED and "further ones are not named" in lines[1][-1]


def write_and_read(folder, wrong):
    cache = TensorCache(folder, 1)
    for _ in range(4):
        for number, key in enumerate(KEYS):
            found = cache.get(key)
            if (found is not None and not same(found, entry(number))) or cache.damaged:
                wrong.put(key)
            cache.put(key, entry(number))


def test_two_writers_of_the_same_entries_never_read_half_of_one(tmp_path):
    context = multiprocessing.get_context("fork")
    wrong = context.Queue()
    writers = [context.Process(target=write_and_read, args=(tmp_path, wrong)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0] and wrong.empty()
    left = TensorCache(tmp_path, 1)
    assert all(same(left.get(key), entry(number)) for number, key in enumerate(KEYS))
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_a_killed_writer_left_unfinished_is_deleted_and_never_read(cache):
    cache.put(KEYS[0], entry())
    half = cache.path(KEYS[0]).with_name(f".{cache.path(KEYS[0]).name}.abcdefgh.tmp")
    half.write_bytes(b"half")
    again = TensorCache(cache.folder, 1)
    assert not half.exists() and again.bytes == cache.bytes and same(again.get(KEYS[0]), entry())


def test_a_folder_that_takes_no_file_ends_the_adding_but_not_the_run(cache, lines):
    cache.path(KEYS[0]).parent.write_text("in the way")
    assert cache.put(KEYS[0], entry()) is False and cache.put(KEYS[1], entry()) is False
    assert cache.get(KEYS[1]) is None
    assert len(lines[1]) == 1 and "takes no more entries: cannot write" in lines[1][0]


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_that_holds_nothing_is_refused(limit, tmp_path):
    with pytest.raises(ValueError, match="--image_cache_gb .*: expected more than 0"):
        TensorCache(tmp_path, limit, "image_cache")
