"""Takes one step of an edited program at a tiny size before the edit is called ready, where that can be done."""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from loopgraph_mcp.code import roles, syntax
from loopgraph_mcp.runner import environment as environments
from loopgraph_mcp.runner import tiny_step
from loopgraph_mcp.runner.workspace import Workspace, python_of

LIMIT_S = 10.0  # for both programs together; what takes longer is said to be not possible
_PASSED: dict[str, None] = {}  # hashes of programs that took a step; the unedited one is asked about again and again
_MOST_KEPT = 64


async def smoke(where: Workspace, program: str, edited: str, environment: Mapping[str, str]) -> str:
    """Return `passed`, `failed: …` or `not possible here: …` for an edit of a workspace's program.

    The edited program fails only where the program without the edit takes the step.
    """
    if not where.smoke:
        return "not possible here: loopgraph.toml does not say smoke = true"
    parts = await asyncio.to_thread(_parts, edited)
    if isinstance(parts, str):
        return f"not possible here: {parts}"
    try:
        async with asyncio.timeout(LIMIT_S):
            after = await _step(where, edited, parts, environment)
            if not after:
                return "passed"
            before = "" if program in _PASSED else await _step(where, program, parts, environment)
    except TimeoutError:
        return f"not possible here: it took more than {LIMIT_S:g} s"
    if before:
        return f"not possible here: the program without the edit takes no step by itself: {before}"
    while len(_PASSED) >= _MOST_KEPT:
        del _PASSED[next(iter(_PASSED))]
    _PASSED[program] = None
    return f"failed: {after}"


def _parts(program: str) -> tuple[str, str] | str:
    """Return the names of the model's class and of its configuration's, or why they are not known."""
    try:
        found = roles.of(syntax.read(program))
    except syntax.Unparsable as error:
        return str(error)
    if found.framework != "torch":
        return "the file builds no torch model"
    if found.model is None or found.model.init is None:
        return "the file defines no model that embeds tokens and makes logits"
    required = len(found.model.init.args.args) - len(found.model.init.args.defaults)
    names = [arg.arg for arg in found.model.init.args.args[1:required]]
    config = found.config_class
    if names in (["config"], ["cfg"]):
        return (found.model.name, config) if config else "the file defines no class of the model's configuration"
    if unknown := [name for name in names if name not in tiny_step.SIZES]:
        return f"the size of {unknown[0]} is not known"
    return found.model.name, ""


async def _step(where: Workspace, text: str, parts: tuple[str, str], environment: Mapping[str, str]) -> str:
    """Return what failed when a program took its step, or nothing."""
    with tempfile.TemporaryDirectory(prefix="loopgraph-smoke-") as folder:
        file = Path(folder) / "program.py"
        await asyncio.to_thread(file.write_text, text, encoding="utf-8")
        around = environments.without_secrets(environment)
        beside = [str(where.editable_path.parent), str(where.path)]
        around["PYTHONPATH"] = os.pathsep.join(beside)
        process = await asyncio.create_subprocess_exec(
            python_of(where.path),
            tiny_step.__file__,
            str(file),
            *parts,
            cwd=folder,
            env=around | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                await process.wait()
    last = out.decode("utf-8", "replace").strip().splitlines()[-1:]
    try:
        told = json.loads(last[0]) if last else {}
    except ValueError:
        told = {}
    if not isinstance(told, dict) or not told:
        return f"it ended with code {process.returncode}"
    return str(told.get("error", ""))
