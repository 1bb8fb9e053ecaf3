"""The ways to show a union: each engine takes prepared layers and makes them appear at the merged directory.

engine.py     what each can be asked (live.py, finding.py: what it answers)
registry.py   which there are
choose.py     which one is taken
"""
