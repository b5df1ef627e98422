"""The best program that was run here: told where the file holds another one, and made an edit of the file."""

from statistics import fmean

from loopgraph_mcp.answers import BestProgram
from loopgraph_mcp.duplicates import program_hash
from loopgraph_mcp.evidence import Memory
from loopgraph_mcp.lookups import the_experiment
from loopgraph_mcp.models import Applied, Decision, EditResult, Present, Refused
from loopgraph_mcp.store import edits, experiments
from loopgraph_mcp.store.database import Database

PREFIX = "exp_"


class Bests:
    """Tells the best program that was run here; the store is read for it once, until something is decided."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: tuple[object, BestProgram | None] = (None, None)

    async def elsewhere(self, memory: Memory, program: str | None, *, decided: object) -> BestProgram | None:
        """Return the best program that was run here, unless the file holds it, or somebody discarded it.

        Args:
            memory: What is known, seen from here.
            program: The file.
            decided: What changes with each outcome and decision.
        """
        best = memory.best_program()
        if program is None or memory.here is None or best is None or best[1] == program_hash(program):
            return None
        if self._known[0] != (best, decided):
            self._known = (best, decided), await self._read(*best, memory.here.metric)
        return self._known[1]

    async def _read(self, context_id: str, tree: str, metric: str) -> BestProgram | None:
        runs = await experiments.runs_of_program(self._db, context_id, tree)
        values = [run.outcome.metric_value for run in runs if run.outcome and run.outcome.metric_value is not None]
        if not values or runs[-1].decision is Decision.DISCARD:
            return None
        return BestProgram(runs[-1].id, metric, fmean(values), len(values), runs[-1].description)


async def as_it_ran(db: Database, experiment_id: str, program: str) -> EditResult:
    """Return a file as the program that an experiment ran.

    Raises:
        NotFoundError: There is no such experiment.
    """
    row = await the_experiment(db, experiment_id)
    if row.program_hash is None:
        return Refused(f"the program of {experiment_id}", "its history tells of it, and holds no program")
    text = await edits.program_text(db, row.program_hash)
    if text == program:
        return Present(f"the file is the program of {experiment_id}")
    return Applied(text, (f"the file as {experiment_id} ran it ({row.description})",))
