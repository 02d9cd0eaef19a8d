"""Tests of stream.sessions."""
