"""A Kafka broker for the tests of alert streams, and settings on it."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def broker() -> Any:
    """A broker in memory, from the client's library."""
    from perf.embedding import kafka_broker

    return kafka_broker.Mock()


@pytest.fixture
def setting(broker: Any, request: Any) -> Any:
    """Make settings on the broker, with topics of the test's own."""
    from alert_worker import settings_on

    return settings_on(broker, request.node.name)
