"""Tests of stream.worker."""
