"""What tests of engines share."""

import mishaps
import pytest

from fedkd import registry


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """With ``--dist loadgroup``, Ray and Flower's runtime are begun in one process of tests."""
    for item in items:
        if item.path.parent.name == "engine" and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group("engines"))


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
