"""What all tests share: hypothesis tries the same examples on every run, so that a red build can be repeated."""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=100, database=None)
settings.load_profile("repeatable")
