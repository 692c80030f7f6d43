"""What all programs share: errors as one line, and exit codes a script can act on."""

import sys
from collections.abc import Callable
from typing import NoReturn

from pipelines.errors import DataError

EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


def run_program(main: Callable[[], None], interrupted: str = "interrupted; the same command goes on") -> None:
    """Run a program's main function; on trouble say what and exit: 2 bad input, 1 failed, 130 interrupted.

    Args:
        main: the program.
        interrupted: what Ctrl-C leaves behind, and how to go on.
    """
    try:
        main()
    except DataError as error:
        leave(f"error: {error}", EXIT_BAD_INPUT)
    except OSError as error:
        leave(f"error: {error}; check the path, its permissions and the disk", EXIT_FAILED)
    except KeyboardInterrupt:
        leave(interrupted, EXIT_INTERRUPTED)


def leave(message: str, status: int) -> NoReturn:
    """End the process with a last line."""
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
