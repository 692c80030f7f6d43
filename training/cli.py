"""What the programs of training add to `pipelines.cli`: their own errors."""

import sys
from collections.abc import Callable

import torch

from pipelines import cli
from training.config import ConfigError
from training.evaluation.failures import FailedRunsError
from training.loop import NonFiniteLossError
from training.runtime import FailedElsewhere, LostRankError

_INTERRUPTED = "interrupted; what is saved stands, and training goes on from it with --resume"


def run_program(main: Callable[[], None]) -> None:
    """Run a program's main function; on trouble say what and exit: 2 bad input, 1 failed, 130 interrupted."""

    def guarded() -> None:
        try:
            main()
        except ConfigError as error:
            cli.leave(f"error: {error}", cli.EXIT_BAD_INPUT)
        except (NonFiniteLossError, FailedRunsError) as error:
            cli.leave(f"error: {error}", cli.EXIT_FAILED)
        except LostRankError as error:
            cli.leave(f"error: {error}; go on from the last checkpoint with --resume", cli.EXIT_FAILED)
        except FailedElsewhere:
            sys.exit(cli.EXIT_FAILED)  # the rank that failed says why
        except torch.OutOfMemoryError as error:
            cli.leave(f"error: {str(error).splitlines()[0]}; add --schedule.accumulate auto", cli.EXIT_FAILED)

    cli.run_program(guarded, _INTERRUPTED)
