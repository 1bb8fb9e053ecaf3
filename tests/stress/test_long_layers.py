"""flatten, convert and vacuum over many random uppers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.layers import test_flatten, test_vacuum
from tests.layers.uppers import OPERATIONS

pytestmark = [pytest.mark.stress, pytest.mark.root]

_LONG = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("form", test_flatten.FORMS)
@_LONG
@given(operations=OPERATIONS)
def test_a_form_changes_nothing(scratch: Path, form: str, operations: Sequence[tuple[object, ...]]) -> None:
    test_flatten.show_the_same(scratch, form, operations)


@_LONG
@given(operations=OPERATIONS)
def test_vacuum_changes_nothing(scratch: Path, operations: Sequence[tuple[object, ...]]) -> None:
    test_vacuum.show_the_same(scratch, operations)
