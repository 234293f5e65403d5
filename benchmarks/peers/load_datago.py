# pyright: basic, reportMissingImports=false
"""datago's client on a folder of JPEG files: Rust decodes in its own threads, torch crops here."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from batches import BATCH, cropped, data, serve
from datago import DatagoClient
from photographs import files, labels

PATHS, LABELS = files(data()), labels(data())


def epoch() -> Iterator:
    """All files in an order of its own."""
    source = {"root_path": str(data()), "random_sampling": True}
    config = {"source_type": "file", "source_config": source, "limit": len(PATHS)}
    client = DatagoClient(json.dumps(config | {"samples_buffer_size": 2 * BATCH}))
    client.start()
    try:
        for _ in range(len(PATHS) // BATCH):
            images, numbers = [], []
            for _ in range(BATCH):
                sample = client.get_sample()
                pixels = torch.tensor(sample.image.to_numpy_array()).permute(2, 0, 1)
                images.append(cropped(pixels))
                numbers.append(LABELS[Path(sample.id.strip('"')).parent.name])
            yield torch.stack(images), torch.tensor(numbers)
    finally:
        client.stop()


if __name__ == "__main__":
    serve(epoch)
