"""From what was asked for to an opened union."""
