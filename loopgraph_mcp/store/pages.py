"""Reads a SQLite file page by page without SQLite; pointers of a damaged page are checked before use."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loopgraph_mcp.store.files import beside

Value = None | int | float | str | bytes

_USUAL_SIZE = 4096  # SQLite's own default, and so every store's
_MAC_RESERVED = 12  # bytes at a page's end that the SQLite of macOS keeps for itself; others keep none
_TABLE_LEAF, _TABLE_INNER, _INDEX_LEAF, _INDEX_INNER = 13, 5, 10, 2
_TABLE_KINDS, _INDEX_KINDS = frozenset({_TABLE_LEAF, _TABLE_INNER}), frozenset({_INDEX_LEAF, _INDEX_INNER})
_INNER = frozenset({_TABLE_INNER, _INDEX_INNER})
_WAL_HEAD, _FRAME_HEAD = 32, 24
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type -> bytes
_REAL, _ZERO, _ONE, _BLOB = 7, 8, 9, 12


class CellError(ValueError):
    """A cell's bytes are no record."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it is stored.

    Args:
        rowid: None in an index or a table WITHOUT ROWID.
        values: Its columns, fewer than the table has where some were added later.
        altered: Whether a text held bytes that are no UTF-8, which are now `�`.
    """

    rowid: int | None
    values: tuple[Value, ...]
    altered: bool = False


@dataclass(frozen=True, slots=True)
class Leaf:
    """The records of one page, and how many of its cells could not be read."""

    number: int
    records: tuple[Record, ...]
    broken: int


class PageFile:
    """The pages of a SQLite file as they were at the last commit, its write-ahead log included."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self.size = self._page_size()
        self._usable = self.size - (_MAC_RESERVED if self._data[20:21] == bytes([_MAC_RESERVED]) else 0)
        self.count = -(-len(self._data) // self.size)
        self._newer = self._logged(beside(path, "-wal"))
        self.count = max([self.count, *self._newer])

    def _page_size(self) -> int:
        """Return what the head says where the file's length bears it out."""
        said, pages = struct.unpack(">H10xI", self._data[16:32]) if len(self._data) >= 32 else (0, 0)
        return said if said >= 512 and said * pages == len(self._data) else _USUAL_SIZE

    def _logged(self, path: Path) -> dict[int, bytes]:
        """Return the pages of the log's committed transactions.

        Frames left from before the log began again have other salts. Checksums are not compared: a page with one wrong
        byte has more rows than none.
        """
        try:
            log = path.read_bytes()
        except OSError:
            return {}
        committed: dict[int, bytes] = {}
        pending: dict[int, bytes] = {}
        salts = log[16:24]
        for at in range(_WAL_HEAD, len(log) - _FRAME_HEAD - self.size + 1, _FRAME_HEAD + self.size):
            number, pages = struct.unpack(">II", log[at : at + 8])
            if log[at + 8 : at + 16] != salts:
                break
            pending[number] = log[at + _FRAME_HEAD : at + _FRAME_HEAD + self.size]
            if pages:
                committed |= pending
                pending.clear()
        return committed

    @property
    def head(self) -> bytes:
        """The file's first hundred bytes."""
        return self.page(1)[:100]

    def page(self, number: int) -> bytes:
        """Return a page, from the log where that has a newer one; filled up where the file ends early."""
        newer = self._newer.get(number)
        if newer is not None:
            return newer
        return self._data[(number - 1) * self.size : number * self.size].ljust(self.size, b"\0")

    def kind(self, number: int) -> int:
        """Return the byte that says what a page is."""
        return self.page(number)[_start(number)]

    def free(self) -> set[int]:
        """Return the pages that the file says are in no use."""
        found: set[int] = set()
        (trunk,) = struct.unpack(">I", self.head[32:36])
        while 1 < trunk <= self.count and trunk not in found:
            found.add(trunk)
            page = self.page(trunk)
            following, leaves = struct.unpack(">II", page[:8])
            leaves = min(leaves, (self.size - 8) // 4)
            found.update(struct.unpack(f">{leaves}I", page[8 : 8 + 4 * leaves]))
            trunk = following
        return found

    def tree(self, root: int, *, table: bool) -> Iterator[Leaf]:
        """Yield the pages with records that can be reached from a root, each once."""
        seen, waiting = set[int](), [root]
        while waiting:
            number = waiting.pop()
            if number in seen or not 1 <= number <= self.count:
                continue
            seen.add(number)
            children = self._children(number, table=table)
            if children and self._is_inner(number, children, table=table):
                waiting += reversed(children)
                if not table:  # rows of an index and of a table WITHOUT ROWID are on its inner pages too
                    yield self.leaf(number, table=False, inner=True)
            else:
                yield self.leaf(number, table=table)

    def _is_inner(self, number: int, children: list[int], *, table: bool) -> bool:
        """Return whether a page leads to others: by its own word where that can be, or else by what it leads to."""
        of_tree = _TABLE_KINDS if table else _INDEX_KINDS
        fitting = sum(1 <= each <= self.count and each != number and self.kind(each) in of_tree for each in children)
        kind = self.kind(number)
        if kind in of_tree - _INNER and self.leaf(number, table=table).records:
            return False
        return fitting * 2 > len(children) if kind in _INNER & of_tree else fitting == len(children)

    def _children(self, number: int, *, table: bool) -> list[int]:
        """Return the pages that a page leads to if it is an inner one."""
        page, start = self.page(number), _start(number)
        cells = [at for at in self._pointers(number, inner=True) if at + 4 <= self._usable]
        places = [*cells, start + 8]
        return [struct.unpack(">I", page[at : at + 4])[0] for at in places] if cells or table else []

    def _pointers(self, number: int, *, inner: bool) -> Iterator[int]:
        """Yield where a page's cells begin; places outside of it are left out."""
        page, start = self.page(number), _start(number)
        first = start + (12 if inner else 8)
        count = min(struct.unpack(">H", page[start + 3 : start + 5])[0], (self._usable - first) // 2)
        for (at,) in struct.iter_unpack(">H", page[first : first + 2 * count]):
            yield at if start + 8 <= at else self.size  # past the end, where nothing can be read

    def leaf(self, number: int, *, table: bool, inner: bool = False) -> Leaf:
        """Return the records of a page; cells that cannot be read are counted."""
        page = self.page(number)
        records, broken = [], 0
        for at in self._pointers(number, inner=inner):
            try:
                records.append(self._record(page, at + (4 if inner else 0), table=table))
            except (CellError, IndexError, struct.error):
                broken += 1
        is_of_kind = self.kind(number) in (_TABLE_KINDS if table else _INDEX_KINDS)
        return Leaf(number, tuple(records), broken if records or is_of_kind else 0)  # else its count means nothing

    def _record(self, page: bytes, at: int, *, table: bool) -> Record:
        length, at = _varint(page, at)
        rowid = None
        if table:
            rowid, at = _varint(page, at)
            rowid -= (rowid >> 63) << 64
        if length > self.count * self.size:
            raise CellError
        return _decode(self._payload(page, at, length, table=table), rowid)

    def _payload(self, page: bytes, at: int, length: int, *, table: bool) -> bytes:
        """Return a cell's bytes, with those on the pages that it runs over to (https://sqlite.org/fileformat2.html)."""
        usable = self._usable
        most = usable - 35 if table else (usable - 12) * 64 // 255 - 23
        if length <= most:
            return page[at : at + length]
        least = (usable - 12) * 32 // 255 - 23
        local = least + (length - least) % (usable - 4)
        local = local if local <= most else least
        parts, left, seen = [page[at : at + local]], length - local, set[int]()
        (following,) = struct.unpack(">I", page[at + local : at + local + 4])
        while left > 0:
            if not 1 < following <= self.count or following in seen:
                raise CellError
            seen.add(following)
            over = self.page(following)
            parts.append(over[4 : 4 + min(left, usable - 4)])
            left -= usable - 4
            (following,) = struct.unpack(">I", over[:4])
        return b"".join(parts)


def _start(number: int) -> int:
    return 100 if number == 1 else 0  # the file's head is on its first page


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of one to nine bytes, and where it ends."""
    value = 0
    for end in range(at, at + 8):
        byte = data[end]
        value = value << 7 | byte & 127
        if byte < 128:
            return value, end + 1
    return value << 8 | data[at + 8], at + 9


def _decode(payload: bytes, rowid: int | None) -> Record:
    head, at = _varint(payload, 0)
    values, place, altered = list[Value](), head, False
    while at < head:
        kind, at = _varint(payload, at)
        length = _INTEGERS.get(kind, 8 if kind == _REAL else (kind - _BLOB) // 2 if kind >= _BLOB else 0)
        part = payload[place : place + length]
        if len(part) < length or kind in {10, 11}:
            raise CellError
        place += length
        value, wrong = _value(kind, part)
        values.append(value)
        altered |= wrong
    if at != head or not values:
        raise CellError
    return Record(rowid, tuple(values), altered)


def _value(kind: int, part: bytes) -> tuple[Value, bool]:
    """Return a column's value, and whether its text had to be altered to be one."""
    if kind in _INTEGERS:
        return int.from_bytes(part, "big", signed=True), False
    if kind == _REAL:
        return struct.unpack(">d", part)[0], False
    if kind >= _BLOB:
        if kind % 2 == 0:
            return part, False
        try:
            return part.decode(), False
        except UnicodeDecodeError:
            return part.decode(errors="replace"), True
    return {_ZERO: 0, _ONE: 1}.get(kind), False
