"""Loaders that run for long do not grow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from images import write_images

ROOT = Path(__file__).parents[2]
EPOCHS = 50

# A process of its own, so that nothing but the loaders moves its memory: prints its size after each epoch of each.
RUN = """
import json, sys
from pathlib import Path
import torch
from pipelines.batch import View
from pipelines.build import build_loader
from pipelines.integrity import scan
from pipelines.manifest import read_manifest
samples = scan(read_manifest(Path(sys.argv[1])))
pages = {}
for name in sys.argv[3:]:
    loader, _ = build_loader(name, samples, View(size=48, training=True), 16, torch.device("cpu"))
    pages[name] = []
    for _ in range(int(sys.argv[2])):
        for batch in loader:
            pass
        pages[name].append(int(Path("/proc/self/statm").read_text().split()[1]))
print(json.dumps(pages))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_stays_flat_over_many_epochs(tmp_path):
    pytest.importorskip("nvidia.dali")
    folder = write_images(tmp_path, 48)
    command = [sys.executable, "-c", RUN, folder / "train.txt", str(EPOCHS), "portable", "resident", "dali"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, pages in json.loads(done.stdout).items():
        assert len(pages) == EPOCHS
        second, rest = pages[1], pages[2:]
        assert max(rest) <= 1.02 * second, (name, pages)
