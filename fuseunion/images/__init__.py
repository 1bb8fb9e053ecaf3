"""Files that hold a tree: squashfs and ext images, SIF, tar archives."""
