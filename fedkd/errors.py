"""The one error a person can act on."""


class FedkdError(Exception):
    """Wrong input, said in one line: names the key, the value and what is allowed.

    The command line prints the line and ends with exit code 2, without a traceback.
    """


class MissingData(FedkdError):
    """A data set is not there: what does not need it can go on."""


class CheckpointError(FedkdError):
    """No checkpoint of a run can be read: it can only begin anew."""


class FedkdWarning(UserWarning):
    """Something about what was read, in one line, that a person should know of."""


def nearest(name: str, known: list[str]) -> str:
    """``" (did you mean 'x'?)"`` for the known name closest to ``name``, or an empty string."""
    import difflib

    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
