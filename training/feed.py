"""A loader's batches for ranks that go on together, and learn now and then whether each still has its own."""

import itertools
from collections.abc import Iterable, Iterator

from pipelines.batch import Batch
from training.runtime import Runtime


class Feed:
    """As many batches on every rank, whatever becomes of its loader, and the failure that others must hear of.

    Ranks wait for one another within each step, so one whose loader has failed may not stay away: it takes its
    last batch again until they `meet`. What is trained meanwhile is worth nothing: meet before anything is
    written. To meet in every step would be simpler, but takes longer the more ranks there are, and would set the
    pace of hundreds of them (docs/scaling.md).

    Args:
        runtime: where the ranks meet.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.failure: Exception | None = None

    def batches(self, loader: Iterable[Batch], count: int) -> Iterator[Batch]:
        """What is left of an epoch; the ranks meet after its first batch and at its end.

        Args:
            loader: of this rank.
            count: batches that it should yield, which counts where it fails.
        """
        iterator, last = iter(loader), None
        for i in itertools.count():
            try:
                last = next(iterator)
            except StopIteration:
                break
            except Exception as error:
                self.failure = error
            if i == 0 or self.runtime.world == 1:  # nothing to take again, or nobody who waits
                self.meet()
            if self.failure:
                yield from itertools.repeat(last, count - i)
                break
            yield last
        self.meet()

    def meet(self) -> None:
        """Let the ranks wait for one another, and end them all where a loader has failed.

        Raises:
            FailedElsewhere: another rank's has; that one raises what went wrong.
        """
        self.runtime.meet(self._tell)

    def _tell(self) -> None:
        if self.failure:
            raise self.failure
