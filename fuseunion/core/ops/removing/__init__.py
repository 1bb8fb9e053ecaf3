"""Names that go."""
