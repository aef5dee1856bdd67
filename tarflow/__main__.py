"""The command line of one model: `python -m tarflow --help`."""

import sys

from tarflow.command_line import run_command
from tarflow.commands.calibrate import calibrate
from tarflow.commands.check import check
from tarflow.commands.convert import convert
from tarflow.commands.cost import cost
from tarflow.commands.data import data, data_encode, data_text
from tarflow.commands.diff import diff
from tarflow.commands.evaluate import evaluate
from tarflow.commands.finetune_decoder import finetune_decoder
from tarflow.commands.release import release
from tarflow.commands.sample import sample
from tarflow.commands.score import score
from tarflow.commands.train import train
from tarflow.errors import exit_code_of

COMMANDS = {
    command.__name__.replace("_", "-"): command
    for command in (
        *(train, sample, calibrate, evaluate, score, check, release, diff, cost, convert),
        *(data, data_encode, data_text, finetune_decoder),
    )
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line and exit code 2."""
    words = sys.argv[1:] if arguments is None else arguments
    if "-".join(words[:2]) in COMMANDS:  # data encode is the command data-encode
        words = ["-".join(words[:2]), *words[2:]]

    about = "Train, sample and score one TarFlow model; sweeps/ runs whole studies."
    return exit_code_of(lambda: run_command(COMMANDS, words, "python -m tarflow", about))


if __name__ == "__main__":
    sys.exit(main())
