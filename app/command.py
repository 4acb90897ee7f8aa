"""`python -m app`'s sequence: flags are checked, runs are loaded, the page is served until Ctrl-C."""

from dataclasses import dataclass
from importlib.util import find_spec
from logging import Logger
from pathlib import Path

from app.scoring import Side
from evaluation.photographs.calibration import THRESHOLDS
from evaluation.photographs.request import ClassSettings, ProcessSettings, is_number
from evaluation.photographs.scorer import load_scorer
from files.cells import plain
from files.given import require_regular
from files.logs import PROGRAM, open_logger
from model.settings import option
from run_folder.kinds import find_run
from run_folder.loaded_run import GROUPS as RUN_GROUPS
from run_folder.session import declare_datasets
from run_folder.settings import Settings
from utils import choose_device, close_logger, setup_seed

HOST = "127.0.0.1"
RAW_CLIP = "unadapted CLIP"


@dataclass(frozen=True)
class PageSettings:
    """page"""

    run: str | None = option(None, "folder of a trained run of any kind")
    run_b: str | None = option(None, "folder of a second run, shown beside the first")
    raw_clip: bool = option(False, "the unadapted backbone, alone or beside --run")
    text: str = option("", "what the pictures show, to begin with")
    threshold: float | None = option(
        None, "score from which on a picture is called anomalous; default what calibrate.py stored"
    )
    thresholds: str | None = option(
        None, f"file of calibrated thresholds; default {THRESHOLDS} in each run's folder"
    )
    port: int = option(7860, f"port on {HOST}")


GROUPS = {"own": PageSettings, **RUN_GROUPS, "data": ClassSettings, "run": ProcessSettings}


def serve(settings: Settings) -> None:
    """Load what is shown and serve the page until it is stopped."""
    check_flags(settings)
    require_gradio()
    choose_device(settings.run.device)
    setup_seed(settings.run.seed, settings.run.fast)
    declare_datasets(settings.data)
    logger = open_logger(PROGRAM)
    try:
        sides = load_sides(settings, logger)
        from app.page import build, launch  # gradio is an extra that nothing else needs

        logger.info(f"open http://{HOST}:{settings.own.port} (Ctrl-C ends it)")
        launch(build(sides, settings.own.text, settings.own.threshold), HOST, settings.own.port)
    finally:
        close_logger(logger)


def check_flags(settings: Settings) -> None:
    """Raises ValueError for flags that do not go together or are out of range, FileNotFoundError for no run."""
    own = settings.own
    if own.run is None and own.run_b is not None:
        raise ValueError("--run_b is the second run: name the first with --run")
    if own.run is None and not own.raw_clip:
        raise ValueError("give --run RUN or --raw_clip: what scores the pictures")
    if own.run_b is not None and own.raw_clip:
        raise ValueError("--run, --run_b and --raw_clip are three: the page shows two side by side")
    if not 1 <= own.port <= 65535:
        raise ValueError(f"--port {own.port}: expected a number from 1 to 65535")
    if not is_number(own.threshold):
        raise ValueError(f"--threshold {own.threshold}: expected a number")
    if own.thresholds is not None:
        require_regular(own.thresholds, "--thresholds")
    for run in filter(None, (own.run, own.run_b)):
        find_run(run)


def require_gradio() -> None:
    """Raises ModuleNotFoundError where the extra is not installed."""
    if find_spec("gradio") is None:
        raise ModuleNotFoundError(
            "the web page needs gradio: pip install -r requirements-app.txt, or use predict.py, which writes a page"
        )


def load_sides(settings: Settings, logger: Logger) -> list[Side]:
    """What the page shows, one or two; unadapted CLIP beside a run is that run's backbone."""
    own, sides = settings.own, []
    for run in filter(None, (own.run, own.run_b)):
        scorer = load_scorer(run, settings=settings, logger=logger)
        sides.append(Side(plain(run), scorer, Path(own.thresholds or Path(run) / THRESHOLDS)))
    if own.raw_clip:
        if sides:
            first = sides[0].scorer
            settings = settings.change(model_name=first.origin["model_name"], img_size=first.img_size)
        scorer = load_scorer(None, settings=settings, logger=logger)
        sides.append(Side(RAW_CLIP, scorer, Path(own.thresholds) if own.thresholds else None))
    return sides
