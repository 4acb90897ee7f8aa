"""Every bit, a thousand damaged files, every payload: readers of checkpoints and backbones under injected faults."""

from collections import Counter

import pytest
import torch
from damaged_files import CONTENT, Tower, flipped, is_content, mutated, payloads, torch_file, torchscript_file
from reliability import record

from files.tensors import DamagedFile, load_tensors, save_tensors
from model.weights_file import read_state_dict

pytestmark = [pytest.mark.slow, pytest.mark.reliability]
MUTATIONS = 1500  # files of each kind, by the seeds 0, 1, ...


def checkpoint(kind, path):
    """The bytes of CONTENT as this project writes it ("ours"), as AA-CLIP does, or as torch did before 1.6."""
    if kind == "ours":
        save_tensors(path, CONTENT)
    else:
        torch.save(CONTENT, path, _use_new_zipfile_serialization=kind == "AA-CLIP's")
    return path.read_bytes()


def outcomes(files, path, read, is_right):
    """Counter of what reading each of some files gives: "refused", "right", "silent" or the name of an error."""
    counts = Counter()
    for content in files:
        path.write_bytes(content)
        try:
            counts["right" if is_right(read(path)) else "silent"] += 1
        except DamagedFile as error:
            counts["refused" if path.name in str(error) else "nameless"] += 1
        except Exception as error:  # what a user would see as a traceback
            counts[type(error).__name__] += 1
    return counts


def keep(promise, counts, how):
    """Record a row and let the test fail where something was silent or uncaught."""
    failed = counts.total() - counts["refused"] - counts["right"]
    record("readers", promise, counts.total(), failed, f"{how}: {dict(sorted(counts.items()))}")
    assert counts["refused"] and not failed, counts


@pytest.mark.parametrize("kind", ["ours", "AA-CLIP's"])
def test_every_flipped_bit_of_a_small_checkpoint_is_refused_or_changes_nothing(tmp_path, kind):
    path = tmp_path / "a.pth"
    data = checkpoint(kind, path)
    counts = outcomes((flipped(data, bit) for bit in range(8 * len(data))), path, load_tensors, is_content)
    keep(f"corrupt checkpoint never used silently, every bit ({kind})", counts, "one bit flipped")


@pytest.mark.parametrize("kind", ["ours", "AA-CLIP's"])
def test_damaged_checkpoints_are_refused_or_right(tmp_path, kind):
    path = tmp_path / "a.pth"
    data = checkpoint(kind, path)
    files = (mutated(data, seed)[0] for seed in range(MUTATIONS))
    keep(
        f"corrupt checkpoint never used silently, damaged files ({kind})",
        outcomes(files, path, load_tensors, is_content),
        "bits, zeros, noise, cuts, insertions, swaps, repeats, line ends",
    )


def test_damaged_files_of_old_torch_are_never_used(tmp_path):
    path = tmp_path / "a.pth"
    data = checkpoint("old", path)
    files = (mutated(data, seed)[0] for seed in range(2500))
    counts = outcomes(files, path, load_tensors, lambda found: False)
    keep("old (non-zip) .pth", counts, "damaged as above")


@pytest.mark.parametrize("kind", ["TorchScript", "state dict"])
def test_damaged_backbone_files_are_refused_or_right(tmp_path, kind):
    path = tmp_path / "a.pt"
    torch.manual_seed(0)
    tower = Tower().half()
    torch.jit.script(tower).save(path) if kind == "TorchScript" else torch.save(tower.state_dict(), path)
    data, wanted = path.read_bytes(), read_state_dict(path)

    def is_right(found):
        return found.keys() == wanted.keys() and all(
            torch.equal(found[name], wanted[name]) for name in wanted
        )

    files = [mutated(data, seed)[0] for seed in range(MUTATIONS)]
    files += [flipped(data, bit) for bit in range(0, 8 * len(data), 17)]
    counts = outcomes(files, path, read_state_dict, is_right)
    keep(f"backbone file damaged ({kind})", counts, "damaged as above, and every 17th bit")


def test_no_payload_runs(tmp_path, recwarn):
    torch.manual_seed(0)
    written, archive = tmp_path / "written", tmp_path / "tower.pt"
    torch.jit.script(Tower()).save(archive)
    whole, found = archive.read_bytes(), list(payloads(written))
    counts = Counter()
    for read in (load_tensors, read_state_dict):
        files = [
            content
            for _, data in found
            for content in (data, torch_file(data), torchscript_file(whole, data))
        ]
        counts += outcomes(files, tmp_path / "payload.pt", read, lambda _: False)
    assert not written.exists()
    keep(
        "weights executing code",
        counts,
        f"{len(found)} pickles, bare, in checkpoint and archive; two readers",
    )
