"""Writes records and judgement into the state file, and restores them from it at the start."""
