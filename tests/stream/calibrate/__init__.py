"""Tests of stream.calibrate."""
