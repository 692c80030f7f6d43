"""A page on paper: PDF by a headless Chromium, where there is one."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from pipelines.errors import DataError
from pipelines.files import write_atomically

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_PATIENCE = 300  # seconds


def find_browser() -> str:
    """The program that prints pages.

    Raises:
        DataError: there is none.
    """
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    raise DataError(
        f"--pdf: found none of {', '.join(_NAMES)}; install Chromium (on Debian: apt-get install chromium), or "
        "leave --pdf out and print the page from any browser"
    )


def print_page(browser: str, page: Path, out: Path) -> None:
    """Write a page, an HTML file, as PDF; it appears only when it is whole.

    Raises:
        DataError: the browser failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        printed = Path(scratch, "page.pdf")
        # As root Chromium wants no sandbox; the page has no scripts and reaches for nothing.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        flags += [f"--user-data-dir={scratch}/profile", f"--print-to-pdf={printed}", "--no-pdf-header-footer"]
        command = [browser, "--headless", "--disable-gpu", *flags, page.absolute().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        if done.returncode or not printed.is_file():
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise DataError(f"--pdf: {browser} did not print {page} ({reason}); print it from any browser")
        write_atomically(out, printed.read_bytes())
