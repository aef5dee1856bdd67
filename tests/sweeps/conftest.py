import sys

import pytest


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a script's command line in this process; return its exit code and what it printed."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            script.main()
        return ended.value.code, capsys.readouterr()

    return run
