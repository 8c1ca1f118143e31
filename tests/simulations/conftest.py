"""The command line, for tests of its commands."""

import pytest

from simulations import cli


@pytest.fixture
def fedkd(capsys):
    """Run a command line in this process: exit code, stdout, stderr."""

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call
