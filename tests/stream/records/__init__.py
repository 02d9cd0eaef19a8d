"""Tests of stream.records."""
