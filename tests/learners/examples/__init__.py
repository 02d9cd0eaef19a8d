"""Tests of learners.examples."""
