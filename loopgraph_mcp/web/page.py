"""The page: what a search did and does, for a browser on this machine or one with a token. It only reads."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from loopgraph_mcp.api import overview as overviews
from loopgraph_mcp.api.closeup import Closeup
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.api.overview import Line, Overview
from loopgraph_mcp.errors import ConfigError, NotFoundError
from loopgraph_mcp.models import RunState
from loopgraph_mcp.store import nights
from loopgraph_mcp.text import plain_line, visible
from loopgraph_mcp.web import charts, curve, drawing, lineage, themes, words
from loopgraph_mcp.web.door import SECRET, Door
from loopgraph_mcp.web.filling import Templates

_HERE = Path(__file__).parent
_STATIC = _HERE / "static"
_FIRST_ROWS = 25  # in the page itself; the script fetches the others
_LOOK_S = 1.0
_PING_S = 15
_WIDTHS = (280, 1_600)
_FOREVER = "public, max-age=31536000, immutable"  # its address changes with its content
_OPEN_PATHS = ("/enter", "/static/")
_FAR_PATHS = ("/changes", "/now", "/events", "/leave", "/link", "/charts/", "/sections/", "/experiments/")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": CSP,
    "referrer-policy": "same-origin",  # without any, a browser's own form comes from the origin "null"
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
Admits = Callable[[str], Awaitable[bool]]


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


@dataclass(slots=True)
class Page:
    """The page of one memory.

    Args:
        graph: The memory.
        door: Whom it lets in.
        admits: Whether a token may come in; None where there are none.
    """

    graph: LoopGraph
    door: Door
    admits: Admits | None = None
    epoch: str = field(default_factory=lambda: secrets.token_hex(4))  # versions are of one process
    _templates: Templates = field(default_factory=Templates)
    _static: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._static = {name: f"/static/{name}?{_hash(_STATIC / name)}" for name in ("page.css", "page.js")}

    @property
    def open_paths(self) -> tuple[str, ...]:
        """How the paths begin that are for everybody: those that lead in, and nobody's data."""
        return _OPEN_PATHS

    def answers(self, path: str) -> bool:
        """Return whether a path is the page's."""
        return path == "/" or path.startswith((*_OPEN_PATHS, *_FAR_PATHS))

    def visitor(self, request: Request) -> str | None:
        """Return the secret of a request's cookie; None if it is refused."""
        return self.door.secret(request.cookies.get(self.door.cookie))

    def routes(self) -> list[Route]:
        """Return what it answers to."""
        return [
            Route("/", self._index),
            Route("/enter", self._enter, methods=["GET", "POST"]),
            Route("/leave", self._leave, methods=["POST"]),
            Route("/link", self._link, methods=["POST"]),
            Route("/changes", self._changes),
            Route("/now", self._now),
            Route("/events", self._events),
            Route("/charts/{name}", self._chart),
            Route("/sections/{name}", self._section),
            Route("/experiments/{experiment_id}", self._experiment),
            Route("/static/{name}", self._static_file),
        ]

    async def warm(self) -> None:
        """Read what the first visitor would wait for, and make what draws charts in a browser."""
        with suppress(NotFoundError):
            await self.graph.overview()
        await asyncio.to_thread(drawing.browser_code, self.graph.settings.home / "web")

    # --------------------------------------------------------------------------------------------- coming in

    def sign_in(self, wrong: str = "", status: int = 401) -> Response:
        """Return the page that asks for a token."""
        return self._html("enter.html", status=status, wrong=wrong, by_token=self.admits is not None)

    async def _enter(self, request: Request) -> Response:
        """Change a link, or a token, for a cookie."""
        if request.method == "GET":
            key = request.query_params.get("key", "")
            cookie = self.door.use_link(key) if key else None
            if cookie is None:
                return self.sign_in("This link was used before, or is older than ten minutes." if key else "", 403)
        else:
            async with request.form(max_files=0, max_fields=1) as form:
                secret = str(form.get("token", "")).strip()
            if self.admits is None or not secret or not await self.admits(secret):
                return self.sign_in("This token is unknown, expired or revoked.", 403)
            cookie = self.door.visit(secret)
        answer = RedirectResponse("/", 303, headers=_HEADERS)
        answer.set_cookie(
            self.door.cookie, cookie, httponly=True, samesite="lax", secure=self.door.secure, max_age=7 * 86_400
        )
        return answer

    async def _link(self, request: Request) -> Response:
        """Make a link that lets a browser in once, for whoever comes with a token."""
        if "authorization" not in request.headers:
            return JSONResponse({"error": "send a token: Authorization: Bearer …"}, 401, _HEADERS)
        return _json({"path": f"/enter?key={self.door.make_link(request.scope.get(SECRET, ''))}"})

    async def _leave(self, request: Request) -> Response:
        self.door.leave(request.cookies.get(self.door.cookie))
        answer = RedirectResponse("/enter", 303, headers=_HEADERS)
        answer.delete_cookie(self.door.cookie)
        return answer

    # ------------------------------------------------------------------------------------------------ the page

    async def _index(self, request: Request) -> Response:
        try:
            seen = await self._seen(request)
        except NotFoundError:
            return self._html("empty.html")
        known = await self.graph.workspaces()
        rows = [_row(seen, line) for line in reversed(seen.lines[-_FIRST_ROWS:])]
        query = {"w": seen.workspace.id, "c": seen.setting.id}
        return self._html(
            "page.html",
            seen=seen,
            workspaces=known,
            rows=rows,
            query=urlencode(query),
            version=f"{self.epoch}.{seen.version}",
            families=sorted({seen.family(line) for line in seen.lines}),
            by_token=self.admits is not None,
            vega=drawing.version(),
            **await self._summary(seen),
        )

    async def _changes(self, request: Request) -> Response:
        """Return what changed since a version: rows, and the new summary."""
        seen = await self._seen(request)
        epoch, _, number = request.query_params.get("since", "").partition(".")
        after = int(number) if epoch == self.epoch and number.isdigit() else 0
        rows = [_row(seen, line) for line in seen.lines if seen.changed.get(line.experiment_id, 0) > after]
        summary = await self._summary(seen)
        body = {
            "version": f"{self.epoch}.{seen.version}",
            "total": len(seen.lines),
            "rows": rows,
            "summary": self._render("summary.html", seen=seen, **summary),
            "best": None if seen.best is None else seen.best.experiment_id,
        }
        return _json(body)

    async def _summary(self, seen: Overview) -> dict[str, Any]:
        """Return what the head of the page shows."""
        live = [line for line in seen.lines if line.state is not RunState.DONE]
        again = overviews.spared(seen, await nights.asked_again(self.graph.db, seen.workspace.id))
        return {
            "headline": words.headline(seen),
            "live": [await self._live(line) for line in live],
            "per_hour": overviews.per_hour(seen),
            "spared": again,
        }

    async def _live(self, line: Line) -> dict[str, Any]:
        answer = await self.graph.get_experiment(line.experiment_id, wait_s=0)
        return {"line": line, "answer": answer, "phase": words.phase(answer)}

    async def _now(self, request: Request) -> Response:
        """Return how far each live experiment is."""
        seen = await self._seen(request)
        live = [await self._live(line) for line in seen.lines if line.state is not RunState.DONE]
        return _json(
            [
                {
                    "id": each["line"].experiment_id,
                    "phase": each["phase"],
                    "percent": each["answer"].percent,
                    "left": words.duration(each["answer"].eta_s),
                    "loss": None if each["answer"].loss is None else f"{each['answer'].loss:.4f}",
                }
                for each in live
            ]
        )

    async def _events(self, request: Request) -> Response:
        """Say when something changed, for as long as somebody listens."""
        await self._seen(request)

        async def changes() -> AsyncIterator[ServerSentEvent]:
            seen = request.query_params.get("since", "")
            while True:
                with suppress(NotFoundError):
                    now = f"{self.epoch}.{(await self._seen(request)).version}"
                    if now != seen:
                        seen = now
                        yield ServerSentEvent(event="changed", data=now)
                await asyncio.sleep(_LOOK_S)

        return EventSourceResponse(changes(), ping=_PING_S, headers={"cache-control": "no-store"})

    async def _chart(self, request: Request) -> Response:
        name, asked = request.path_params["name"], request.query_params
        theme = themes.THEMES.get(asked.get("theme", ""), themes.LIGHT)
        width = min(max(int(asked["width"]), _WIDTHS[0]), _WIDTHS[1]) if asked.get("width", "").isdigit() else 640
        if name == "loss":
            seen = await self.graph.loss(asked.get("id", ""))
            height = 170 if width > 700 else 220  # a wide one leaves the curve of the search in sight
            return _json(charts.loss(seen, theme=theme, width=width, height=height) if seen.own else None)
        spec = await self._chart_of(name, await self._seen(request), asked, theme, width)
        return _json(spec)

    async def _chart_of(
        self, name: str, seen: Overview, asked: Mapping[str, str], theme: themes.Theme, width: int
    ) -> themes.Spec | None:
        noise = None if seen.noise is None else seen.noise.sd
        match name:
            case "progress":
                across: curve.Across = next((each for each in curve.ACROSS if each == asked.get("x")), "run")
                height = 380 if width > 600 else 300
                return curve.progress(seen, across=across, theme=theme, width=width, height=height)
            case "families":
                records = overviews.records_by_family(seen)
                metric = seen.setting.context.metric
                return charts.families(records, metric, noise=noise, theme=theme, width=width) if records else None
            case "calibration":
                predicted = await nights.predicted(self.graph.db, seen.workspace.id)
                return charts.calibration(overviews.predictions(seen, predicted), theme=theme, width=width)
            case "cost":
                return charts.cost(seen, theme=theme, width=width)
        raise NotFoundError(f"no chart {name[:40]!r}")

    async def _section(self, request: Request) -> Response:
        seen = await self._seen(request)
        match request.path_params["name"]:
            case "made-of":
                return self._html(
                    "made_of.html", seen=seen, steps=overviews.steps_to_best(seen), doubtful=overviews.doubtful(seen)
                )
            case "methods":
                return self._html("methods.html", seen=seen, records=overviews.records_by_method(seen))
            case "lineage":
                return self._html("lineage.html", seen=seen, roots=lineage.tree(seen))
            case "spared":
                again = await nights.asked_again(self.graph.db, seen.workspace.id)
                return self._html("spared.html", spared=overviews.spared(seen, again))
        raise NotFoundError("no such section")

    async def _experiment(self, request: Request) -> Response:
        found = await self.graph.closeup(request.path_params["experiment_id"])
        return self._html("experiment.html", **_closeup(found))

    async def _static_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name == "vega.js":
            file = await asyncio.to_thread(drawing.browser_code, self.graph.settings.home / "web")
        elif name in self._static:
            file = _STATIC / name
        else:
            raise NotFoundError("no such file")
        return FileResponse(file, headers={**_HEADERS, "cache-control": _FOREVER})

    # ---------------------------------------------------------------------------------------------- answering

    async def failed(self, _: Request, error: Exception) -> Response:
        """Answer with what one of our own errors says."""
        status = 404 if isinstance(error, NotFoundError) else 503 if isinstance(error, ConfigError) else 400
        return JSONResponse({"error": visible(str(error))}, status, _HEADERS)

    async def _seen(self, request: Request) -> Overview:
        asked = request.query_params
        return await self.graph.overview(asked.get("w") or None, asked.get("c") or None)

    def _render(self, template: str, **values: Any) -> str:
        return self._templates.fill(template, **values)

    def _html(self, template: str, *, status: int = 200, **values: Any) -> Response:
        page = self._render(template, static=self._static, **values)
        return HTMLResponse(page, status, _HEADERS)


def _json(body: Any) -> Response:
    return JSONResponse(body, headers=_HEADERS)


def _row(seen: Overview, line: Line) -> dict[str, Any]:
    """Return an experiment as a row of the table: numbers to sort by, and text to show."""
    noise = line.noise.sd if line.noise is not None else None if seen.noise is None else seen.noise.sd
    return {
        "id": line.experiment_id,
        "n": line.number,
        "tried": plain_line(line.description),
        "seed": line.seed,
        "metric": line.metric_value,
        "value": words.value(line.metric_value, noise),
        "gain": line.gain,
        "gained": words.gain(line.gain, noise),
        "p": line.p_win,
        "sure": words.percent(line.p_win),
        "mark": line.mark.name.lower(),
        "said": words.mark(line),
        "origin": "" if line.origin is None or line.origin.value == "measured" else line.origin.value,
        "family": seen.family(line),
        "seconds": line.seconds,
        "took": words.duration(line.seconds),
        "at": line.created_at,
        "when": words.moment(line.created_at),
        "best": seen.best is not None and line.experiment_id == seen.best.experiment_id,
        "other": line.context_id != seen.setting.id,
    }


def _closeup(found: Closeup) -> dict[str, Any]:
    """Return what the page of one experiment shows."""
    noise = found.answer.noise_floor
    took = (
        found.finished_at - found.started_at if found.finished_at is not None and found.started_at is not None else None
    )
    return {
        "found": found,
        "answer": found.answer,
        "noise": noise,
        "took": took,
        "chain": lineage.chain(found),
        "diffs": [
            (title, visible(diff).split("\n"))
            for title, diff in (("parent", found.diff), ("baseline", found.diff_from_baseline))
            if diff
        ],
    }
