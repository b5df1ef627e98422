from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.runner.queue import Priority, Waiting, in_turn

AGENTS = st.sampled_from(["", "a", "b", "c"])


@st.composite
def queues(draw: st.DrawFn) -> list[Waiting]:
    told = draw(st.lists(st.tuples(AGENTS, st.sampled_from("xyz"), st.sampled_from(Priority)), max_size=12))
    return [Waiting(f"exp_{n}", token, token + agent, priority) for n, (token, agent, priority) in enumerate(told)]


@given(queues())
def test_everybody_comes_exactly_once(queue: list[Waiting]) -> None:
    assert sorted(in_turn(queue, {})) == sorted(each.id for each in queue)


@given(queues())
def test_an_agents_own_order_is_its_priorities_then_age(queue: list[Waiting]) -> None:
    place = {id_: n for n, id_ in enumerate(in_turn(queue, {}))}
    ranks = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
    for agent in {each.agent for each in queue}:
        own = [each for each in queue if each.agent == agent]
        wanted = sorted(own, key=lambda each: (ranks[each.priority], queue.index(each)))
        assert sorted(own, key=lambda each: place[each.id]) == wanted


@given(queues())
def test_low_priority_waits_for_everybody(queue: list[Waiting]) -> None:
    order = in_turn(queue, {})
    low = {each.id for each in queue if each.priority is Priority.LOW}
    assert all(id_ in low for id_ in order[len(queue) - len(low) :])


def test_tokens_take_turns_however_much_one_asks_for() -> None:
    busy = [Waiting(f"busy_{n}", "a", f"a{n}") for n in range(5)]
    queue = [*busy, Waiting("late", "b", "b1"), Waiting("later", "b", "b2")]
    assert in_turn(queue, {}) == ["busy_0", "late", "busy_1", "later", "busy_2", "busy_3", "busy_4"]


def test_who_was_served_last_waits() -> None:
    served = {Waiting("old", "a", "a1"): 10.0, Waiting("older", "b", "b1"): 5.0}
    assert in_turn([Waiting("x", "a", "a1"), Waiting("y", "b", "b1"), Waiting("z", "c", "c1")], served)[:2] == [
        "z",
        "y",
    ]


def test_without_tokens_sessions_take_turns() -> None:
    queue = [Waiting("one", "", "s1"), Waiting("two", "", "s1"), Waiting("three", "", "s2")]
    assert in_turn(queue, {}) == ["one", "three", "two"]
