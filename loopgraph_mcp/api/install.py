"""Installs packs from elsewhere: pinned by hash, one content to a version, no method taken from another pack."""

import asyncio
from contextlib import ExitStack
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from loopgraph_mcp.api.answers import IngestAnswer
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import PackError
from loopgraph_mcp.ingest import pack_archives
from loopgraph_mcp.ingest.pack_archives import Checked
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.store import methods
from loopgraph_mcp.store.database import Database


async def install_archive(
    db: Database, settings: Settings, source: str, data: bytes, *, sha256: str | None, now: float
) -> IngestAnswer:
    """Install the pack that an archive holds.

    Raises:
        PackError: It holds none, or one that is refused.
        SourceError: The archive is damaged, over a limit, or holds a path that leads out of it.
    """
    opened = pack_archives.opened(data, name=PurePosixPath(urlsplit(source).path).name or "pack")
    with ExitStack() as stack:
        checked = await asyncio.to_thread(stack.enter_context, opened)
        return await install_pack(db, settings, source, checked, sha256=sha256, now=now)


async def install_pack(
    db: Database, settings: Settings, source: str, checked: Checked, *, sha256: str | None, now: float
) -> IngestAnswer:
    """Install a pack and bring the store's methods up to it.

    Args:
        db: The store.
        settings: Where packs are kept, and which one is loaded at every start.
        source: What the caller named.
        checked: The pack.
        sha256: What its content must hash to, if that is pinned.
        now: The time, in epoch seconds.

    Raises:
        PackError: It is not what was pinned, has changed without a new version, or holds another pack's method.
    """
    pack = checked.pack
    pack_archives.check_pin(pack, sha256)
    if pack.name == (await asyncio.to_thread(read_pack, settings.packs)).name:
        raise PackError(f"pack {pack.name}: loaded at every start from {settings.packs}; rename yours")
    held = await methods.held_pack(db, pack.name)
    if held is not None and held[0] == pack.version and held[1] != pack.content_hash:
        raise PackError(
            f"pack {pack.name} {pack.version} is installed with another content (sha256 {held[1]}); "
            "an update needs a new version"
        )
    if taken := await methods.owned_by_others(db, pack):
        raise PackError(f"pack {pack.name}: its method {taken[0][0]!r} belongs to pack {taken[0][1]}; rename it")
    folder = await asyncio.to_thread(pack_archives.install, checked, settings.packs_dir)
    changed = await methods.import_pack(db, pack, now=now)
    return IngestAnswer(
        source=source,
        kind="pack",
        id=pack.name,
        version=pack.version,
        title=pack.name,
        sha256=pack.content_hash,
        fetched_from=str(folder),
        documents=0,
        added=len(pack.methods) if changed else 0,
        known=0 if changed else len(pack.methods),
        methods=[each.id for each in pack.methods],
        next_step="search_methods finds its methods.",
    )
