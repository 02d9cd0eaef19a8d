"""Tests of stream.learn."""
