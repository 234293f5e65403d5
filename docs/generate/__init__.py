"""Tables of docs/reference from the code. `make docs` runs cog, which calls these functions."""
