"""Shards on disk in, batches on a device out."""
