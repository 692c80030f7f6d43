"""The decode scan: every image is decoded once before training, so that no loader meets a bad file later.

Loaders cannot skip a file on their own, and DALI decodes some damaged JPEGs to garbage without a word.
The scan settles both: Pillow decodes strictly (damage, truncation, foreign formats), then DALI, where it is
installed, decodes what passed (its parser refuses some files that others accept). Refused files are
quarantined with a reason; the verdicts are cached until a file or the list changes.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from pipelines.errors import DataError
from pipelines.manifest import Manifest
from pipelines.progress import track
from pipelines.samples import Samples

FORMATS = ("JPEG", "MPO", "PNG", "WEBP")  # what Pillow, torchvision and DALI all decode; MPO: JPEG and more
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height


@dataclass(frozen=True)
class Verdict:
    """What the scan found out about one file; `reason` is empty where it is sound.

    Width and height are those of the upright image, in pixels; `content` is a hash of the file's bytes, `pixels`
    of the upright RGB image.
    """

    width: int = 0
    height: int = 0
    content: str = ""
    pixels: str = ""
    reason: str = ""
    passing: bool = False  # the trouble may pass (permissions, disk): look again next time


def scan(manifest: Manifest, *, max_bad: float = 0.05, cache: Path | None = None) -> Samples:
    """Decode every image of a manifest once, or read the cached verdicts, and keep the sound ones.

    Args:
        manifest: the images to look at.
        max_bad: part of the images that may be quarantined, 0 … 1; more means that the data set or its
            root is wrong, and the run must not start.
        cache: folder for verdicts; `$XDG_CACHE_HOME/anychannel` or `~/.cache/anychannel` if None.

    Raises:
        DataError: no image is sound, or more than `max_bad` are not.
    """
    file = (cache or _default_cache()) / f"scan-{_cache_key(manifest)}.json"
    verdicts = _read_cache(file)
    if verdicts is None:
        verdicts = _inspect_all(manifest)
        if not any(verdict.passing for verdict in verdicts):
            _write_cache(file, verdicts)
    samples = _keep_sound(manifest, verdicts)
    _report(manifest, samples, max_bad)
    return samples


def inspect(file: str) -> Verdict:
    """Decode one file strictly with Pillow."""
    try:
        data = Path(file).read_bytes()
    except FileNotFoundError:
        return Verdict(reason="no such file; restore it or delete its row")
    except OSError as error:
        return Verdict(reason=f"cannot be read ({error.strerror}); check permissions and disk", passing=True)
    if not data:
        return Verdict(reason="zero bytes long; fetch it again")
    try:
        return _decode(file, data)
    except Image.DecompressionBombError:  # Pillow's bound: 179 million pixels
        reason = "too many pixels; scale it down"
    except UnidentifiedImageError:
        reason = "not an image; replace it or delete its row"
    except Exception as error:  # a foreign file may raise anything from Pillow's depths
        reason = f"damaged ({error}); fetch it again or delete its row"
    return Verdict(reason=" ".join(reason.split()))


def _decode(file: str, data: bytes) -> Verdict:
    with Image.open(file) as image:
        if image.format not in FORMATS:
            return Verdict(reason=f"is {image.format}, not one of {', '.join(FORMATS)}; convert it")
        width, height = image.size
        if image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        image.load()
    return Verdict(width, height, hashlib.blake2b(data, digest_size=16).hexdigest())


def _inspect_all(manifest: Manifest) -> list[Verdict]:
    files = manifest.files
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF blocks and large sizes: the verdict tells
        found = track(pool.map(inspect, files), len(files), f"scanning {manifest.source.name}")
        verdicts = list(found)  # on threads, since Pillow decodes without the GIL
    sound = [i for i, verdict in enumerate(verdicts) if not verdict.reason]
    refused = _refused_by_dali([files[i] for i in sound], [verdicts[i] for i in sound])
    for i in sound:
        if files[i] in refused:
            verdicts[i] = Verdict(reason=f"DALI cannot decode it ({refused[files[i]]}); re-encode it")
    return verdicts


def _refused_by_dali(files: list[str], verdicts: list[Verdict]) -> dict[str, str]:
    try:
        from pipelines import dali
    except ImportError:  # no DALI on this platform, so no loader will use it either
        return {}
    pixels = [verdict.width * verdict.height for verdict in verdicts]
    return dali.undecodable(files, pixels)


def _keep_sound(manifest: Manifest, verdicts: list[Verdict]) -> Samples:
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


def _report(manifest: Manifest, samples: Samples, max_bad: float) -> None:
    bad = samples.quarantined
    if not bad:
        return
    path, reason = next(iter(bad.items()))
    first = f"{manifest.root / path}: {reason}"
    if not len(samples) or len(bad) > max_bad * len(manifest):
        raise DataError(
            f"{manifest.source}: {len(bad)} of {len(manifest)} images are unusable, more than "
            f"--data.max-bad {max_bad:g} allows; check --data.root; the first is {first}"
        )
    for path, reason in list(bad.items())[:10]:
        print(f"quarantined {manifest.root / path}: {reason}", file=sys.stderr)
    if len(bad) > 10:
        print(f"… and {len(bad) - 10} more", file=sys.stderr)


# --- the cache -------------------------------------------------------------------------------------------


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anychannel"


def _cache_key(manifest: Manifest) -> str:
    """Hash of everything that a verdict depends on: decoders, rows, place, and each file's size and time."""
    digest = hashlib.sha256(f"{_decoders()} {manifest.root} {manifest.rows_hash}".encode())
    for stamp in _stamps(manifest.files):
        digest.update(stamp.encode())
    return digest.hexdigest()[:24]


def _decoders() -> list[str]:
    """Pillow's and DALI's versions; DALI's package carries the CUDA version in its name."""
    found = [
        dist for dist in importlib.metadata.distributions() if dist.name.lower().startswith("nvidia-dali-cuda")
    ]
    return [PIL.__version__, *sorted(f"{dist.name} {dist.version}" for dist in found)]


def _stamps(files: Iterable[str]) -> Iterator[str]:
    for file in files:
        try:
            stat = Path(file).stat()
            yield f"{stat.st_size} {stat.st_mtime_ns}\n"
        except OSError:
            yield "absent\n"


def _read_cache(file: Path) -> list[Verdict] | None:
    try:
        return [Verdict(**row) for row in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError):  # absent, damaged or of another version: scan anew
        return None


def _write_cache(file: Path, verdicts: list[Verdict]) -> None:
    """Best effort: a read-only home costs a scan per run, not the run."""
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps([asdict(verdict) for verdict in verdicts]))
        temporary.replace(file)
    except OSError as error:
        print(f"scan results not cached in {file.parent}: {error.strerror}", file=sys.stderr)
