"""What ends a run before its last step without anything being wrong."""


class Interrupted(BaseException):
    """Someone asked the run to end; the same command goes on where it was.

    No `Exception`: nobody who handles errors is to take it for one.
    """
