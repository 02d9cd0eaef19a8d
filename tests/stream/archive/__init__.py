"""Tests of stream.archive."""
