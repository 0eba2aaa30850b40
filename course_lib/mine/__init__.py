"""The learner's parts: one file for each exercise that passed, and an index. Written by `make check-day N`."""
