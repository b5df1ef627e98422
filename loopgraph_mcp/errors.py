"""The error tree: every error LoopGraph raises on purpose, with what failed and the next step.

    LoopGraphError
    ├── ConfigError        settings or loopgraph.toml say something that cannot be
    ├── WorkspaceError     the user's folder is not one we can work on, or changed under us
    ├── PackError          a method pack does not follow the format
    ├── HistoryError       a file holds no experiments that can be read
    ├── SourceError        a paper, repository or document cannot be fetched, unpacked or read
    ├── NotFoundError      an id names no method, edit, retrieval or experiment
    ├── StoreError         the database cannot be opened, or is newer than this version
    │   └── UnwritableError    it can be read and not be written now: a full disk, a read-only file, another writer
    ├── AccessError        a caller may not do this, or not so often
    ├── RunError           an experiment cannot be started
    └── ProviderError      a model's provider cannot be reached, refuses us, or does not keep to its protocol

Expected results (no hit, a crashed run, an edit that does not fit) are values, not errors.
"""

from loopgraph_mcp.models import NextStep


class LoopGraphError(Exception):
    """The root: catching it catches everything LoopGraph raises on purpose.

    Where another verb is the way on, `next_step` names it, and a renderer words it behind the message.
    """

    def __init__(self, message: str = "", *, next_step: NextStep | None = None) -> None:
        super().__init__(message)
        self.next_step = next_step


class ConfigError(LoopGraphError):
    """Settings, the environment or loopgraph.toml say something that cannot be."""


class WorkspaceError(LoopGraphError):
    """A workspace is missing, unreadable, or changed under us."""


class PackError(LoopGraphError):
    """A method pack does not follow the format."""


class HistoryError(LoopGraphError):
    """A file holds no experiments that can be read."""


class SourceError(LoopGraphError):
    """A paper, repository or document cannot be fetched, unpacked or read."""


class NotFoundError(LoopGraphError):
    """An id names no row."""


class StoreError(LoopGraphError):
    """The database cannot be opened or is newer than this version."""


class UnwritableError(StoreError):
    """The database cannot be written now: its disk is full, it is read-only, or another process writes for long."""


class AccessError(LoopGraphError):
    """A caller may not do this, or not so often."""


class RunError(LoopGraphError):
    """An experiment cannot be started."""


class ProviderError(LoopGraphError):
    """A model's provider cannot be reached, refuses us, or does not keep to its protocol."""


def first_of(error: BaseException) -> LoopGraphError | None:
    """Return the error of ours that an exception is or, where task groups wrapped it, holds."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := first_of(each)) is not None), None)
    return error if isinstance(error, LoopGraphError) else None
