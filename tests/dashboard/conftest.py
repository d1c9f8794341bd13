from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st

from farm.services.recommend import Recommendation, recommendations
from farm.store.database import open_database, reading
from tests.dashboard.seed import seeded


@pytest.fixture(scope="session")
def farm_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return seeded(tmp_path_factory.mktemp("farm") / "farm.db")


@pytest.fixture(scope="session")
def advice(farm_url: str) -> list[Recommendation]:
    with reading(open_database(farm_url)) as session:
        return recommendations(session)


@pytest.fixture(autouse=True)
def _fresh_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FARM_DATABASE_URL", raising=False)
    yield
    st.cache_data.clear()
    st.cache_resource.clear()
