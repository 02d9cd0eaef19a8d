"""Tests of learners.nn."""
