"""Tests of both programs and their parts, and what the tests run against."""
