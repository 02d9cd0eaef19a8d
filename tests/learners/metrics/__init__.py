"""Tests of learners.metrics."""
