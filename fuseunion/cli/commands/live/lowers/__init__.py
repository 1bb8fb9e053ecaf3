"""Telling a mount that its lowers are others."""
