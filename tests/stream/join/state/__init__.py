"""Tests of stream.join.state."""
