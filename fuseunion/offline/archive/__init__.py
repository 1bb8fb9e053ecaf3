"""Layers as archives: what containers call a layer, made of an upper and turned back into one."""
