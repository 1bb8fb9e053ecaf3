"""Going over an upper, and over what it shows together with its lowers, without a mount."""
