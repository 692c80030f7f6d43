"""Score trained models on every channel set: `python -m training.evaluate RUN_DIR… [--split test]`

Decodes each image once for all models that see it alike, and writes `RUN_DIR/sweep-SPLIT.json`, a record that
`training.report` reads, with its tables in `.csv` and `.md` beside it. Runs on one process or many, independently
of how the models were trained. A model that fails is told in a line and leaves the others alone; an evaluation
that was killed goes on by the same command.
"""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path

import tyro
from torch import Tensor

from pipelines.batch import Batch, Loader
from pipelines.files import locked
from pipelines.progress import track
from pipelines.samples import Samples
from training.build import load_samples, make_loader
from training.cli import run_program
from training.config import ConfigError
from training.evaluation.candidates import Candidate, partial_of, pass_of, prepare, recipe_of
from training.evaluation.failures import Failures
from training.evaluation.outcome import make_record, show, with_earlier_rows, write_outcome
from training.evaluation.partial import Partial
from training.evaluation.settings import Evaluation
from training.records import read_record
from training.reporting.answers import test_set
from training.runtime import Runtime
from training.sweep import collect


def main(job: Evaluation) -> None:
    """Evaluate all runs, in as many passes over the data as they need.

    Raises:
        ConfigError: no run is named.
    """
    if not job.run_dirs:
        raise ConfigError("no run directory given; name one or more that training.train has finished")
    runtime = Runtime(job.precision, processes=job.processes)
    run_dirs = tuple(dict.fromkeys(job.run_dirs))
    failures = Failures(runtime, run_dirs)
    for group in _passes(run_dirs, job, failures):
        failures.attempt(partial(evaluate, group, job, runtime, failures), *group)
    done = failures.left(run_dirs)
    if runtime.is_main:
        for words in _pages(done, job):
            print(f"next: python -m training.report {shlex.join(words)}")
    runtime.close()
    failures.conclude()


def _pages(run_dirs: Sequence[Path], job: Evaluation) -> Iterator[list[str]]:
    """What to tell training.report of the records just made: only those of the same images share a page."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for run_dir in run_dirs:
        groups.setdefault(test_set(read_record(run_dir / job.record)), []).append(run_dir)
    for group in groups.values():
        if job.record != f"sweep-{job.split}.json":  # training.report looks for no other in a run directory
            yield [str(run_dir / job.record) for run_dir in group]
        else:
            yield [*map(str, group), *(["--split", job.split] if job.split != "test" else [])]


def _passes(run_dirs: Sequence[Path], job: Evaluation, failures: Failures) -> list[list[Path]]:
    """Runs by the pass over the data that they can share."""
    groups: dict[tuple, list[Path]] = {}
    for run_dir in run_dirs:
        recipe = failures.attempt(partial(recipe_of, run_dir, job), run_dir)
        if recipe:
            groups.setdefault(pass_of(recipe), []).append(run_dir)
    return list(groups.values())


def evaluate(run_dirs: Sequence[Path], job: Evaluation, runtime: Runtime, failures: Failures) -> None:
    """Score runs in one pass over the data, and write a record of each.

    Raises:
        DataError: the data is bad, or an image cannot be read; what was answered before is kept.
    """
    with ExitStack() as held:  # holds the locks on their answers
        for run_dir in run_dirs:
            failures.attempt(partial(_lock, run_dir, job, runtime, held), run_dir)
        free = failures.left(run_dirs)
        if not free:
            return
        samples = load_samples(recipe_of(free[0], job).data, job.split, runtime)
        prepared = [failures.attempt(partial(prepare, r, job, samples, runtime), r) for r in free]
        candidates = [candidate for candidate in prepared if candidate]
        if candidates:
            _answer(candidates, job, samples, runtime, failures)


def _lock(run_dir: Path, job: Evaluation, runtime: Runtime, held: ExitStack) -> None:
    """Keep other evaluations of a run that ask the same out until this one has answered."""
    lock = run_dir / f".{Path(job.record).stem}.lock"
    busy = f"{run_dir} is being evaluated in the same way by another process; wait for it"
    runtime.first(lambda: held.enter_context(locked(lock, busy)))


def _answer(
    candidates: Sequence[Candidate], job: Evaluation, samples: Samples, runtime: Runtime, failures: Failures
) -> None:
    """Show the images to candidates, and write the record of each that bears it."""
    loader, _ = make_loader(
        candidates[0].recipe.data, samples, runtime, training=False, channels=candidates[0].channels
    )
    places = runtime.first(lambda: [partial_of(c, job, samples, loader, runtime.precision) for c in candidates])
    _score(dict(zip(candidates, places, strict=True)), loader, job.part, runtime, failures)
    for candidate, place in zip(candidates, places, strict=True):
        if failures.left([candidate.run_dir]):
            finish = partial(_finish, candidate, place, job, samples, runtime)
            failures.attempt(finish, candidate.run_dir)


def _score(
    candidates: Mapping[Candidate, Partial], loader: Loader, part: int, runtime: Runtime, failures: Failures
) -> None:
    """Show the images to the candidates, but for those that they have answered before."""
    done = dict(zip(candidates, runtime.first(lambda: [p.done for p in candidates.values()]), strict=True))
    names = ", ".join(candidate.run_dir.name for candidate in candidates)
    if runtime.is_main and min(done.values()):
        print(f"{names}: going on at image {min(done.values())} of {len(loader.samples)}")
    loader.load_state_dict(loader.state_dict() | {"position": min(done.values())})
    batches = runtime.batches(track(loader, len(loader), f"evaluating {names}", quiet=not runtime.is_main))
    for images, some in _parts(loader, batches, part):
        asked = [c for c in candidates if failures.left([c.run_dir]) and done[c] < images.stop]
        if not asked:
            return
        start = time.perf_counter()
        told = collect([c.networks for c in asked], asked[0].channels, some, images, runtime)
        seconds = time.perf_counter() - start
        for candidate, answers in zip(asked, told, strict=True):
            keep = partial(_keep, candidates[candidate], images, answers, seconds, runtime)
            failures.attempt(keep, candidate.run_dir)


def _parts(loader: Loader, batches: Iterator[Batch], images: int) -> Iterator[tuple[range, Iterator[Batch]]]:
    """About so many images at a time: which of the list's, and this rank's share of them."""
    whole = loader.batch_size * loader.world
    count = max(1, images // whole)
    for first in range(loader.position, len(loader.samples), count * whole):
        yield range(first, min(first + count * whole, len(loader.samples))), islice(batches, count)


def _keep(place: Partial, images: range, answers: Tensor | Exception, seconds: float, runtime: Runtime) -> None:
    """Put answers where a later evaluation finds them, if they are good for anything."""
    if isinstance(answers, Exception):
        raise answers
    if not runtime.is_main:
        return
    lost = int((~answers.isfinite().all(1)).any(0).sum())
    if lost:
        raise FloatingPointError(
            f"its outputs are no numbers on {lost} of images {images.start} to {images.stop - 1}; its weights are "
            "damaged, or the precision is too narrow (--precision fp32)"
        )
    place.save(images.start, answers, seconds)


def _finish(candidate: Candidate, place: Partial, job: Evaluation, samples: Samples, runtime: Runtime) -> None:
    """Write the record of a candidate that has answered for all images."""
    if not runtime.is_main:
        return
    file = candidate.run_dir / job.record
    record = with_earlier_rows(make_record(candidate, *place.read(), job, samples, runtime), file)
    write_outcome(file, record)
    place.remove()
    show(record)
    print(f"wrote {file}")


def parse(args: list[str] | None = None) -> Evaluation:
    """The evaluation that the command line describes."""
    return tyro.cli(Evaluation, args=args, prog="python -m training.evaluate")


if __name__ == "__main__":
    run_program(lambda: main(parse(sys.argv[1:])))
