"""Training by several processes, and in float16: what one process has of a batch, its loss as a module, its scaler.

The batch of a step is the same whatever the number of processes is. Each encodes its share of the images; what the loss
is made of is gathered in the batch's order, so that every process computes the loss of the whole batch: it is no mean
over images (orthogonality is a square of one), and could not be put together of losses of shares.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dataset import EpochSampler
from run_folder.processes import Processes, current


class Share:
    """What a process has of a batch of `total` images: those of `rows`, in the batch's order.

    Where there are fewer images than processes, one without any encodes image 0 once more, so that all of them work in
    one rhythm; it is left out when results are gathered. `held` are the rows it encodes, `rows` or the first one.
    """

    def __init__(self, processes: Processes, class_names: Sequence[str]):
        """`class_names`: of all images of the batch."""
        self.processes, self.class_names = processes, list(class_names)
        self.total = len(self.class_names)
        self.sizes, self.rows = processes.sizes(self.total), processes.own(self.total)
        self.held = self.rows if self.rows.stop > self.rows.start else slice(0, 1)

    def whole(self, own: Tensor) -> Tensor:
        """The rows of all processes in order: own [rows held, ...] -> [total, ...]; gradients find their way back.

        Every process has the whole gradient of the same loss. A row's goes back to the process that made it, times the
        number of processes, because DistributedDataParallel divides the sum by it.
        """
        return _Gathered.apply(own[: self.sizes[self.processes.rank]], self)

    def to_positions(self, tokens: Tensor) -> Tensor:
        """Tokens [rows held, N, C] -> [total, N_own, C], of all images those at this process's positions.

        Attention across the batch stays within a position, so that positions can be shared as images are.
        """
        return self.whole(tokens)[:, self.processes.own(tokens.shape[1])]

    def to_images(self, tokens: Tensor, positions: int) -> Tensor:
        """The way back: tokens [total, N_own, C] -> [rows held, N = `positions`, C]."""
        by_position = tokens.transpose(0, 1).contiguous()  # [N_own, total, C]
        everything = self.processes.gather(by_position, self.processes.sizes(positions))
        return everything.transpose(0, 1)[self.held]

    @contextmanager
    def own_draws(self, device: torch.device) -> Iterator[None]:
        """Within, dropout draws other numbers in every process; behind it all go on from the same state."""
        seed = int(torch.empty((), dtype=torch.int64).random_()) + self.processes.rank
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed % 2**63)
            yield


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own, share):
        ctx.share = share
        return share.processes.gather(own, share.sizes)

    @staticmethod
    def backward(ctx, gradient):
        return gradient[ctx.share.rows] * ctx.share.processes.count, None


def whole_batch(batch: dict, *of_images: Any) -> tuple[dict, ...]:
    """(batch, *of_images) of all images where the batch is a share of one, else as they are.

    Args:
        batch: with "share", of a ShareLoader; its images, which no loss reads, are left out of the result.
        of_images: what was made of its images: tensors [rows held, ...], lists of them, or {key: tensor}.
    """
    share = batch.get("share")
    if share is None:
        return batch, *of_images
    whole = {key: share.whole(batch[key]) for key in ("mask", "label", "mask_known") if key in batch}
    whole |= {"class_name": share.class_names, "file_name": batch["file_name"]}
    return whole, *(_whole(one, share) for one in of_images)


def _whole(of_images, share):
    if isinstance(of_images, dict):
        return {key: share.whole(one) for key, one in of_images.items()}
    if isinstance(of_images, list):
        return [share.whole(one) for one in of_images]
    return share.whole(of_images)


def own_draws(batch: dict):
    """`Share.own_draws` for a batch that is a share, else nothing."""
    share = batch.get("share")
    return nullcontext() if share is None else share.own_draws(batch["image"].device)


class ShareLoader:
    """A training loader of one of several processes: of every batch of `batch_size` images this process's share.

    Batches are a DataLoader's, with "share" and the "file_name"s of the whole batch. Which images they are of does not
    depend on the number of processes.

    Args:
        sampler: the order of an epoch; its `skip` is heeded.
        how: arguments of DataLoader.
    """

    def __init__(
        self, images: Dataset, batch_size: int, sampler: EpochSampler, processes: Processes, **how: Any
    ):
        self.dataset, self.batch_size, self.sampler, self.processes = images, batch_size, sampler, processes
        self.loader = DataLoader(images, batch_sampler=_Held(self), **how)

    @property
    def num_workers(self) -> int:
        """Of the DataLoader, as the next two."""
        return self.loader.num_workers

    @property
    def persistent_workers(self) -> bool:
        return self.loader.persistent_workers

    @property
    def pin_memory(self) -> bool:
        return self.loader.pin_memory

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def whole_batches(self) -> list[list[int]]:
        """The numbers of the images of every batch that is left of the epoch."""
        order = list(self.sampler)
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def share_of(self, numbers: Sequence[int]) -> Share:
        """This process's share of a batch of images, by their numbers."""
        return Share(self.processes, [self.dataset.samples[number].class_name for number in numbers])

    def __iter__(self) -> Iterator[dict]:
        # Not a generator: the loader's iterator draws from torch's generator, now and not at the first batch.
        return map(self._with_share, self.whole_batches(), iter(self.loader))

    def _with_share(self, numbers, batch):
        files = [self.dataset.samples[number].file_name for number in numbers]
        return batch | {"share": self.share_of(numbers), "file_name": files}


class _Held:
    """The batch sampler of a ShareLoader: numbers of the images that its process encodes."""

    def __init__(self, loader):
        self.of = loader

    def __len__(self):
        return len(self.of)

    def __iter__(self):
        return (numbers[self.of.share_of(numbers).held] for numbers in self.of.whole_batches())


class StageLoss(nn.Module):
    """A stage's loss as a module: `forward(batch)` -> {term: scalar}; its parameters are what the stage trains.

    Args:
        step_loss: batch on the device -> {term: scalar}.
        modules: {checkpoint key: module} that the stage trains.
    """

    def __init__(self, step_loss, modules: dict[str, nn.Module]):
        super().__init__()
        self.step_loss, self.trained = step_loss, nn.ModuleDict(modules)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        return self.step_loss(batch)


def distributed(loss: StageLoss, device: torch.device) -> nn.Module:
    """The loss of a stage whose gradients are averaged over the processes; of a single process the loss itself."""
    if current().count == 1:
        return loss
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # The adapters are in every loss; an attention may be off, or have nothing to attend to in a batch.
    how = DistributedDataParallelKwargs(find_unused_parameters=len(loss.trained) > 1)
    # Precision and compilation are the command's own flags, not what `accelerate config` says.
    plain = {"mixed_precision": "no", "dynamo_backend": "no", "kwargs_handlers": [how]}
    return Accelerator(cpu=device.type == "cpu", **plain).prepare_model(loss)


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """What keeps float16's gradients from vanishing, None for the other precisions."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None
