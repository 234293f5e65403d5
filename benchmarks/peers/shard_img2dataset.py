# pyright: basic, reportMissingImports=false
"""img2dataset on file:// addresses: the same reading, no server in between."""

from img2dataset import download
from photographs import QUALITY, SIZE, arguments, files

if __name__ == "__main__":
    options = arguments(__doc__ or "")
    listing = options.out.with_name(f"{options.out.name}.txt")
    listing.write_text("".join(f"{path.absolute().as_uri()}\n" for path in files(options.source)))
    download(
        url_list=str(listing),
        output_folder=str(options.out),
        output_format="webdataset",
        image_size=SIZE,
        resize_mode="center_crop",
        encode_quality=QUALITY,
        processes_count=options.workers,
        thread_count=2,
        number_sample_per_shard=250,
        extract_exif=False,
        compute_hash=None,
    )
