"""The private names of aiokafka that this project leans on."""

from __future__ import annotations

from stream.kafka.aiokafka_internals import missing_names


def test_the_installed_aiokafka_has_every_name() -> None:
    """A version without one would read without bounds, repeat requests or quote passwords, and nobody would be told."""
    assert missing_names() == []
