"""Trust: what hostile layers, races and faults must not bring about (issue 9).

Each test here did what it describes before it was mended.
"""
