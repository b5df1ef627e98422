"""Fetching from servers that misbehave, and unpacking archives that mean harm."""

import asyncio
import contextlib
import gzip
import io
import itertools
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.errors import SourceError
from loopgraph_mcp.ingest import archives
from loopgraph_mcp.ingest.addresses import headers_for, is_public
from loopgraph_mcp.ingest.cache import Cache
from loopgraph_mcp.ingest.fetch import Limits, StatusError, Web, decode
from loopgraph_mcp.ingest.rate_limit import Pace

BRISK = Limits(body_bytes=10_000, decoded_bytes=20_000, total_s=5, silence_s=2, backoff_s=0.01, wait_s=1)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "fetched")


@pytest.fixture
async def web(server: Any, cache: Cache) -> AsyncIterator[Web]:
    async with Web.open(cache, trusted=[server.url], limits=BRISK) as opened:
        yield opened


async def test_a_body_is_fetched_once_and_asked_for_again_only_by_its_etag(web: Web, server: Any, reply: Any) -> None:
    server.replies["/a"] = [reply(200, b"text", ETag='"1"'), reply(304), reply(200, b"newer", ETag='"2"')]
    for body in (b"text", b"text", b"newer"):
        fetched = await web.get(f"{server.url}/a")
        assert fetched is not None
        assert fetched.body == body
    assert [each.headers.get("if-none-match") for each in server.asked] == [None, '"1"', '"1"']
    assert (await web.get(f"{server.url}/a", fixed=True)) is not None
    assert len(server.asked) == 3


async def test_a_busy_server_is_asked_again_after_the_delay_it_names(web: Web, server: Any, reply: Any) -> None:
    server.replies["/a"] = [reply(429, Retry_After="0.3"), reply(429, Retry_After="1"), reply(503), reply(200, b"x")]
    started = time.monotonic()
    assert (await web.get(f"{server.url}/a")) is not None
    assert time.monotonic() - started >= 1
    assert len(server.asked) == 4


async def test_a_delay_longer_than_we_wait_is_told_and_not_slept(web: Web, server: Any, reply: Any) -> None:
    server.replies["/a"] = reply(429, Retry_After="3600")
    with pytest.raises(StatusError, match="in 3600 s, as it asks"):
        await web.get(f"{server.url}/a")
    assert len(server.asked) == 1


async def test_a_server_that_stays_down_is_given_up(web: Web, server: Any, reply: Any) -> None:
    server.replies["/a"] = reply(503)
    with pytest.raises(StatusError, match="503"):
        await web.get(f"{server.url}/a")
    assert len(server.asked) == BRISK.attempts
    assert await web.get(f"{server.url}/missing") is None


async def test_a_cut_stream_goes_on_where_it_ended(web: Web, server: Any) -> None:
    body = bytes(range(200)) * 20

    async def cut(asked: Any, writer: asyncio.StreamWriter) -> None:
        begin = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        status = "206 X" if begin else "200 X"
        length = f'Content-Length: {len(body) - begin}\r\nETag: "e"\r\n'
        where = f"Content-Range: bytes {begin}-{len(body) - 1}/{len(body)}\r\n" if begin else ""
        writer.write(f"HTTP/1.1 {status}\r\n{length}{where}\r\n".encode() + body[begin : begin + 1_500])

    server.replies["/a"] = cut
    fetched = await web.get(f"{server.url}/a")
    assert fetched is not None
    assert fetched.body == body
    assert [each.headers.get("range") for each in server.asked] == [None, "bytes=1500-", "bytes=3000-"]


async def test_a_file_that_changed_meanwhile_is_begun_anew(web: Web, server: Any, reply: Any) -> None:
    server.replies["/a"] = [
        reply(200, b"old" * 10, ETag='"1"', Content_Length="60"),
        reply(206, b"xx", Content_Range="bytes 7-8/60"),
        reply(200, b"new", ETag='"2"'),
    ]
    fetched = await web.get(f"{server.url}/a")
    assert fetched is not None
    assert fetched.body == b"new"
    assert "range" not in server.asked[2].headers


async def test_a_body_without_end_is_refused(web: Web, server: Any) -> None:
    async def endless(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 1_000)
            await writer.drain()

    server.replies["/a"] = endless
    with pytest.raises(SourceError, match="larger than"):
        await web.get(f"{server.url}/a")


async def test_a_body_said_to_be_too_large_is_not_read(web: Web, server: Any, reply: Any) -> None:
    server.replies["/a"] = reply(200, b"x" * 2_000, Content_Length="99999999999")
    with pytest.raises(SourceError, match="larger than"):
        await web.get(f"{server.url}/a")


@pytest.mark.parametrize("pause_s", [0.1, 30])
async def test_a_stream_that_drips_or_hangs_is_given_up(server: Any, cache: Cache, pause_s: float) -> None:
    async def drip(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(pause_s)

    server.replies["/a"] = drip
    limits = Limits(total_s=0.6, silence_s=0.2, backoff_s=0.01, attempts=2)
    async with Web.open(cache, trusted=[server.url], limits=limits) as web:
        with pytest.raises(SourceError, match=r"not done within|check the network"):
            await asyncio.wait_for(web.get(f"{server.url}/a"), 3)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
async def test_a_body_that_unpacks_to_too_much_is_refused(web: Web, server: Any, reply: Any, encoding: str) -> None:
    server.replies["/a"] = reply(200, gzip.compress(b"0" * 2_000_000), Content_Encoding=encoding)
    with pytest.raises(SourceError, match="unpacks to more than"):
        await web.get(f"{server.url}/a")
    server.replies["/b"] = reply(200, gzip.compress(b"text"), Content_Encoding=encoding)
    fetched = await web.get(f"{server.url}/b")
    assert fetched is not None
    assert fetched.body == b"text"


async def test_a_damaged_or_unknown_encoding_is_refused(web: Web, server: Any, reply: Any) -> None:
    server.replies["/cut"] = reply(200, gzip.compress(b"text" * 100)[:-9], Content_Encoding="gzip")
    server.replies["/bad"] = reply(200, b"no gzip", Content_Encoding="gzip")
    server.replies["/br"] = reply(200, b"x", Content_Encoding="br")
    for path, words in (("cut", "cut short"), ("bad", "damaged"), ("br", "not asked for")):
        with pytest.raises(SourceError, match=words):
            await web.get(f"{server.url}/{path}")


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:1/x",
        "https://127.0.0.1/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::ffff:127.0.0.1]/x",
        "https://localhost/x",
        "http://example.com/x",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "https://user:password@example.com/x",
        "https://[::1",
        "https:///x",
    ],
)
async def test_redirects_lead_nowhere_private(web: Web, server: Any, reply: Any, target: str) -> None:
    server.replies["/a"] = reply(302, Location=target)
    with pytest.raises(SourceError, match=r"refused|no URL"):
        await web.get(f"{server.url}/a")
    assert len(server.asked) == 1


async def test_a_trusted_place_cannot_be_reached_from_another(server: Any, cache: Cache, reply: Any) -> None:
    other = server.url.replace("127.0.0.1", "localhost")
    server.replies["/a"] = reply(302, Location=f"{other}/b")
    async with Web.open(cache, trusted=[server.url, other], limits=BRISK) as web:
        with pytest.raises(SourceError, match="refused"):
            await web.get(f"{server.url}/a")


def test_a_token_goes_to_its_own_origin_alone() -> None:
    headers = {"Authorization": "Bearer secret", "Accept": "x"}
    assert headers_for("https://api.github.com:443/b", "https://api.github.com:443", headers) == headers
    for other in ("https://codeload.github.com/b", "http://api.github.com/b", "https://api.github.com:444/b"):
        assert headers_for(other, "https://api.github.com:443", headers) == {"Accept": "x"}


async def test_a_redirect_loop_ends(web: Web, server: Any, reply: Any) -> None:
    server.replies["/a"] = reply(302, Location="/a")
    with pytest.raises(SourceError, match="redirects"):
        await web.get(f"{server.url}/a")


async def test_a_name_with_one_private_address_is_refused_and_nothing_is_sent(server: Any, cache: Cache) -> None:
    async def rebinding(_host: str, _port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.7"]

    async with Web.open(cache, limits=BRISK, resolve=rebinding) as web:
        with pytest.raises(SourceError, match=r"10\.0\.0\.7"):
            await web.get("https://papers.example/a")


async def test_the_connection_goes_to_the_address_that_was_checked(server: Any, cache: Cache, reply: Any) -> None:
    looked_up = []

    async def once(host: str, _port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    named = server.url.replace("127.0.0.1", "mirror.invalid")
    server.replies["/a"] = reply(200, b"x")
    async with Web.open(cache, trusted=[named], limits=BRISK, resolve=once) as web:
        assert (await web.get(f"{named}/a")) is not None
    assert looked_up == ["mirror.invalid"]
    assert server.asked[0].headers["host"].startswith("mirror.invalid:")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001::1", False),
    ],
)
def test_an_address_is_public_or_not(address: str, public: bool) -> None:  # noqa: FBT001
    assert is_public(address) is public


async def test_the_cache_answers_without_a_network_and_survives_damage(
    web: Web, server: Any, cache: Cache, reply: Any, tmp_path: Path
) -> None:
    server.replies["/a"] = reply(200, b"text")
    await web.get(f"{server.url}/a")
    async with Web.open(cache, offline=True) as offline:
        fetched = await offline.get(f"{server.url}/a")
        assert fetched is not None
        assert fetched.body == b"text"
        with pytest.raises(SourceError, match="--offline"):
            await offline.get(f"{server.url}/b")
        (body,) = (tmp_path / "fetched" / "bodies").iterdir()
        body.write_bytes(b"changed")
        with pytest.raises(SourceError, match="--offline"):
            await offline.get(f"{server.url}/a")
    assert stat.S_IMODE((tmp_path / "fetched").stat().st_mode) == 0o700


def test_the_cache_makes_room_by_what_is_oldest(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "fetched", max_bytes=25)
    for number in range(4):
        cache.keep(str(number), "u", bytes([number]) * 10, {})
        for kept in (tmp_path / "fetched" / "bodies").iterdir():
            kept.touch() if kept.read_bytes()[0] == number else None
    assert [cache.find(str(number)) is not None for number in range(4)] == [False, False, True, True]


def test_requests_of_several_processes_keep_their_distance(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, time\nfrom pathlib import Path\nfrom loopgraph_mcp.ingest.rate_limit import Pace\n"
        "async def main():\n"
        "    for _ in range(2):\n"
        "        async with Pace(Path(sys.argv[1]), 0.3).turn(): print(time.time(), flush=True)\n"
        "asyncio.run(main())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "p.pace")], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    times = sorted(float(line) for each in running for line in each.communicate(timeout=30)[0].split())
    assert len(times) == 4
    assert all(later - earlier >= 0.29 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize(("last", "waits_s"), [("", 0), ("nonsense", 0), ("1000.0", 0), ("2000.1", 0.2), ("9999", 0.2)])
async def test_a_clock_set_back_costs_one_interval(tmp_path: Path, last: str, waits_s: float) -> None:
    (tmp_path / "p.pace").write_text(last)
    started = time.monotonic()
    async with Pace(tmp_path / "p.pace", 0.2, patience_s=1, clock=lambda: 2000.1).turn():
        assert waits_s <= time.monotonic() - started < waits_s + 0.15
    assert (tmp_path / "p.pace").read_text() == "2000.1"


async def test_a_turn_that_never_comes_is_told(tmp_path: Path) -> None:
    async with Pace(tmp_path / "p.pace", 0).turn():
        with pytest.raises(SourceError, match="other LoopGraph processes"):
            async with Pace(tmp_path / "p.pace", 0, patience_s=0.1).turn():
                pass


# ------------------------------------------------------------------------------------------------ archives


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def zipped(files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda _: None) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, data)
    return made.getvalue()


def test_archives_give_their_wanted_files() -> None:
    data = tar((member("./a/main.tex"), b"x"), (member("a/fig.png"), b"y"))
    unpacked = archives.unpack(data, name="p", wanted=lambda path: path.endswith(".tex"))
    assert unpacked.files == {"a/main.tex": b"x"}
    assert archives.unpack(zipped({"a/b.tex": b"z"}), name="p").files == {"a/b.tex": b"z"}
    assert archives.unpack(gzip.compress(b"\\documentclass"), name="p.tex").files == {"p.tex": b"\\documentclass"}
    assert archives.unpack(gzip.decompress(data), name="p").files["a/main.tex"] == b"x"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..\\x", "a/.."])
def test_paths_that_lead_out_are_refused(name: str) -> None:
    for data in (tar((member(name), b"x")), zipped({name: b"x"})):
        with pytest.raises(SourceError, match="leads out"):
            archives.unpack(data, name="p")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_left_and_told(kind: bytes) -> None:
    unpacked = archives.unpack(tar((member("x", kind, "/etc/passwd"), b""), (member("y"), b"1")), name="p")
    assert unpacked.files == {"y": b"1"}
    assert unpacked.skipped[0].startswith("x: ")

    def as_link(info: zipfile.ZipInfo) -> None:
        info.external_attr = 0o120777 << 16

    assert archives.unpack(zipped({"x": b"/etc/passwd"}, as_link), name="p").skipped == ["x: a link"]


def test_a_million_members_are_refused_before_they_are_read() -> None:
    header = member("a").tobuf()
    many = gzip.compress(header * 1_000) * 1_000
    empty = zipped({})
    forged = zipped({f"{number}": b"" for number in range(30)})
    started = time.monotonic()
    with pytest.raises(SourceError, match="more than 20,000 files"):
        archives.unpack(many, name="p")
    with pytest.raises(SourceError, match="more than 20,000 files"):
        archives.unpack(b"PK\x03\x04" + empty[:10] + (65_000).to_bytes(2, "little") + empty[12:], name="p")
    with pytest.raises(SourceError, match="more than 1 files"):
        archives.unpack(forged, name="p", limits=archives.Limits(members=1))
    assert time.monotonic() - started < 5


def test_bombs_are_refused() -> None:
    limits = archives.Limits(total_bytes=100_000, file_bytes=60_000)
    zeros = b"\0" * 50_000
    for data in (
        tar(*((member(str(number)), zeros) for number in range(5))),
        zipped({str(number): zeros for number in range(5)}),
    ):
        with pytest.raises(SourceError, match="bomb"):
            archives.unpack(data, name="p", limits=limits)
    with pytest.raises(SourceError, match="unpacks to more"):
        archives.unpack(gzip.compress(b"x" * 10_000_000), name="p", limits=limits)
    assert archives.unpack(zipped({"a": b"x" * 70_000}), name="p", limits=limits).skipped == ["a: over 0 MiB"]
    with pytest.raises(SourceError, match="unpacks to more"):
        decode(gzip.compress(b"x" * 10_000), "gzip", most=100, url="u")


@given(st.binary(max_size=600), st.sampled_from([b"", b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"PK\x05\x06"]))
def test_any_bytes_unpack_or_are_refused(data: bytes, magic: bytes) -> None:
    with contextlib.suppress(SourceError):  # and nothing else
        archives.unpack(magic + data, name="p")


@given(st.binary(max_size=40), st.integers(0, 600))
def test_damaged_archives_unpack_or_are_refused(noise: bytes, at: int) -> None:
    for whole in (tar((member("a"), b"x" * 200)), zipped({"a": b"x" * 200, "b": b"y"})):
        place = at % len(whole)
        with contextlib.suppress(SourceError):  # and nothing else
            archives.unpack(whole[:place] + noise + whole[place + len(noise) :], name="p")
