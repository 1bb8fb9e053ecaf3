"""The ways to show a union: each engine takes prepared layers and makes them appear at the merged directory."""
