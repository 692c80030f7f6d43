import os
from pathlib import Path

import pytest

from pipelines.errors import DataError
from pipelines.manifest import find_list, parse_labels, read_manifest, read_split


def write(folder: Path, text: str, name: str = "train.txt") -> Path:
    file = folder / name
    file.write_bytes(text.encode())
    return file


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "end", "end end"])
def test_reads_lf_and_crlf_with_and_without_final_newline(tmp_path, end, last):
    text = f"images/a/1.JPEG 0{end}images/b c/2.JPEG 2{last.replace('end', end).replace(' ', '')}"
    manifest = read_manifest(write(tmp_path, text))
    assert manifest.paths == ("images/a/1.JPEG", "images/b c/2.JPEG")
    assert manifest.labels == (0, 2)
    assert manifest.classes == 3
    assert manifest.files[0] == str(tmp_path / "images/a/1.JPEG")


def test_byte_order_mark_and_tabs(tmp_path):
    manifest = read_manifest(write(tmp_path, "\ufeffa.JPEG\t0\nb.JPEG\t1\n"))
    assert manifest.paths == ("a.JPEG", "b.JPEG")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("lonely.JPEG", "expected 'PATH LABEL'"),
        ("7", "expected 'PATH LABEL'"),
        ("a.JPEG -1", "not a whole number"),
        ("a.JPEG 1.0", "not a whole number"),
        ("a.JPEG cat", "not a whole number"),
        ("../a.JPEG 0", "leaves the data folder"),
        ("images/../../a.JPEG 0", "leaves the data folder"),
        ("/etc/passwd 0", "leaves the data folder"),
        ("images\\a.JPEG 0", "leaves the data folder"),
        ("good.JPEG 1", "listed twice"),
        ("./good.JPEG 1", "listed twice"),
    ],
)
def test_bad_row_names_file_line_and_reason(tmp_path, row, reason):
    file = write(tmp_path, f"good.JPEG 0\n\n{row}\n")
    with pytest.raises(DataError) as caught:
        read_manifest(file)
    message = str(caught.value)
    assert message.startswith(f"{file}:3: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "\n\r\n  \n"])
def test_empty_list_is_refused(tmp_path, text):
    with pytest.raises(DataError, match=r"train\.txt: the list is empty"):
        read_manifest(write(tmp_path, text))


def test_a_folder_without_lists_is_told_who_makes_them(tmp_path):
    with pytest.raises(DataError, match=r"python -m pipelines.lists makes it$"):
        find_list(tmp_path, "train")
    (tmp_path / "train.txt").write_text("a.jpg 0\n")
    with pytest.raises(DataError, match=r"no test.txt; write one row 'PATH LABEL' per image into it$"):
        find_list(tmp_path, "test")


def test_missing_list_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"no val\.txt or validation\.txt"):
        find_list(tmp_path, "val")
    with pytest.raises(DataError, match=r"nowhere: no such folder.*--data\.path"):
        find_list(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("data", [b"\xff\xd8\xff\xe0\0\x10JFIF", "a.JPEG 0\n".encode("utf-16")])
def test_list_that_is_not_text(tmp_path, data):
    file = tmp_path / "train.txt"
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"train\.txt: not a text file.*save the list as UTF-8"):
        read_manifest(file)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_names_may_be_any_bytes(tmp_path, mark):
    file = tmp_path / "train.txt"
    file.write_bytes(mark + b"caf\xe9.JPEG 0\n\xe4\xbb\xb6 \xff.JPEG 1\n")
    manifest = read_manifest(file)
    assert [os.fsencode(path) for path in manifest.paths] == [b"caf\xe9.JPEG", "件 ".encode() + b"\xff.JPEG"]
    assert os.fsencode(manifest.files[0]) == os.fsencode(tmp_path) + b"/caf\xe9.JPEG"


@pytest.mark.parametrize("name", ["val.txt", "validation.txt"])
def test_both_names_of_the_validation_list(tmp_path, name):
    write(tmp_path, "a.JPEG 0\nb.JPEG 1\n")
    write(tmp_path, "c.JPEG 1\n", name)
    manifest = read_split(tmp_path, "val")
    assert manifest.paths == ("c.JPEG",)
    assert manifest.classes == 2  # those of train, not those that happen to occur


def test_label_beyond_those_of_train(tmp_path):
    write(tmp_path, "a.JPEG 0\nb.JPEG 1\n")
    write(tmp_path, "c.JPEG 1\nd.JPEG 2\n", "test.txt")
    with pytest.raises(DataError, match=r"test\.txt:2: label 2 is out of range; train has classes 0 to 1"):
        read_split(tmp_path, "test")


def test_root_elsewhere(tmp_path):
    write(tmp_path, "a.JPEG 0\n")
    assert read_split(tmp_path, "train", root=tmp_path / "store").files == [str(tmp_path / "store/a.JPEG")]


def test_chosen_labels_are_renumbered_alike_in_every_split(tmp_path):
    write(tmp_path, "a 0\nb 3\nc 7\nd 3\n")
    write(tmp_path, "e 7\nf 0\ng 3\n", "test.txt")
    train, test = (read_split(tmp_path, split, labels=[7, 3]) for split in ("train", "test"))
    assert (train.paths, train.labels, train.classes) == (("b", "c", "d"), (0, 1, 0), 2)
    assert (test.paths, test.labels, test.classes) == (("e", "g"), (1, 0), 2)
    with pytest.raises(DataError, match="no image has label 5"):
        read_split(tmp_path, "train", labels=[3, 5])


def test_label_ranges():
    assert parse_labels("0-2,7,1") == [0, 1, 2, 7]
    for text in ("a-b", "", "19-0", "1--3", "-1", "1,,2"):
        with pytest.raises(DataError, match="0-19,40"):
            parse_labels(text)


@pytest.mark.parametrize(("rows", "absent"), [("a 1\nb 2\n", 0), ("a 0\nb 10000000\n", 1)])
def test_classes_without_images_are_refused(tmp_path, rows, absent):
    write(tmp_path, rows)
    with pytest.raises(DataError, match=rf"no image has label {absent}, but labels go up to.*--data\.labels"):
        read_split(tmp_path, "train")
