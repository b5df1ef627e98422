"""Tells where a URL leads, which addresses are the internet's, and what may be sent there."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from loopgraph_mcp.errors import SourceError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """Return a name's addresses."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


def origin(url: str) -> str:
    """Return a URL's scheme, host and port."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError as error:
        raise SourceError(f"{url[:200]!r}: no URL ({error})") from error
    return f"{parts.scheme}://{parts.hostname}:{port}"


def headers_for(url: str, first: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that a URL may be sent: Authorization only where it has the first one's origin."""
    away = origin(url) != first
    return {name: value for name, value in headers.items() if not (away and name.lower() == "authorization")}


def is_public(text: str) -> bool:
    """Return whether an address is one of the internet's, also where IPv6 wraps an IPv4 one."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(str(inside))
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast
