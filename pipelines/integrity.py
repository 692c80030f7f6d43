"""The decode scan: every image is decoded once before training, so that no loader meets a bad file later.

Loaders cannot skip a file on their own, and DALI decodes some damaged JPEGs to garbage without a word.
The scan settles both: Pillow decodes strictly (damage, truncation, foreign formats), then the loaders' own
decoders must take the file and see it alike: torchvision, and DALI where it is installed. Refused files are
quarantined with a reason. Verdicts are stored as the scan goes on, so that it may be killed at any time, and the
next one looks only at new or changed files.

As a program it checks a data set: `python -m pipelines.integrity DIR`
"""

import hashlib
import importlib.metadata
import io
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from os import sched_getaffinity
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Literal, TypeVar

import numpy as np
import PIL
import torch
import torchvision
import tyro
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from torchvision.io import ImageReadMode, decode_image

from pipelines import duplicates
from pipelines.cli import run_program
from pipelines.duplicates import Duplicate, find_duplicates
from pipelines.errors import DataError
from pipelines.manifest import Manifest, has_list, parse_labels, read_split
from pipelines.progress import track
from pipelines.samples import Samples, content_hash
from pipelines.shards import is_packed, open_packed
from pipelines.verdicts import Verdict, VerdictStore, default_folder, stamp_of

R = TypeVar("R")
Policy = Literal["quarantine", "fail"]
FORMATS = ("JPEG", "MPO", "PNG", "WEBP")  # what Pillow, torchvision and DALI all decode; MPO: JPEG and more
RULES = 1  # of this file; a change that may change a verdict needs a new number, or old verdicts stay
CHUNK = 2048  # files between two writes of verdicts: the most that a killed scan has to look at again
_PIECE = 16  # files per task of a thread; a task for each small image would halve the speed


def scan(
    manifest: Manifest, *, policy: Policy = "quarantine", max_bad: float = 0.05, cache: Path | None = None
) -> Samples:
    """Decode every image of a manifest once, unless its verdict is known, and keep the sound ones.

    Args:
        manifest: the images to look at.
        policy: leave unusable images out ("quarantine"), or refuse the data set for the first one ("fail").
        max_bad: part of the images that may be quarantined, 0 … 1; more means that the data set or its
            root is wrong, and the run must not start.
        cache: folder for verdicts; `$XDG_CACHE_HOME/anychannel` or `~/.cache/anychannel` if None.

    Raises:
        DataError: no image is sound, or more than `max_bad` are not, or any where the policy is "fail".
    """
    samples = _examine(manifest, cache)
    _enforce(manifest, samples, policy, max_bad)
    return samples


def scan_splits(
    manifests: Mapping[str, Manifest],
    *,
    policy: Policy = "quarantine",
    max_bad: float = 0.05,
    cache: Path | None = None,
    compare_only: Collection[str] = (),
) -> dict[str, Samples]:
    """Scan several splits, and leave out of train what is also in val or test; those are never changed.

    Args:
        manifests: by split, in the order train, val, test.
        policy, max_bad, cache: see `scan`; "fail" also refuses training images that are in val or test.
        compare_only: splits that nobody is about to read: what is unusable in them is no matter.

    Raises:
        DataError: see `scan`; or no training image would be left.
    """
    splits = {split: _examine(manifest, cache) for split, manifest in manifests.items()}
    for split in (split for split in splits if split not in compare_only):
        _enforce(manifests[split], splits[split], policy, max_bad)
    return _separate(manifests, splits, find_duplicates(splits), policy)


def inspect(file: str) -> Verdict:
    """Decode one file with Pillow, strictly, and with torchvision."""
    try:
        if not S_ISREG(Path(file).stat().st_mode):  # a pipe would be waited for without end
            return Verdict(reason="no regular file; delete its row")
        data = Path(file).read_bytes()
    except FileNotFoundError:
        return Verdict(reason=f"no such file; {_remedy_of_absence(file)}")
    except OSError as error:
        return Verdict(reason=f"cannot be read ({error.strerror}); check permissions and disk", passing=True)
    if not data:
        return Verdict(reason="zero bytes long; fetch it again")
    try:
        return _decode(data)
    except MemoryError:
        return Verdict(reason="takes more memory than there is; scale it down", passing=True)
    except Image.DecompressionBombError:  # Pillow's bound: 179 million pixels
        reason = "too many pixels; scale it down"
    except UnidentifiedImageError:
        reason = "not an image; replace it or delete its row"
    except Exception as error:  # a foreign file may raise anything from Pillow's depths
        reason = f"damaged ({error}); fetch it again or delete its row"
    return Verdict(reason=" ".join(reason.split()))


# --- one file ---------------------------------------------------------------------------------------------


def _decode(data: bytes) -> Verdict:
    with Image.open(io.BytesIO(data)) as image:
        if image.format not in FORMATS:
            return Verdict(reason=f"is {image.format}, not one of {', '.join(FORMATS)}; convert it")
        image.load()
    try:
        pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB, True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition(", ")[2]
        return Verdict(reason=f"torchvision cannot decode it ({reason}); re-encode it")
    if pixels.dtype != torch.uint8:
        return Verdict(reason="has 16 bits per channel; convert it to 8")
    _, height, width = pixels.shape
    digest = hashlib.blake2b(b"%d %d " % (width, height), digest_size=8)
    digest.update(pixels.permute(1, 2, 0).contiguous().numpy())  # as they lie in memory: no copy
    return Verdict(width, height, content_hash(data), digest.hexdigest())


def _remedy_of_absence(file: str) -> str:
    if any("\udc80" <= letter <= "\udcff" for letter in file):
        return "its name is not UTF-8: the list may be saved in another encoding, save it as UTF-8"
    return "restore it or delete its row"


# --- all files --------------------------------------------------------------------------------------------


def _examine(manifest: Manifest, cache: Path | None) -> Samples:
    """The sound images of a manifest, and why the others are not; what is packed was judged before."""
    return open_packed(manifest) if is_packed(manifest.source.parent) else examine(manifest, cache)


def examine(manifest: Manifest, cache: Path | None = None) -> Samples:
    """The sound images of a manifest that names files, and why the others are not, however many these are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF blocks and large sizes: the verdict tells
        found = _judge(manifest.files, cache or default_folder())
        verdicts = list(track(found, len(manifest), f"scanning {manifest.source.name}"))
    sound = [i for i, verdict in enumerate(verdicts) if not verdict.reason]
    return Samples(
        root=manifest.root,
        paths=[manifest.paths[i] for i in sound],
        labels=manifest.label_array[sound],
        sizes=np.array([(verdicts[i].width, verdicts[i].height) for i in sound], np.int32).reshape(-1, 2),
        contents=[verdicts[i].content for i in sound],
        pixels=[verdicts[i].pixels for i in sound],
        classes=manifest.classes,
        quarantined={p: v.reason for p, v in zip(manifest.paths, verdicts, strict=True) if v.reason},
    )


def _judge(files: list[str], cache: Path) -> Iterator[Verdict]:
    """The verdict of each file, in order; new ones are stored chunk by chunk."""
    with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool, VerdictStore(cache, _decoders()) as store:
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            # Stamped before it is read: a file that changes in between is read again by the next scan.
            stamps = {file: stamp for file, stamp in _on_threads(pool, stamp_of, chunk) if stamp}
            known = store.look_up(stamps)
            new = _look([file for file in chunk if file not in known], pool)
            store.keep(new, stamps)
            verdicts = known | new
            yield from (verdicts[file] for file in chunk)


def _look(files: list[str], pool: ThreadPoolExecutor) -> dict[str, Verdict]:
    """Verdicts of all decoders: DALI looks at what the others find sound."""
    verdicts = dict(_on_threads(pool, inspect, files))  # on threads, since decoding is done without the GIL
    return verdicts | _refused_by_dali({file: v for file, v in verdicts.items() if not v.reason})


def _refused_by_dali(sound: dict[str, Verdict]) -> dict[str, Verdict]:
    if not sound:
        return {}
    try:
        from pipelines import dali
    except ImportError:  # no DALI on this platform, so no loader will use it either
        return {}
    sizes = {file: (verdict.width, verdict.height) for file, verdict in sound.items()}
    return {file: Verdict(reason=f"{why}; re-encode it") for file, why in dali.disagreements(sizes).items()}


def _on_threads(pool: ThreadPoolExecutor, act: Callable[[str], R], files: list[str]) -> Iterator[tuple[str, R]]:
    """Each file with what `act` makes of it."""
    pieces = [files[i : i + _PIECE] for i in range(0, len(files), _PIECE)]
    done = pool.map(lambda piece: [act(file) for file in piece], pieces)
    return zip(files, chain.from_iterable(done), strict=True)


def _decoders() -> str:
    """What a verdict depends on besides the file. DALI's package carries the CUDA version in its name."""
    found = [
        dist for dist in importlib.metadata.distributions() if dist.name.lower().startswith("nvidia-dali-cuda")
    ]
    names = sorted(f"{dist.name} {dist.version}" for dist in found)
    versions = [f"rules {RULES}", f"Pillow {PIL.__version__}", f"torchvision {torchvision.__version__}", *names]
    return ", ".join(versions)


# --- what follows from the verdicts -----------------------------------------------------------------------


def _enforce(manifest: Manifest, samples: Samples, policy: Policy, max_bad: float) -> None:
    """Say what was refused; raise where that is too much."""
    bad = samples.quarantined
    if not bad or samples.shards is not None:  # what is packed was judged before
        return
    path, reason = next(iter(bad.items()))
    found = f"{manifest.source}: {len(bad)} of {len(manifest)} images are unusable"
    first = f"the first is {manifest.root / path}: {reason}"
    if not len(samples) or len(bad) > max_bad * len(manifest):
        raise DataError(f"{found}, more than --data.max-bad {max_bad:g} allows; check --data.root; {first}")
    if policy == "fail":
        raise DataError(f"{found}; --data.policy quarantine leaves them out; {first}")
    for path, reason in list(bad.items())[:10]:
        print(f"quarantined {manifest.root / path}: {reason}", file=sys.stderr)
    if len(bad) > 10:
        print(f"… and {len(bad) - 10} more", file=sys.stderr)


def _separate(
    manifests: Mapping[str, Manifest], splits: dict[str, Samples], found: list[Duplicate], policy: Policy
) -> dict[str, Samples]:
    """The splits, with train rid of what is also in val or test."""
    said = duplicates.summary(found)
    leaked = duplicates.leaks(found)
    if leaked and policy == "fail":
        raise DataError(f"{manifests['train'].source}: {said['leak']}; --data.policy quarantine leaves them out")
    if leaked and len(leaked) == len(splits["train"]):
        raise DataError(
            f"{manifests['train'].source}: {said['leak']}; no other is left, give train a list of its own"
        )
    for problem, line in said.items():
        print(f"left out: {line}" if problem == "leak" else f"note: {line}", file=sys.stderr)
    return splits | {"train": splits["train"].without(leaked)} if leaked else splits


# --- the program ------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Check:
    """Decode every image of a data set, and look for duplicates across its splits.

    Says which images are unusable and why, which training images are also in val or test, and whether a training
    would start. Nothing is changed. A scan that was stopped goes on where it was; one that is repeated looks only
    at new or changed files.
    """

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """Holds train.txt and, where there are some, val.txt (or validation.txt) and test.txt."""
    root: Path | None = None
    """Folder that the lists' paths are relative to; DIR unless given."""
    labels: str | None = None
    """Keep only these classes, like 0-19,40."""
    policy: Policy = "quarantine"
    """quarantine: leave unusable and leaked images out; fail: refuse the data set for the first one."""
    max_bad: float = 0.05
    """Part of a list that may be unusable, 0 to 1."""
    report: Path | None = None
    """Write every unusable image and duplicate to this file, one tab-separated row each."""


def main(job: Check) -> None:
    """Check a data set.

    Raises:
        DataError: a training would not start; the message names this program's flags, not the training's.
    """
    try:
        _check(job)
    except DataError as error:
        raise DataError(str(error).replace("--data.path", "DIR").replace("--data.", "--")) from None


def _check(job: Check) -> None:
    if not 0 <= job.max_bad <= 1:
        raise DataError(f"--data.max-bad {job.max_bad:g}: give a part between 0 and 1")
    manifests = _manifests(job)
    splits = {split: _examine(manifest, None) for split, manifest in manifests.items()}
    found = find_duplicates(splits)
    _show(manifests, splits, found)
    if job.report:
        duplicates.write_report(job.report, splits, found)
        print(f"wrote {job.report}")
    for split, manifest in manifests.items():
        _enforce(manifest, splits[split], job.policy, job.max_bad)
    _separate(manifests, splits, found, job.policy)
    print(f"next: python -m training.train RECIPE {_data_flags(job)}")


def _manifests(job: Check) -> dict[str, Manifest]:
    """The splits that exist; train must."""
    labels = parse_labels(job.labels) if job.labels else None
    splits = ["train", *(split for split in ("val", "test") if has_list(job.folder, split))]
    return {split: read_split(job.folder, split, root=job.root, labels=labels) for split in splits}


def _show(manifests: Mapping[str, Manifest], splits: Mapping[str, Samples], found: list[Duplicate]) -> None:
    table = Table("split")
    for column in ("images", "sound", "unusable", "duplicates"):
        table.add_column(column, justify="right")
    for split, samples in splits.items():
        twins = {twin.path for twin in found if twin.split == split}
        counts = (len(manifests[split]), len(samples), len(samples.quarantined), len(twins))
        table.add_row(split, *map(str, counts))
    Console().print(table)


def _data_flags(job: Check) -> str:
    flags = {"path": job.folder, "root": job.root, "labels": job.labels}
    return " ".join(f"--data.{name} {shlex.quote(str(value))}" for name, value in flags.items() if value)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="surrogateescape")  # file names may be any bytes
    run_program(lambda: main(tyro.cli(Check, prog="python -m pipelines.integrity")))
