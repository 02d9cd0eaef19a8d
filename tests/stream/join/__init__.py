"""Tests of stream.join."""
