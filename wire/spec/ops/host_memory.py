"""Managed, mapped and registered host memory: codes 170 to 189."""
