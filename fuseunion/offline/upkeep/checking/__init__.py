"""Finding what is wrong with an upper, and putting it right."""
