# pyright: basic, reportAttributeAccessIssue=false
"""webdataset's own loader as its documentation builds it, with two processes, on our shards."""

from batches import BATCH, THREADS, augmented, data, rounds_of, serve
from webdataset import WebDataset, WebLoader

if __name__ == "__main__":
    tars = sorted(str(path) for path in (data() / "train").glob("*.tar"))
    samples = WebDataset(tars, resampled=True, shardshuffle=False).shuffle(1000)
    batches = samples.to_tuple("jpg", "cls").map_tuple(augmented, int).batched(BATCH)
    serve(rounds_of(iter(WebLoader(batches, batch_size=None, num_workers=THREADS))))
