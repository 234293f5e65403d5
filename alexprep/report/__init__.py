"""The page about a run or a data set."""
