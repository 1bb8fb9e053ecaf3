"""For tests: the pytest plugin, which pytest finds by its entry point (docs/pytest.md)."""
