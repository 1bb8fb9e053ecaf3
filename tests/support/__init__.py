"""What the tests share: actors, arenas, layers, mounts, snapshots of trees, and the checks that nothing leaks.

One file per concept. A test asks for the `arena` fixture (tests/conftest.py), builds layers in it, mounts them
through the command line of the product, and looks at the mount as an ordinary program would.
"""
