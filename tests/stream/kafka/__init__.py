"""Tests of stream.kafka."""
