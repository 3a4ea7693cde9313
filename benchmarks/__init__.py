"""Measurements behind the documents; each prints the machine, the versions and its own command."""
