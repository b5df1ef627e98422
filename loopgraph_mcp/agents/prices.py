"""Prices of tokens: the list prices of genai-prices, and the user's own table, which overrides them."""

import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loopgraph_mcp.agents.messages import Usage
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.runner import schemas


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
    table = {} if own is None else _read(own)
    bare = model.rpartition("/")[2]
    return table.get(model) or table.get(bare) or _listed(bare)


def _listed(model: str) -> Price | None:
    """Return a model's list price, without what long prompts or batches cost."""
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - a table of a megabyte, asked for once

    try:
        _, found = get_snapshot().find_provider_model(model, None, None, None)
    except LookupError:
        return None
    listed = found.get_prices(datetime.now(UTC))
    prices = {"prompt": "input", "completion": "output", "cached": "cache_read", "written": "cache_write"}
    told = {ours: getattr(listed, f"{theirs}_mtok") for ours, theirs in prices.items()}
    if told["prompt"] is None or told["completion"] is None:
        return None
    return Price.model_validate({name: getattr(each, "base", each) for name, each in told.items()})


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
