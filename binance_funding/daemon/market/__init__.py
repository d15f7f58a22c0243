"""Judges the market by the records: the newest records, their ages, and the last 24 hours."""
