"""Prefect's server on PostgreSQL, as a team uses it, from `align up` to a finished run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from served import align_up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_run_on_postgresql(tmp_path_factory: pytest.TempPathFactory, postgres: str, write: Callable[..., Path]) -> None:
    folder, home = tmp_path_factory.mktemp("workers"), tmp_path_factory.mktemp("prefect-home")
    url = postgres.replace("postgresql://", "postgresql+asyncpg://")
    with align_up(folder, home, PREFECT_API_DATABASE_CONNECTION_URL=url) as served:
        deployment = served.deploy(write())
        run = served.start(deployment)
        assert served.ended(run)["type"] == "COMPLETED", served.state_and_log(run)
        assert any("AutoPeftModelForCausalLM" in report for report in served.reports(run))
        again = served.start(deployment)
        assert served.ended(again)["name"] == "Nothing new", served.state_and_log(again)
        assert "dropping" not in (home / "align" / "server.log").read_text(), "PostgreSQL refused an event"
    assert list(home.rglob("*.db")) == [], "nothing may be written to SQLite"
