"""What two runs must agree in."""


def measured(run):
    """The lines of a run without its timings."""

    def strip(line):
        return {key: value for key, value in line.items() if not key.startswith("seconds")}

    return [strip(line) for line in run.rounds], [strip(line) for line in run.clients]
