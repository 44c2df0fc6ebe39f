"""A file as text: unpacked, decoded and split into lines; and tests for files whose content does not fit their name."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Iterable, Iterator

from xcls.config.schema import UserError

HEAD = 4096  # bytes that are read to recognise the kind of a file
EXPORT = "Save the sheet as CSV (UTF-8)."
OTHER_KINDS = (  # first bytes, what such a file is, what to do
    (rb"version https://git-lfs", "a Git LFS pointer, not the data", "Run `git lfs pull` where it came from."),
    (rb"PK\x03\x04.{26,60}(\[Content_Types\]|xl/|_rels)", "an Excel workbook", EXPORT),
    (rb"PK\x03\x04", "a zip archive or an Excel workbook", "Unpack it, or save the sheet as CSV (UTF-8)."),
    (rb"\xd0\xcf\x11\xe0", "an old Excel workbook", EXPORT),
    (
        rb"\xfd7zXZ|BZh\d1AY|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!",
        "a packed file",
        "Unpack it first; only .gz is read packed.",
    ),
    (rb"PAR1", "a parquet file", "Give it a name that ends in .parquet."),
    (rb"ARROW1", "an Arrow file", "Give it a name that ends in .arrow."),
    (rb"%PDF-|SQLite format 3|\x89HDF|\x93NUMPY|\x89PNG|\xff\xd8\xff", "not text", "Save its texts as csv or jsonl."),
)
PAGE = (rb"\s*<(!DOCTYPE|!doctype|html|HTML)", "a web page, not the data", "Download the file itself, not its page.")
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def is_gzip(file: Path) -> bool:
    """Whether the file is packed by gzip, or its name says so."""
    with open(file, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b" or file.name.lower().endswith(".gz")


def refuse_other_kinds(file: Path, head: bytes, *, own: str = "") -> None:
    """Raises UserError if the first bytes belong to a file that is not text and does not start with `own`."""
    kinds = [*OTHER_KINDS, PAGE] if re.search(r"\.(csv|tsv|jsonl?)$", file.name.lower()) else OTHER_KINDS
    for start, what, remedy in kinds:
        if re.match(start, head, re.DOTALL) and not (own and head.startswith(own.encode())):
            raise UserError(f"{file}: this is {what}. {remedy}")


def is_utf8(encoding: str) -> bool:
    """Whether this names UTF-8."""
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")


def _encoding_of(file: Path, head: bytes, encoding: str) -> str:
    """The encoding to read with; for UTF-8 a byte-order mark overrides it. UserError for UTF-16 without a mark."""
    for mark, name in BOMS:
        if head.startswith(mark) and (is_utf8(encoding) or encoding.lower().replace("_", "-").startswith(name)):
            return name
    if not is_utf8(encoding):
        return encoding
    for name, place in (("utf-16-le", 1), ("utf-16-be", 0)):
        if len(head) > 3 and head[place::2].count(0) > 0.4 * len(head[place::2]):
            raise UserError(f"{file}: every second byte is 0, as in UTF-16. Set dataset.source.encoding={name}.")
    return "utf-8-sig"


@contextmanager
def open_text(file: Path, encoding: str, *, newline: str = "") -> Iterator[IO[str]]:
    """The file as text, unpacked if it is packed by gzip. Errors of decoding and unpacking raise UserError.

    `newline`: as in `open`.
    """
    used = encoding
    try:
        "".encode(encoding)
    except LookupError as error:
        raise UserError(
            f"dataset.source.encoding={encoding}: no such encoding. Give utf-8, cp1252 or utf-16, for example."
        ) from error
    try:
        with (gzip.open if is_gzip(file) else open)(file, "rb") as raw:
            head = raw.peek(HEAD)[:HEAD]
            refuse_other_kinds(file, head)
            used = _encoding_of(file, head, encoding)
            with io.TextIOWrapper(raw, encoding=used, newline=newline) as stream:
                yield stream
    except UnicodeError as error:
        raise UserError(
            f"{file}{_undecodable_line(file, used)}: this is not {used.removesuffix('-sig')} text. Name its encoding, "
            "e.g. dataset.source.encoding=cp1252 (Western Europe; also latin-1), gb18030 (Chinese), shift_jis "
            "(Japanese), cp1251 (Cyrillic)."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: the gzip file is damaged or cut off ({error}). Copy it again.") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}).") from error


def _undecodable_line(file: Path, encoding: str) -> str:
    """`, line 7` for the first line that cannot be decoded, else ""."""
    if encoding.startswith(("utf-16", "utf-32")):
        return ""
    with (gzip.open if is_gzip(file) else open)(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return f", line {number}"
    return ""


def raw_lines(file: Path, stream: Iterable[str], notes: list[str]) -> Iterator[str]:
    """The lines of a text opened with newline="\\n", with their ends. NUL bytes become spaces; `notes` says so."""
    count, first = 0, 0
    for number, line in enumerate(_ended_lines(stream), 1):
        if "\0" in line:
            count, first = count + 1, first or number
            line = line.replace("\0", " ")
        yield line
    if count:
        notes.append(f"{file}: NUL bytes in {count} lines (the first is line {first}), read as spaces.")


def _ended_lines(stream: Iterable[str]) -> Iterator[str]:
    """The lines with their ends, without the Ctrl-Z that DOS programs write after the last line.

    A carriage return ends a line only if the file has no line feeds (as on old Macs).
    """
    ended, held = False, None
    for line in stream:
        if held is not None:
            ended = True  # only the last line has no line feed
            yield held
        held = line
    held = re.sub(r"\x1a+[\r\n]*\Z", "", held or "")
    if held:
        yield from [held] if ended or held.endswith("\n") else re.split(r"(?<=\r)(?!\Z)", held)


def text_lines(file: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text, without their ends; NUL bytes are spaces. Raises UserError."""
    with open_text(file, encoding, newline="\n") as stream:
        for line in raw_lines(file, stream, []):
            yield line.removesuffix("\n").removesuffix("\r")
