import asyncio

import pytest

from loopgraph_mcp.together import Together


async def test_all_who_wait_share_what_is_worked_out_after_they_asked() -> None:
    together, made, go = Together[int](), 0, asyncio.Event()

    async def make() -> int:
        nonlocal made
        made += 1
        mine = made
        await go.wait()
        return mine

    first = asyncio.ensure_future(together.get("k", make))
    await asyncio.sleep(0)  # it is being worked out: who asks now is told what holds from now on
    later = [asyncio.ensure_future(together.get("k", make)) for _ in range(9)]
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(first, *later) == [1] + [2] * 9
    assert await together.get("k", make) == 3


async def test_one_who_fails_or_gives_up_takes_nobody_along() -> None:
    together, calls = Together[str](), 0

    async def make() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.sleep(60)
        if calls == 2:
            raise ValueError
        return "made"

    asked = [asyncio.ensure_future(together.get("k", make)) for _ in range(4)]
    await asyncio.sleep(0)
    asked[0].cancel()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(told[0], asyncio.CancelledError)
    assert isinstance(told[1], ValueError)
    assert told[2:] == ["made", "made"]
    assert calls == 3


@pytest.mark.parametrize("keys", [("a", "b"), (None, "a")])
async def test_other_keys_are_other_things(keys: tuple[str | None, str]) -> None:
    together = Together[str | None]()

    async def make(key: str | None) -> str | None:
        return key

    told = await asyncio.gather(*(together.get(key, lambda key=key: make(key)) for key in keys))
    assert tuple(told) == keys
