"""Checkpoints of semantic fill: written whole, found again, loaded strictly."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from logging import Logger
from pathlib import Path

import torch
from diffusers import FluxFillPipeline, FluxTransformer2DModel
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file

from files.atomic import cannot_write, failures_explained, sha256
from files.command import Refusal
from files.given import require_regular
from files.state_dict import unwrapped
from files.tensors import (
    UNREADABLE,
    DamagedFile,
    load_safetensors,
    load_tensors,
    not_finite,
    save_tensors,
)
from synthesis.system import FillSystem, assemble
from synthesis.text import Prompt

LORA_FILE = (
    "pytorch_lora_weights.safetensors"  # diffusers' own name and format: FluxFillPipeline.load_lora_weights
)
ATTENTION_FILE = "semantic_cross_attention.safetensors"
BACKBONE_FILE = "transformer.safetensors"  # only of runs that train the backbone itself
PROMPTS_FILE = "prompt_embeddings.safetensors"
CONFIG_FILE = "config.json"
OPTIMISER_FILE = "optimizer.pth"
HASHES, OWN_HASH = "files_sha256", "config_sha256"  # keys of config.json
CHECKPOINT = "checkpoint-{:07d}"
IN_BETWEEN = (
    "progress-{:07d}"  # between two checkpoints, to go on from after a kill; sampling does not look at it
)


def save_system(
    run: Path | str,
    step: int,
    system: FillSystem,
    config: dict,
    optimizer: torch.optim.Optimizer | None = None,
    name: str = CHECKPOINT,
) -> Path:
    """Write `run`/checkpoint-`step` as a whole: a killed process leaves the folder complete or not there.

    Args:
        run: the run's folder.
        step: training steps done.
        system: FillSystem.
        config: what `assemble` needs, and whatever else the run wants to know again.
        optimizer: left out of the files when None.
        name: of the folder, with the step to be filled in.

    Returns:
        the checkpoint's folder

    Raises:
        FloatingPointError: a tensor is not finite; nothing is written.
        OSError: it cannot be written.
    """
    run = Path(run)
    folder = run / name.format(step)
    with failures_explained(folder):
        run.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=run, prefix=f".{folder.name}."))
    try:
        with failures_explained(folder):
            write_files(temporary, step, system, config, optimizer)
            for file in temporary.iterdir():
                file.chmod(0o644)
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            temporary.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)  # of the same step of the same run
            os.replace(temporary, folder)
    except SafetensorError as error:  # its own kind for a disk that is full
        raise cannot_write(folder, OSError(str(error))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_files(
    folder: Path, step: int, system: FillSystem, config: dict, optimizer: torch.optim.Optimizer | None
) -> None:
    """The files of one checkpoint; config.json, the last, has the hashes of the others and of itself."""
    transformer = system.backbone.transformer
    trained = {"lora": get_peft_model_state_dict(transformer), "attention": system.attention.state_dict()}
    if config["train_backbone"]:
        trained["backbone"] = base_weights(transformer)
    broken = not_finite(trained)
    if broken:
        raise FloatingPointError(
            f"no checkpoint is written, because it would hold values that are not finite: {broken}. The training has "
            "diverged: start again from the last checkpoint with a lower --lr"
        )
    FluxFillPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    save_file(on_cpu(system.attention.state_dict()), folder / ATTENTION_FILE)
    if config["train_backbone"]:
        save_file(on_cpu(base_weights(transformer)), folder / BACKBONE_FILE)
    texts = list(system.prompts.known)
    named = {
        f"{number}.{part}": value
        for number, text in enumerate(texts)
        for part, value in system.prompts.known[text]._asdict().items()
    }
    save_file(on_cpu(named), folder / PROMPTS_FILE)
    hashes = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    if optimizer is not None:  # its file has digests of its own
        save_tensors(folder / OPTIMISER_FILE, optimizer.state_dict())
    content = {**config, "step": step, "prompts": texts, "versions": library_versions(), HASHES: hashes}
    content[OWN_HASH] = config_hash(content)
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def config_hash(content: dict) -> str:
    """SHA-256 of what a config.json says, its own hash left out."""
    said = {key: value for key, value in content.items() if key != OWN_HASH}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def sweep_checkpoints(run: Path | str) -> list[str]:
    """Delete the unfinished checkpoints of killed processes; only under the run's lock. Returns their names."""
    found = [
        path
        for path in sorted(Path(run).glob(".*-*"))
        if re.fullmatch(r"\.(checkpoint|progress)-\d{7,}\.[a-z0-9_]{8}", path.name)
        and path.is_dir()
        and not path.is_symlink()
    ]
    for path in found:
        shutil.rmtree(path)
    return [path.name for path in found]


def base_weights(transformer: FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    """{name: tensor} of the transformer's own weights, LoRA left out, as peft names them inside the module."""
    return {name: value for name, value in transformer.state_dict().items() if ".lora_" not in name}


def on_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same {name: tensor} detached, contiguous and on the CPU, as safetensors wants them."""
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a run's numbers."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")}


def checkpoints_of(run: Path | str, name: str = CHECKPOINT) -> list[tuple[int, Path]]:
    """[(step, folder)] of a run's checkpoints, or of its folders of another name, by step."""
    begin = name.partition("{")[0]
    found = ((re.fullmatch(rf"{begin}(\d+)", path.name), path) for path in Path(run).glob(f"{begin}*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def remove_in_between(run: Path | str, kept: Path | None = None) -> None:
    """Delete what was saved between two checkpoints, but for one folder."""
    for _, folder in checkpoints_of(run, IN_BETWEEN):
        if folder != kept:
            # Under another name first, so that a kill leaves no half of it to be read.
            gone = Path(tempfile.mkdtemp(dir=run, prefix=f".{folder.name}."))
            os.replace(folder, gone)
            shutil.rmtree(gone)


def find_checkpoint(path: Path | str) -> Path:
    """A checkpoint's folder: `path` itself, or the last one of the run in `path`.

    Raises:
        FileNotFoundError: neither.
    """
    path = Path(path)
    if (path / CONFIG_FILE).is_file():
        return path
    found = checkpoints_of(path)
    if not found:
        raise FileNotFoundError(
            f"no checkpoint in {path}: expected a folder with {CONFIG_FILE}, or a run's folder with checkpoint-*; "
            "train one with train_semantic_fill.py"
        )
    return found[-1][1]


def newest_intact_checkpoint(run: Path | str, logger: Logger) -> tuple[int, Path | None]:
    """(steps done, folder) of a run's last checkpoint, or of the newest intact one before; (0, None) without any.

    What was saved between two checkpoints counts too. Only for going on with training: damaged ones are named in a
    warning.

    Raises:
        DamagedFile: every one is damaged.
    """
    first = None
    for step, folder in sorted([*checkpoints_of(run), *checkpoints_of(run, IN_BETWEEN)], reverse=True):
        try:
            for name in read_config(folder).get(HASHES, ()):
                read_tensors(folder / name)
            load_tensors(folder / OPTIMISER_FILE)
        except (DamagedFile, FileNotFoundError) as error:
            logger.warning(f"{folder.name} is damaged: going on from the checkpoint before it ({error})")
            first = first or error
            continue
        return step, folder
    if first is not None:
        raise DamagedFile(f"{first}. No intact checkpoint is left in {run}: choose another --out") from first
    return 0, None


def read_config(folder: Path | str) -> dict:
    """A checkpoint's config.json.

    Raises:
        DamagedFile: it cannot be read, or is not as it was written.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        require_regular(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        if (HASHES in content or OWN_HASH in content) and content.get(OWN_HASH) != config_hash(content):
            raise ValueError("it is not as it was written")  # older checkpoints have neither key
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedFile(
            f"checkpoint config {path} cannot be read ({error}): copy the checkpoint again"
        ) from error
    return content


def load_system(
    model: Path | str, checkpoint: Path | str, device: torch.device | str = "cpu"
) -> tuple[FillSystem, dict]:
    """The trained system of a checkpoint (a run's folder means its last).

    Args:
        model: as in training; a folder may have moved.

    Returns:
        FillSystem, config

    Raises:
        FileNotFoundError, RuntimeError: no checkpoint, a damaged one, or one that does not fit the model.
    """
    folder = find_checkpoint(checkpoint)
    config = read_config(folder)
    system = assemble(model, config, device, read_prompts(folder, config["prompts"]))
    load_weights_into(system, folder, config["train_backbone"])
    return system, config


def read_prompts(folder: Path | str, texts: Sequence[str]) -> dict[str, Prompt]:
    """{text: Prompt} of a checkpoint."""
    tensors = read_tensors(Path(folder) / PROMPTS_FILE)
    return {
        text: Prompt(*(tensors[f"{number}.{part}"] for part in Prompt._fields))
        for number, text in enumerate(texts)
    }


def load_weights_into(system: FillSystem, folder: Path | str, with_backbone: bool = False) -> None:
    """Put a checkpoint's LoRA and attention, and the backbone's own weights if trained, into a system of its shape.

    Raises:
        RuntimeError: missing, unexpected or differently shaped tensors, by name.
    """
    folder, transformer = Path(folder), system.backbone.transformer
    lora = read_tensors(folder / LORA_FILE)
    lora = {name.removeprefix(f"{FluxFillPipeline.transformer_name}."): value for name, value in lora.items()}
    check_same(lora, get_peft_model_state_dict(transformer), folder / LORA_FILE)
    attention = read_tensors(folder / ATTENTION_FILE)
    check_same(attention, system.attention.state_dict(), folder / ATTENTION_FILE)
    set_peft_model_state_dict(transformer, lora)
    system.attention.load_state_dict(attention)
    if with_backbone:
        base = read_tensors(folder / BACKBONE_FILE)
        check_same(base, base_weights(transformer), folder / BACKBONE_FILE)
        transformer.load_state_dict(
            base, strict=False
        )  # the names were compared; LoRA's are in their own file


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path | str) -> None:
    """Restore an optimiser from a checkpoint.

    Raises:
        FileNotFoundError, RuntimeError: no such file, or a damaged one.
    """
    optimizer.load_state_dict(load_tensors(Path(folder) / OPTIMISER_FILE, keys=("state", "param_groups")))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one of a checkpoint's safetensors files, whose hash must be what config.json says.

    Raises:
        DamagedFile: it cannot be read, or is not the file that was written.
    """
    hashes = read_config(path.parent).get(HASHES)  # older checkpoints have none
    try:
        state = load_safetensors(path)
        wanted = state.sha256 if hashes is None else hashes.get(path.name)
        if wanted != state.sha256:
            raise ValueError(f"its SHA-256 is {state.sha256}, {wanted} was written")
        broken = not_finite(state)
        if broken:
            raise ValueError(f"it holds values that are not finite: {broken}; no picture is the cause")
        return unwrapped(state)
    except UNREADABLE as error:
        raise DamagedFile(f"{path} is missing or damaged ({error}): copy the checkpoint again") from error


def check_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], path: Path | str) -> None:
    """Raises RuntimeError unless both state dicts have the same names and shapes."""
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is not expected" for name in found if name not in wanted]
    problems += [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    if problems:
        raise Refusal(
            f"{path} does not fit the model: {'; '.join(sorted(problems)[:4])}. Give the --model it was trained on"
        )
