"""The command line of one model: `python -m tarflow --help`."""

import sys

import tyro

from tarflow.commands.calibrate import calibrate
from tarflow.commands.check import check
from tarflow.commands.convert import convert
from tarflow.commands.cost import cost
from tarflow.commands.data import data
from tarflow.commands.evaluate import evaluate
from tarflow.commands.release import release
from tarflow.commands.sample import sample
from tarflow.commands.score import score
from tarflow.commands.train import train
from tarflow.errors import exit_code_of

COMMANDS = (train, sample, calibrate, evaluate, score, check, release, cost, data, convert)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line and exit code 2."""

    def run() -> int:
        code: int = tyro.extras.subcommand_cli_from_dict(
            {command.__name__: command for command in COMMANDS},
            prog="python -m tarflow",
            description="Train, sample and score one TarFlow model; sweeps/ runs whole studies.",
            args=arguments,
        )
        return code

    return exit_code_of(run)


if __name__ == "__main__":
    sys.exit(main())
