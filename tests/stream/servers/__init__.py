"""Tests of stream.servers."""
