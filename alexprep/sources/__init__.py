"""Where images come from: archives, folders and parquet files, as one list of samples."""
