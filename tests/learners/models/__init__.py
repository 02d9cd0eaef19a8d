"""Tests of learners.models."""
