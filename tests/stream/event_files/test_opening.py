"""What a file is, is found in its content: packed or not, piped or not; what holds no events says what it is."""

import bz2
import gzip
import io
import lzma
import os
import socket
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from stream.event_files import EventFile, EventFileError, opening

from .conftest import Read, triple

TEXT = b"user,item,timestamp\n" + b"".join(b"u%d,i,%d\n" % (i, i) for i in range(5_000))
PACKS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.mark.parametrize("packing", PACKS)
@pytest.mark.parametrize("name", ["a.csv", "a", "a.parquet", "a.jsonl.xz"])
def test_packed_files_are_known_by_their_content(read: Read, packing: str, name: str) -> None:
    found = read(PACKS[packing](TEXT), name)
    assert [triple(row) for row in found[:2]] == [("u0", "i", 0), ("u1", "i", 1)]
    assert len(found) == 5_000


@pytest.mark.parametrize("packing", PACKS)
def test_pieces_packed_one_after_another_are_one_file(read: Read, packing: str) -> None:
    pack = PACKS[packing]
    assert len(read(pack(TEXT[:1_000]) + pack(TEXT[1_000:]))) == 5_000


@pytest.mark.parametrize("packing", PACKS)
@pytest.mark.parametrize("left", [0.02, 0.5, 0.9, 0.999])
def test_packed_data_that_ends_too_early_is_refused_with_its_line(read: Read, packing: str, left: float) -> None:
    packed = PACKS[packing](TEXT)
    with pytest.raises(EventFileError, match=rf"the {packing} data is damaged (after line [\d,]+ )?\("):
        read(packed[: max(12, int(left * len(packed)))])


@pytest.mark.parametrize("packing", PACKS)
def test_packed_data_with_other_bytes_in_it_is_refused(read: Read, packing: str) -> None:
    packed = bytearray(PACKS[packing](TEXT))
    packed[len(packed) // 2 : len(packed) // 2 + 8] = b"\xff" * 8
    with pytest.raises(EventFileError, match=rf"the {packing} data is damaged|is no text|is longer than|no column"):
        read(bytes(packed))


@pytest.mark.parametrize("packing", PACKS)
def test_what_unpacks_to_far_more_is_read_in_pieces(tmp_path: Path, packing: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(PACKS[packing](b"user,item,timestamp\n" + bytes(60_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(EventFileError, match="line 2 is longer than 1,000,000 bytes"):
            list(EventFile(path).messages())
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def zipped(data: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.csv", data)
    return held.getvalue()


def tarred(data: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        info = tarfile.TarInfo("a.csv")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return held.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped(TEXT), "is a zip archive or an Excel workbook: unpack it"),
        (tarred(TEXT), "is a tar archive: unpack it first"),
        (gzip.compress(tarred(TEXT), mtime=0), "is a tar archive, packed with gzip"),
        (gzip.compress(gzip.compress(TEXT, mtime=0), mtime=0), "is packed twice"),
        (gzip.compress(b"PAR1....", mtime=0), "is a Parquet file, packed with gzip: unpack it first"),
        (b"PARE....", "is an encrypted Parquet file"),
        (b"Obj\x01....", "is an Avro file: convert it"),
        (b"SQLite format 3\x00", "is an SQLite database"),
        (b"  <!DOCTYPE html><html>", "is HTML or XML"),
        (b'<?xml version="1.0"?>', "is HTML or XML"),
        (bytes(range(256)) * 40 + bytes(2_000), "is no text and no Parquet"),
        (b"", "is empty: it needs user_id or user"),
        (b"\n\n", "is empty: it needs user_id or user"),
        (b"\xef\xbb\xbf", "is empty: it needs user_id or user"),
        (b"user,item,timestamp", "has no rows after its header"),
        (bytes(100), r"no column|is empty|is no text"),
    ],
)
def test_what_holds_no_events_says_what_it_is(read: Read, content: bytes, said: str) -> None:
    with pytest.raises(EventFileError, match=said) as error:
        read(content)
    assert "\n" not in str(error.value)


def test_a_name_that_would_break_the_line_does_not(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match="there is no such file") as error:
        EventFile(tmp_path / "a\nb\x1b[31m.csv")
    assert str(error.value).isprintable()
    with pytest.raises(EventFileError, match="there can be no such file"):
        EventFile(Path("a\0b"))


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(TEXT)
    path.chmod(0)
    with pytest.raises(EventFileError, match="cannot be read: Permission denied"):
        EventFile(path)


def test_a_pipe_is_read_as_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(gzip.compress(TEXT),))
    writer.start()
    file = EventFile(path)
    writer.join()
    assert len(list(file.messages())) == len(list(file.messages())) == 5_000


def test_a_pipe_that_gives_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "PIPED_BYTES_MAX", 1_000)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(TEXT[:2_000],))
    writer.start()
    with pytest.raises(EventFileError, match="gives more than 1,000 bytes: save it as a file first"):
        EventFile(path)
    writer.join()


def test_devices_and_sockets_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EventFileError, match="is a device"):
        EventFile(Path("/dev/zero"))
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(EventFileError, match="s cannot be read"):
            EventFile(Path("s"))


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT)))
    file = EventFile(Path("-"))
    assert len(list(file.messages())) == 5_000
    assert str(file) == "standard input"
