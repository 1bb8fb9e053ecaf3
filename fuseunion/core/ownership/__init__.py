"""Owners, modes and device numbers that the filesystem cannot or must not hold, kept beside the files.

An ordinary user owns every new file, and can make no device. With stored ownership the real object is a plain file or
directory of the user's own, and what it stands for lies in an extended attribute (`xattr_store`) or, where the
filesystem has none, in a database in the work area (`database_store`). `store_choice` finds out which of them a layer
uses.

Three rules hold for every store:

* What is stored is in *disk* ids: the id map still applies to what a store answers.
* A real object stands for devices, fifos and sockets as an empty regular file (`backing_mode`), because extended
  attributes exist only on files and directories (fs/xattr.c xattr_permission). Symbolic links stay links.
* The real permissions never grant more than the stored ones, except to the owner, who is the daemon's user.
"""
