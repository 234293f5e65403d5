"""The data set on disk: made, measured, checked, looked into and exported."""
