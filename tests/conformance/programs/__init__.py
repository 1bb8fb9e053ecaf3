"""Programs one trusts with data, which `make test` cannot count on: in a mount and in a plain directory."""
