"""A plan into a program, and a program into values: others use all of these modules.

`compile`, `program` and `sources` need no torch; `run` and `load` do.
"""
