"""Ids and what is expressed in them."""
