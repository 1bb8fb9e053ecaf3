"""Commands that look after an upper: check, flatten, convert, vacuum, snapshots."""
