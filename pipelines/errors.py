"""The error a person can act on: what is wrong, where, and what to do about it, in one line."""


class DataError(Exception):
    """Bad or missing data. The message names the file, the reason and the remedy on one line.

    Programs print it without a traceback and exit with status 2. No ValueError: that one tyro would catch, and put
    into a box with words of its own.
    """
