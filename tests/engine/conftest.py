"""What tests of engines share."""

import mishaps
import pytest

from fedkd import registry


@pytest.fixture
def _mishaps(tmp_path, monkeypatch):
    """Objectives and students that go wrong are installed, for processes that begin here too."""
    info = tmp_path / "installed" / "mishaps-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mishaps\nVersion: 1\n")
    (info / "entry_points.txt").write_text(mishaps.entry_points())
    monkeypatch.syspath_prepend(info.parent)
    registry._points.cache_clear()
    yield
    registry._points.cache_clear()
