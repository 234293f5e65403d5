"""The network: its layers as data, its forms, its weights."""
