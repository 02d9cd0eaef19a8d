"""Tests of learners.protocol."""
