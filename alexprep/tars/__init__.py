"""Tars, read and written so that the same members are the same bytes."""
