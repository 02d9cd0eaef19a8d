"""Tests of learners.features."""
