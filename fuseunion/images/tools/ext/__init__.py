"""ext2, ext3 and ext4 images, by the programs of e2fsprogs."""
