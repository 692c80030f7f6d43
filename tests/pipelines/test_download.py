import hashlib
import io
import re
import shutil
import stat
import struct
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipelines import download, transfer, unpack
from pipelines.cli import run_program
from pipelines.errors import DataError

FILES = {
    "images/c00/a.JPEG": np.random.default_rng(0).bytes(300_000),
    "train.txt": b"images/c00/a.JPEG 0\n",
    "val.txt": b"images/c00/a.JPEG 0\n",
    "test.txt": b"images/c00/a.JPEG 0\n",
}


def make_zip(files: dict[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


ZIP = make_zip(FILES)


class Server(ThreadingHTTPServer):
    """A file server that misbehaves on request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = ZIP
        self.etag: str | None = '"v1"'
        self.modified: str | None = None
        self.statuses: list[int] = []  # answer the next requests with these errors
        self.drop_after: list[int] = []  # close the connection after so many bytes of the next answers
        self.honours_range = True
        self.honours_if_range = True
        self.length_lie = 0  # added to the announced length
        self.redirect: str | None = None
        self.requests: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/images.zip?token=x"

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        if server.statuses:
            return self.reply(server.statuses.pop(0), b"")
        if server.redirect:
            return self.reply(302, b"", {"Location": server.redirect})
        start = self.wanted_start()
        total = len(server.body) + server.length_lie
        if start is None:
            self.reply(200, server.body)
        elif start >= len(server.body):
            self.reply(416, b"", {"Content-Range": f"bytes */{total}"})
        else:
            span = f"bytes {start}-{total - 1}/{total}"
            self.reply(206, server.body[start:], {"Content-Range": span})

    def wanted_start(self) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not match or not self.server.honours_range:
            return None
        current = (self.server.etag, self.server.modified)
        unchanged = self.headers.get("If-Range") in (None, *current)
        return int(match[1]) if unchanged or not self.server.honours_if_range else None

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"ETag": self.server.etag, "Last-Modified": self.server.modified, **(headers or {})}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + self.server.length_lie))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[: self.server.drop_after.pop(0)] if self.server.drop_after else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def proxy_off(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(server: Server, folder: Path, waits: list[float] | None = None, **options) -> bytes:
    waits = [] if waits is None else waits
    return transfer.download(server.url, folder / "images.zip", wait=waits.append, **options).read_bytes()


def program(args: list[str]) -> int:
    """Runs `python -m pipelines.download ARGS` in this process; returns its exit status."""
    try:
        run_program(lambda: download.main(download.parse(args)))
    except SystemExit as stop:
        return stop.code
    return 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- downloading ---


def test_plain_download(server, tmp_path):
    assert fetch(server, tmp_path) == ZIP
    assert names(tmp_path) == ["images.zip"]


def test_dropped_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.drop_after = [100_000, 50_000]
    waits = []
    assert fetch(server, tmp_path, waits) == ZIP
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert waits == [1, 2]
    assert names(tmp_path) == ["images.zip"]


def test_a_rerun_resumes(server, tmp_path):
    server.drop_after = [100_000]
    with pytest.raises(DataError, match=r"rerun to go on from 100,000 bytes; no network\? copy the zip by hand"):
        fetch(server, tmp_path, retries=0)
    assert names(tmp_path) == ["images.zip.part", "images.zip.part.source"]
    assert fetch(server, tmp_path) == ZIP
    assert server.ranges == [None, "bytes=100000-"]


def test_last_modified_serves_where_there_is_no_strong_etag(server, tmp_path):
    server.etag, server.modified = 'W/"v1"', "Tue, 11 Jun 2024 08:00:00 GMT"
    server.drop_after = [100_000]
    assert fetch(server, tmp_path) == ZIP
    assert server.requests[1]["If-Range"] == server.modified


def test_without_any_validator_it_starts_over(server, tmp_path):
    server.etag = None
    server.drop_after = [100_000]
    assert fetch(server, tmp_path) == ZIP
    assert server.ranges == [None, None]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.honours_range = False
    server.drop_after = [100_000]
    assert fetch(server, tmp_path) == ZIP


@pytest.mark.parametrize("honours_if_range", [True, False])
@pytest.mark.parametrize("longer", [True, False])
def test_a_changed_file_is_never_glued_to_the_old_part(server, tmp_path, honours_if_range, longer):
    server.drop_after = [100_000]
    with pytest.raises(DataError):
        fetch(server, tmp_path, retries=0)
    extra = {"new.txt": b"new" * 100_000} if longer else {}
    server.body = make_zip(extra | {"train.txt": FILES["train.txt"]})
    server.etag, server.honours_if_range = '"v2"', honours_if_range
    assert fetch(server, tmp_path) == server.body


def test_a_part_of_another_url_is_not_continued(server, tmp_path):
    server.drop_after = [100_000]
    with pytest.raises(DataError):
        fetch(server, tmp_path, retries=0)
    other = server.url.replace("token=x", "token=y")
    assert transfer.download(other, tmp_path / "images.zip").read_bytes() == ZIP
    assert server.ranges == [None, None]


def test_a_part_that_was_complete_is_not_fetched_again(server, tmp_path):
    with pytest.raises(DataError, match="SHA-256"):
        fetch(server, tmp_path, sha256="0" * 64)
    assert fetch(server, tmp_path, sha256=hashlib.sha256(ZIP).hexdigest().upper()) == ZIP
    assert server.ranges == [None, f"bytes={len(ZIP)}-"]


def test_a_wrong_checksum_leaves_nothing_under_the_final_name(server, tmp_path):
    with pytest.raises(DataError, match="correct --sha256"):
        fetch(server, tmp_path, sha256="0" * 64)
    assert "images.zip" not in names(tmp_path)


def test_retries_are_bounded_and_back_off(server, tmp_path):
    server.statuses = [503] * 9
    waits = []
    with pytest.raises(DataError, match="503"):
        fetch(server, tmp_path, waits)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert len(server.requests) == 9


def test_a_missing_file_is_not_retried(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(DataError, match=r"404.*--url"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_more_announced_than_sent_is_an_error(server, tmp_path):
    server.length_lie = 10
    with pytest.raises(DataError, match="the connection closed after"):
        fetch(server, tmp_path, retries=2)
    assert "images.zip" not in names(tmp_path)


def test_less_announced_than_there_is_gives_no_zip(server, tmp_path):
    server.length_lie = -10
    with pytest.raises(DataError, match="not a whole zip"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_a_login_page_instead_of_the_zip_is_refused(server, tmp_path):
    server.body = b"<html>please log in</html>"
    with pytest.raises(DataError, match="not a whole zip"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_no_server(server, tmp_path):
    url = "http://127.0.0.1:1/images.zip"
    with pytest.raises(DataError, match=f"refused.*copy the zip by hand to {tmp_path / 'images.zip'}"):
        transfer.download(url, tmp_path / "images.zip", retries=1, wait=lambda _: None)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/hostname",
        "ftp://example.org/a.zip",
        "images.zip",
        "http:///a.zip",
        "http://[::1/a.zip",
        "http://127.0.0.1:x/a.zip",
        "http://127.0.0.1/a b.zip",
        "http://127.0.0.1/ä.zip",
        "",
    ],
)
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(DataError, match=r"not an http or https address.*--archive"):
        download.fetch_dataset(tmp_path / "out", url=url)
    assert names(tmp_path) == []


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1:1/a.zip", "data:text/plain,x"])
def test_redirects_to_other_protocols_are_not_followed(server, tmp_path, target):
    server.redirect = target
    with pytest.raises(DataError):
        fetch(server, tmp_path, retries=0)
    assert "images.zip" not in names(tmp_path)


def test_too_little_disk_is_noticed_before_the_first_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 1, 99))
    with pytest.raises(DataError, match="make room"):
        fetch(server, tmp_path)
    assert (tmp_path / "images.zip.part").stat().st_size == 0


# --- unpacking ---


def write_zip(folder: Path, files: dict | bytes, **options) -> Path:
    archive = folder / "my.zip"
    archive.write_bytes(files if isinstance(files, bytes) else make_zip(files, **options))
    return archive


def refused(tmp_path: Path, files: dict | bytes, match: str, **options) -> None:
    """Unpacking must fail with a one-line message and leave nothing but the archive, inside and outside OUT."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    archive = write_zip(folder, files)
    with pytest.raises(DataError, match=match) as caught:
        download.fetch_dataset(folder / "out", archive=archive, **options)
    assert "\n" not in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
    assert names(folder) == ["my.zip"]


def test_unpacks_every_file_and_reuses_it(tmp_path):
    out = tmp_path / "out"
    archive = write_zip(tmp_path, FILES, compression=zipfile.ZIP_DEFLATED)
    assert download.fetch_dataset(out, archive=archive) == out
    for name, data in FILES.items():
        assert (out / name).read_bytes() == data
    assert names(tmp_path) == ["my.zip", "out"]
    archive.unlink()
    assert download.fetch_dataset(out, archive=archive) == out


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/evil", "//host/evil", "..\\evil", "C:\\evil", "C:evil", "\\evil", ".", ""],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    refused(tmp_path, {"good.txt": b"", zipfile.ZipInfo(name): b"evil"}, "outside the folder")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_special_files_are_refused(tmp_path, kind):
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    refused(tmp_path, {"good.txt": b"", info: b"/etc"}, "link or a special file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["dir/a.txt", "DIR/A.TXT", "dir\\a.txt", "dir/./a.txt", "dir//a.txt"])
def test_two_entries_with_one_path_are_refused(tmp_path, name):
    refused(tmp_path, {"dir/a.txt": b"1", zipfile.ZipInfo(name): b"2"}, "twice")


def test_encrypted_entries_are_refused(tmp_path):
    data = bytearray(make_zip({"a.txt": b"secret"}))
    data[data.index(b"PK\1\2") + 8] |= 1
    refused(tmp_path, bytes(data), "encrypted")


def test_a_bomb_is_refused(tmp_path):
    bomb = make_zip({"zeros": bytes(5_000_000)}, zipfile.ZIP_DEFLATED)
    refused(tmp_path, bomb, "--max-gib", max_bytes=4_000_000)


def test_a_bomb_that_lies_about_its_size_stops_there(tmp_path):
    data = bytearray(make_zip({"zeros": bytes(5_000_000)}, zipfile.ZIP_DEFLATED))
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, 1000)
    refused(tmp_path, bytes(data), "damaged", max_bytes=4_000_000)


def test_more_than_the_free_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 1, 99))
    refused(tmp_path, ZIP, "make room")


def test_a_truncated_zip_is_refused(tmp_path):
    refused(tmp_path, ZIP[:-100], "damaged zip.*fetch it again")


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]
)
def test_a_damaged_byte_is_noticed(tmp_path, compression):
    data = bytearray(make_zip(FILES, compression))
    data[150_000] ^= 0x40
    refused(tmp_path, bytes(data), "damaged")


def test_a_file_where_a_folder_should_be_is_refused(tmp_path):
    refused(tmp_path, {"a": b"file", "a/b": b"below"}, "out")


def test_an_interrupted_unpacking_leaves_nothing(tmp_path, monkeypatch):
    def fault(*_):
        raise KeyboardInterrupt

    archive = write_zip(tmp_path, FILES)
    monkeypatch.setattr(unpack, "_contents", fault)
    with pytest.raises(KeyboardInterrupt):
        download.fetch_dataset(tmp_path / "out", archive=archive)
    assert names(tmp_path) == ["my.zip"]


def test_what_is_not_ours_is_refused_before_anything_is_fetched(server, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="choose another OUT"):
        download.fetch_dataset(tmp_path / "out", url=server.url)
    assert server.requests == []
    assert names(tmp_path / "out") == ["thesis.txt"]


def test_another_archive_does_not_pass_for_the_one_unpacked(tmp_path):
    download.fetch_dataset(tmp_path / "out", archive=write_zip(tmp_path, FILES))
    with pytest.raises(DataError, match="not unpacked from images"):
        download.fetch_dataset(tmp_path / "out", url=download.URL)


# --- the command line ---


def test_download_and_unpack_by_command(server, tmp_path, capsys):
    out = tmp_path / "data" / "mini imagenet"
    assert program([str(out), "--url", server.url, "--sha256", hashlib.sha256(ZIP).hexdigest()]) == 0
    said = capsys.readouterr().out
    assert f"next: python -m training.train mini-imagenet --data.path '{out}'" in said
    assert "missing" not in said
    assert names(out.parent) == ["images.zip", "mini imagenet"]


def test_a_zip_copied_by_hand_is_found(tmp_path):
    (tmp_path / "images.zip").write_bytes(ZIP)
    assert program([str(tmp_path / "out"), "--url", "http://127.0.0.1:1/images.zip"]) == 0
    assert (tmp_path / "out" / "train.txt").is_file()


@pytest.mark.parametrize("val", ["val.txt", "validation.txt"])
def test_lists_are_found_one_folder_below(tmp_path, capsys, val):
    files = {f"set/{name.replace('val.txt', val)}": data for name, data in FILES.items()}
    archive = write_zip(tmp_path, files)
    assert program([str(tmp_path / "out"), "--archive", str(archive)]) == 0
    assert f"--data.path {tmp_path / 'out' / 'set'}\n" in capsys.readouterr().out


def test_missing_lists_are_said(tmp_path, capsys):
    archive = write_zip(tmp_path, {"images/c00/a.JPEG": b"x", "train.txt": b"images/c00/a.JPEG 0\n"})
    assert program([str(tmp_path / "out"), "--archive", str(archive)]) == 0
    assert "lists are missing" in capsys.readouterr().out


def test_errors_are_one_line_with_status_2(tmp_path, capsys):
    assert program([str(tmp_path / "out"), "--archive", str(tmp_path / "none.zip")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_an_interrupt_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def fault(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "fetch_dataset", fault)
    assert program([str(tmp_path / "out")]) == 130
    assert "the same command goes on" in capsys.readouterr().err
