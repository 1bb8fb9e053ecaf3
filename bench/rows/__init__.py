"""The rows, by theme; importing this enters all of them in `bench.row.ROWS`, in the order of the table."""

from bench.rows import mounting, reading, changing, io, programs, databases, images, growth, memory  # noqa: F401, I001
