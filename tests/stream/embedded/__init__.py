"""Tests of stream.embedded."""
