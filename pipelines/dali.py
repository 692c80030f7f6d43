"""The DALI loader: one graph that decodes on the CPU or on the GPU. The only file that imports DALI.

Order, shards and crop windows come from outside as plain numbers; the graph reads, decodes only the window,
resizes with antialiasing, flips and normalises, and hands out N×H×W×C memory that PyTorch sees as
channels_last. Nothing in the graph is random, so resuming needs no state of DALI's own.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import Pipeline, pipeline_def
from torch import Tensor

from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, Loader, Work
from pipelines.errors import DataError
from pipelines.portable import decode
from pipelines.samples import changed_after_scan

Size = tuple[int, int]  # width and height in pixels


class DaliLoader(Loader):
    """Decodes with DALI: on the GPU where the device is one (nvJPEG), else on CPU threads.

    Raises:
        DataError: DALI fails on a file while running; the message names it.
    """

    def _decode(self, work: Iterator[Work]) -> Iterator[Tensor]:
        running: list[Work] = []  # handed to DALI and not yet come back, oldest first

        def feed() -> Iterator[tuple]:
            for piece in work:
                running.append(piece)
                yield self._inputs(piece)

        pipeline = self._build(feed())
        while True:
            try:
                (output,) = pipeline.run()
            except StopIteration:
                return
            except (RuntimeError, UnicodeDecodeError) as error:  # the latter: it quotes a name that is not UTF-8
                raise self._explain(running, error) from error
            running.pop(0)
            yield torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)

    def _inputs(self, piece: Work) -> tuple:
        windows = piece.windows
        return (
            [self._source(i) for i in piece.share.ids],
            windows.anchor,
            windows.shape,
            windows.flip.astype(np.int32)[:, None],
        )

    def _source(self, i: int) -> np.ndarray:
        """A name for DALI's own threads to read, or the bytes themselves where there is no such file."""
        return _path_bytes(self.samples.files[i]) if self.samples.shards is None else self.samples.read(i)

    def _build(self, feed: Iterator[tuple]) -> Pipeline:
        gpu = self.device.type == "cuda"
        pipeline = _graph(
            feed,
            named=self.samples.shards is None,
            view_size=self.view.size,
            half=self.view.half,
            batch_size=self.batch_size,
            hardware_load=self.decoding.hardware_load,
            num_threads=self.decoding.threads,
            device_id=self.device.index if gpu else None,
            prefetch_queue_depth=self.decoding.prefetch,
        )
        pipeline.build()
        return pipeline

    def _explain(self, running: list[Work], error: Exception) -> DataError:
        """Find the file behind DALI's error, which often does not name it."""
        for i in (i for piece in running for i in piece.share.ids):
            try:
                decode(self.samples, i)
            except DataError as found:
                return found
            file = self.samples.files[i]
            reason = self.samples.shards is None and undecodable([file]).get(file)
            if reason:  # of a file that torchvision takes
                return changed_after_scan(file, reason)
        return DataError(f"DALI failed: {_summary(error)}; lower --data.batch-size if memory ran out")


def undecodable(files: Iterable[str]) -> dict[str, str]:
    """Which files, by absolute name, DALI's CPU decoder refuses, and why."""
    return {file: seen for file, seen in _look(list(files)).items() if isinstance(seen, str)}


def disagreements(sizes: Mapping[str, Size]) -> dict[str, str]:
    """Which files DALI's CPU decoder refuses or sees in another size, and what it says.

    Args:
        sizes: by absolute name, the size of each upright image as torchvision sees it; crop windows are cut to
            these.
    """
    files, threads = list(sizes), len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(_look, [files[i::threads] for i in range(threads)])
        seen = {file: look for part in parts for file, look in part.items()}
    return {file: _disagreement(seen[file], size) for file, size in sizes.items() if seen[file] != size}


def _disagreement(seen: Size | str, size: Size) -> str:
    if isinstance(seen, str):
        return f"DALI cannot decode it ({seen})"
    return "DALI sees {}×{} pixels where torchvision sees {}×{}".format(*seen, *size)


def _look(files: list[str]) -> dict[str, Size | str]:
    """The size of each image, or why DALI refuses it."""
    seen: dict[str, Size | str] = {}
    while len(seen) < len(files):
        _look_until_refusal(files[len(seen) :], seen)
    return seen


def _look_until_refusal(files: list[str], seen: dict[str, Size | str]) -> None:
    """Note what DALI sees, up to and with the first file that it refuses: its pipeline does not survive that.

    One image at a time: in a batch with a file whose header it cannot parse, DALI 2.4 goes on decoding the others
    into memory that it has given back, and the process dies.
    """
    feed = ([_path_bytes(file)] for file in files)
    pipeline = _check_graph(feed, batch_size=1, num_threads=1, device_id=None)
    pipeline.build()
    for file in files:
        try:
            ((height, width, _),) = pipeline.run()[0].shape()
        except (RuntimeError, UnicodeDecodeError) as error:  # it quotes names, also those that are not UTF-8
            text = getattr(error, "object", b"").decode(errors="replace")
            seen[file] = _summary(RuntimeError(text) if text else error)
            return
        seen[file] = (width, height)


@pipeline_def(exec_dynamic=True)
def _graph(feed: Iterator[tuple], named: bool, view_size: int, half: bool, hardware_load: float):
    source, anchor, shape, flip = fn.external_source(source=feed, num_outputs=4, batch=True)
    images = fn.decoders.image_slice(
        fn.io.file.read(source) if named else source,
        anchor,
        shape,
        axes=[1, 0],  # anchor and shape are (x, y)
        normalized_anchor=False,
        normalized_shape=False,
        device="mixed" if Pipeline.current().device_id is not None else "cpu",
        hw_decoder_load=hardware_load,
        output_type=types.RGB,  # gray, CMYK and alpha become RGB; EXIF orientation is applied
    )
    images = fn.resize(images, size=(view_size, view_size), interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.crop_mirror_normalize(
        images,
        mirror=flip,
        mean=[255 * m for m in IMAGENET_MEAN],
        std=[255 * s for s in IMAGENET_STD],
        dtype=types.FLOAT16 if half else types.FLOAT,
        output_layout="HWC",
    )


@pipeline_def(exec_dynamic=True)
def _check_graph(feed: Iterator[list]):
    path = fn.external_source(source=feed, batch=True)
    return fn.decoders.image(fn.io.file.read(path), device="cpu", output_type=types.RGB)


def _path_bytes(file: str) -> np.ndarray:
    return np.frombuffer(os.fsencode(file), dtype=np.uint8)


def _summary(error: Exception) -> str:
    """The line of DALI's long message that says what happened: it follows "encountered:"."""
    text = str(error)
    lines = [line.strip() for line in text.partition("encountered:")[2].splitlines() if line.strip()]
    return (lines or text.splitlines() or ["no reason given"])[0][:160]
