"""Tests of learners.table."""
