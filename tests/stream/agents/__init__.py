"""Tests of stream.agents."""
