"""What all programs share: errors as one line, and exit codes a script can act on."""

import sys
from collections.abc import Callable

import torch

from pipelines.errors import DataError
from training.config import ConfigError
from training.loop import NonFiniteLossError

EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


def run_program(main: Callable[[], None]) -> None:
    """Run a program's main function; on trouble say what and exit: 2 bad input, 1 failed, 130 interrupted."""
    try:
        main()
    except (DataError, ConfigError) as error:
        _leave(f"error: {error}", EXIT_BAD_INPUT)
    except NonFiniteLossError as error:
        _leave(f"error: {error}", EXIT_FAILED)
    except OSError as error:
        _leave(f"error: {error}; check the path, its permissions and the disk", EXIT_FAILED)
    except torch.cuda.OutOfMemoryError as error:
        _leave(f"error: {str(error).splitlines()[0]}; lower --data.batch-size", EXIT_FAILED)
    except KeyboardInterrupt:
        _leave("interrupted; what is saved stands, and training goes on from it with --resume", EXIT_INTERRUPTED)


def _leave(message: str, status: int) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
