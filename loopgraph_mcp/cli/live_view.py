"""The live view of a session: current step, best program so far, tokens, cost, and remaining time."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loopgraph_mcp.agents.plan import Spent
from loopgraph_mcp.agents.session import Status
from loopgraph_mcp.text import plain_line


class Board:
    """Shows statuses as they come: a panel at a terminal, one line for each run elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._last: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, status: Status) -> None:
        """Show a new status."""
        if status.last and status.last != self._last.get(status.session_id):
            self._last[status.session_id] = status.last
            counted = f"{status.done}/{status.wanted}"
            self._console.print(f"{status.session_id} {counted} {escape(plain_line(status.last))}", highlight=False)
        if self._live is not None:
            self._live.update(_panel(status), refresh=True)


def _panel(status: Status) -> Group:
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]researcher[/]", f"{escape(status.researcher)}, memory {status.memory}, {status.session_id}")
    table.add_row("now", escape(plain_line(status.doing) or "…"))
    if status.best is not None:
        table.add_row(escape(status.metric), escape(str(status.best)))
    table.add_row("tokens", tokens_text(status.spent))
    table.add_row("cost", cost_text(status.spent))
    eta = "" if status.eta_s is None else f", about {status.eta_s / 60:.0f} min left"
    table.add_row("experiments", f"{status.done} of {status.wanted}{eta}")
    bar = ProgressBar(total=100, completed=status.percent or 0, width=40) if status.percent is not None else Text("")
    return Group(table, bar)


def tokens_text(spent: Spent) -> str:
    """Return the token counts as a line of text."""
    text = f"{spent.tokens:,}: {spent.prompt_tokens:,} read ({spent.cached_tokens:,} cached)"
    text += f", {spent.completion_tokens:,} written"
    text += f", {spent.wasted_tokens:,} on replies cut off" if spent.wasted_tokens else ""
    return text + (f"; {spent.estimated_turns} of {spent.turns} turns estimated" if spent.estimated_turns else "")


def cost_text(spent: Spent) -> str:
    """Return cost and seconds as a line of text."""
    unknown = f" and {spent.unpriced_turns} turns without a known price" if spent.unpriced_turns else ""
    return f"${spent.usd:.4f}{unknown}, {spent.seconds:.0f} s"
