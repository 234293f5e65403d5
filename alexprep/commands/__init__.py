"""The commands: parse, build, call, print; what they call is imported when they run."""
