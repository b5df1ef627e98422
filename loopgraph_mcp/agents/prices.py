"""Prices of tokens: a bundled table, and the user's own, which overrides it."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loopgraph_mcp.agents.messages import Usage
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.runner import schemas

_SHIPPED = Path(__file__).with_name("prices.toml")
_DATED = re.compile(r"[-@:](?:20\d{2}-?\d{2}-?\d{2}|latest|free)$")  # gpt-4o-mini-2024-07-18, claude-...-latest


class Price(BaseModel):
    """US dollars for a million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)
    cached: float | None = Field(default=None, ge=0)
    written: float | None = Field(default=None, ge=0)

    def cost_usd(self, usage: Usage) -> float:
        """Return what a reply cost; a price reported by the provider overrides the table."""
        if usage.cost_usd is not None:
            return usage.cost_usd
        cached = self.prompt if self.cached is None else self.cached
        written = self.prompt if self.written is None else self.written
        fresh = usage.prompt - usage.cached - usage.written
        spent = fresh * self.prompt + usage.cached * cached + usage.written * written
        return (spent + usage.completion * self.completion) / 1e6


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: dict[str, Price]
    as_of: str = ""


def find_price(model: str, own: Path | None = None) -> Price | None:
    """Return a model's price, or None where none is known.

    Raises:
        ConfigError: The user's table cannot be read.
    """
    bare = _DATED.sub("", model.rpartition("/")[2])
    for path in (own, _SHIPPED):
        table = {} if path is None else _read(path)
        if (price := table.get(model) or table.get(bare)) is not None:
            return price
    return None


def _read(path: Path) -> Mapping[str, Price]:
    try:
        return _Table.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).models
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        wrong: object = error
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            wrong = f"{'.'.join(map(str, first['loc']))} is {schemas.shown(first['input'])}"
        raise ConfigError(
            f"{path}: {wrong}; a price table is TOML: [models] and lines such as "
            '"my-model" = { prompt = 0.5, completion = 1.5 }'
        ) from error
