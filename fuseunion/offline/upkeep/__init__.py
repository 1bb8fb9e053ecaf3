"""Looking after an upper that is not mounted: what is wrong with it, another form of it, points in time of it."""
