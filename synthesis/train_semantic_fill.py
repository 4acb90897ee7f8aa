"""Train semantic fill: FLUX.1-Fill with LoRA learns by flow matching to fill the right half of a diptych, told where by
a semantic map through a small cross-attention."""

from collections.abc import Sequence

from files.command import run_main
from run_folder.session import open_run
from run_folder.settings import RunSettings
from run_folder.signals import stop_signals
from synthesis.data import Triptychs
from synthesis.packages import optional_packages
from synthesis.settings import check, parse_flags


def main(argv: Sequence[str] | None = None) -> None:
    settings = parse_flags(__doc__, argv)
    check(settings)
    with optional_packages():  # seconds, which a wrong flag does not wait for
        from synthesis.fill_run import run
    own = settings.run
    dataset = Triptychs(own.data, settings.task.size)
    its_run = RunSettings(own.seed, own.out, own.device, own.workers)
    with open_run(its_run, "train.log") as (device, logger), stop_signals() as signals:
        run(settings, dataset, device, logger, signals)


if __name__ == "__main__":
    run_main(main, own_debug=True)
