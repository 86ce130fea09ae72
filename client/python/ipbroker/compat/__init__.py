"""Modules under whose names the programs of others run, with only their import lines changed."""
