"""The command line of one run: `python -m tarflow --help`."""

import sys
from collections.abc import Callable

import tyro

from tarflow.commands.calibrate import calibrate
from tarflow.commands.check import check
from tarflow.commands.convert import convert
from tarflow.commands.cost import cost
from tarflow.commands.data import data
from tarflow.commands.evaluate import evaluate
from tarflow.commands.sample import sample
from tarflow.commands.score import score
from tarflow.commands.train import train
from tarflow.errors import exit_code_of

COMMANDS: dict[str, Callable[..., int]] = {
    "train": train,
    "sample": sample,
    "calibrate": calibrate,
    "evaluate": evaluate,
    "cost": cost,
    "data": data,
    "score": score,
    "check": check,
    "convert": convert,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line and exit code 2."""

    def act() -> int:
        code: int = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="python -m tarflow",
            description="Train, sample and score one TarFlow; studies of many are in sweeps/.",
            args=arguments,
        )
        return code

    return exit_code_of(act)


if __name__ == "__main__":
    sys.exit(main())
