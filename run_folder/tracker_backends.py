"""The four trackers a run can hand its numbers on to. Each is an optional package, imported when it is asked for."""

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class TrackedRun(NamedTuple):
    """What a tracker is to know of a run: its folder, id, name among others of the project, and settings."""

    folder: Path
    id: str
    name: str
    project: str
    settings: dict[str, Any]


class Backend(Protocol):
    """What a tracker does. `step` counts epochs; a run that goes on opens the same entry of the tracker again."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers by name at a step."""

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """A picture [H, W, 3], uint8, RGB."""

    def close(self) -> None:
        """Nothing more comes."""


class Trackio:
    """Local, without an account: `trackio show --project NAME` shows it."""

    def __init__(self, run: TrackedRun):
        import trackio

        self._trackio = trackio
        config = {key: _plain(value) for key, value in run.settings.items()}
        trackio.init(project=run.project, name=run.name, config=config, resume="allow", embed=False)

    def log(self, values: dict[str, float], step: int) -> None:
        self._trackio.log(values, step=step)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._trackio.log({name: self._trackio.Image(pixels, caption=name)}, step=step)

    def close(self) -> None:
        self._trackio.finish()


class TensorBoard:
    """Event files in the run's own folder `tensorboard/`: `tensorboard --logdir ckpt` shows all runs below."""

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run.folder / "tensorboard")
        self._writer.add_text("settings", f"```\n{json.dumps(run.settings, indent=1, default=str)}\n```")

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """An account's server, or local files with WANDB_MODE=offline. Every curve has the epoch of its own stage as x."""

    def __init__(self, run: TrackedRun):
        import wandb

        self._wandb = wandb
        about = {"project": run.project, "name": run.name, "id": run.id, "config": run.settings}
        self._run = wandb.init(**about, resume="allow", dir=str(run.folder))
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values | {"epoch": step})

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._run.log({name: self._wandb.Image(pixels, caption=name), "epoch": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """The server that MLFLOW_TRACKING_URI names, else its database mlflow.db in the working directory."""

    def __init__(self, run: TrackedRun):
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(run.project)
        same = mlflow.search_runs(filter_string=f"tags.run = '{run.id}'", output_format="list")
        if same:
            mlflow.start_run(run_id=same[0].info.run_id)
        else:
            mlflow.start_run(run_name=run.name, tags={"run": run.id})
        mlflow.log_dict(json.loads(json.dumps(run.settings, default=str)), "settings.json")

    def log(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._mlflow.log_image(pixels, artifact_file=f"{name}_{step}.png")

    def close(self) -> None:
        self._mlflow.end_run()


def _plain(value: Any) -> Any:
    return (
        value if isinstance(value, bool | int | float | str | type(None)) else json.dumps(value, default=str)
    )


BACKENDS = {  # --tracker: (class, the package to be installed)
    "trackio": (Trackio, "trackio"),
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WeightsAndBiases, "wandb"),
    "mlflow": (MLflow, "mlflow"),
}
