"""What may be relied upon: hostile layers and users, faults, load, and real programs as witnesses."""
