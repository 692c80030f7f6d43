"""The DALI loader: one graph that decodes on the CPU or on the GPU. The only file that imports DALI.

Order, shards and crop windows come from outside as plain numbers; the graph reads, decodes only the window,
resizes with antialiasing, flips and normalises, and hands out N×H×W×C memory that PyTorch sees as
channels_last. Nothing in the graph is random, so resuming needs no state of DALI's own.
"""

import os
from collections.abc import Iterator

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import Pipeline, pipeline_def
from torch import Tensor

from pipelines.batch import IMAGENET_MEAN, IMAGENET_STD, Loader, Work
from pipelines.errors import DataError
from pipelines.samples import changed_after_scan

PREFETCH = 3  # batches decoded ahead; MLPerf's ResNet uses up to 5 with ample memory
_CHECK_BATCH = 64
_CHECK_PIXELS = 64_000_000  # decoded at once while checking: 192 MB


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
            except RuntimeError as error:
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
            num_threads=self.threads,
            device_id=self.device.index if gpu else None,
            prefetch_queue_depth=PREFETCH,
        )
        pipeline.build()
        return pipeline

    def _explain(self, running: list[Work], error: RuntimeError) -> DataError:
        """Find the file behind DALI's error, which often does not name it."""
        for i in (i for piece in running for i in piece.share.ids):
            file = self.samples.files[i]
            reason = undecodable([file], [1]).get(file)
            if reason:
                return changed_after_scan(file, reason)
        return DataError(f"DALI failed: {_summary(error)}; lower --data.batch-size if memory ran out")


def undecodable(files: list[str], pixels: list[int]) -> dict[str, str]:
    """Which files DALI's CPU decoder refuses, and why.

    Args:
        files: absolute names.
        pixels: width × height of each, to bound the memory of a batch.
    """
    refused: dict[str, str] = {}
    batches = _by_pixels(files, pixels)
    while batches:
        error = _check(batches)
        if error is None:
            break
        done, message = error
        failed, batches = batches[done], batches[done + 1 :]
        if len(failed) == 1:
            refused[failed[0]] = message
        else:  # halve until the culprit stands alone
            middle = len(failed) // 2
            batches = [failed[:middle], failed[middle:], *batches]
    return refused


def _check(batches: list[list[str]]) -> tuple[int, str] | None:
    """Decode batches until one fails: (its index, the reason), or None when all pass."""
    feed = ([_path_bytes(file) for file in batch] for batch in batches)
    pipeline = _check_graph(
        feed, batch_size=_CHECK_BATCH, num_threads=len(os.sched_getaffinity(0)), device_id=None
    )
    pipeline.build()
    for done in range(len(batches)):
        try:
            pipeline.run()
        except RuntimeError as error:
            return done, _summary(error)
    return None


def _by_pixels(files: list[str], pixels: list[int]) -> list[list[str]]:
    batches: list[list[str]] = []
    room = 0
    for file, size in zip(files, pixels, strict=True):
        if not batches or len(batches[-1]) == _CHECK_BATCH or size > room:
            batches.append([])
            room = _CHECK_PIXELS
        batches[-1].append(file)
        room -= size
    return batches


@pipeline_def(exec_dynamic=True)
def _graph(feed: Iterator[tuple], named: bool, view_size: int, half: bool):
    source, anchor, shape, flip = fn.external_source(source=feed, num_outputs=4, batch=True)
    images = fn.decoders.image_slice(
        fn.io.file.read(source) if named else source,
        anchor,
        shape,
        axes=[1, 0],  # anchor and shape are (x, y)
        normalized_anchor=False,
        normalized_shape=False,
        device="mixed" if Pipeline.current().device_id is not None else "cpu",
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


def _summary(error: RuntimeError) -> str:
    """The line of DALI's long message that says what happened: it follows "encountered:"."""
    text = str(error)
    lines = [line.strip() for line in text.partition("encountered:")[2].splitlines() if line.strip()]
    return (lines or text.splitlines() or ["no reason given"])[0][:160]
