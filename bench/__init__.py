"""Measures both promises: the daemon costs next to nothing, the server answers like a file server.

`make bench` measures everything and writes results.md; `python -m bench daemon|server|growth` prints one part.
Every figure stands beside that of a yardstick measured in the same run, in turns with it: machines differ, and one
machine differs from minute to minute, but the ratio stays.
"""
