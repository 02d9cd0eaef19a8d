"""Tests of stream/clicks."""
