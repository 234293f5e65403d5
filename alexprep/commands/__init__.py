"""The commands: parse, call, print. Heavy imports happen when a command runs."""
