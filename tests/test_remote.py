"""Streamed shards: the sequence of a folder, and errors instead of silence."""

import base64
import functools
import http.server
import json
import re
import shlex
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pipelines import AugmentSpec, DataError, LoaderConfig, open_loader
from tests.tarsets import drawn_items, measured, write_dataset

RAW = AugmentSpec(source=64, crop=48, mean="none", lighting=0, divide=1)
SHARD = "train/drawn-train-000001.tar"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    rng = np.random.default_rng(1)
    splits = {
        "train": drawn_items(rng, 45, classes=45),
        "validation": drawn_items(rng, 10, classes=45, prefix="held"),
    }
    root = write_dataset(tmp_path_factory.mktemp("served"), splits, size=64, shards=3, classes=45)
    measured(root)
    return root


class Quiet(http.server.SimpleHTTPRequestHandler):
    cut = None  # bytes after which an answer breaks off

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        if self.cut is None or not self.path.endswith(".tar"):
            return super().copyfile(source, outputfile)
        outputfile.write(source.read(self.cut))
        return None


def serve(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return server, thread, f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def http_root(root):
    server, thread, url = serve(functools.partial(Quiet, directory=root))
    yield url
    server.shutdown()
    server.server_close()
    thread.join()


def config(**changes):
    return LoaderConfig(**{"batch": 8, "order": "shards", "seed": 6, "timeout": 60.0} | changes)


def batches(root, epochs=2, augment=None, **changes):
    with open_loader(root, "train", config(**changes), augment) as loader:
        assert loader.backend.startswith("webdataset") == (
            "://" in str(root) or "pipe" in str(root)
        )
        return [(images.clone(), labels) for _ in range(epochs) for images, labels in loader]


def assert_same(given, expected):
    assert len(given) == len(expected)
    for (images, labels), (true_images, true_labels) in zip(given, expected, strict=True):
        assert torch.equal(labels, true_labels)
        assert torch.equal(images, true_images)


def processes():
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_http_gives_the_sequence_of_the_folder(root, http_root):
    threads = set(threading.enumerate())
    assert_same(batches(http_root), batches(root))
    assert {each for each in threading.enumerate() if "alexprep" in each.name} <= threads


def test_a_command_gives_the_sequence_of_the_folder_and_leaves_no_process(root):
    before = processes()
    command = f"pipe:cat {shlex.quote(str(root))}/{{}}"
    assert_same(batches(command, augment=RAW), batches(root, augment=RAW))
    loader = open_loader(f"pipe:cat {root}", "train", config(), RAW)
    next(iter(loader))
    loader.close()
    assert processes() == before


def test_s3_gives_the_sequence_of_the_folder(root, monkeypatch):
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="images")
        for path in root.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "images", f"set/{path.relative_to(root)}")
        assert_same(batches("s3://images/set"), batches(root))
    finally:
        server.stop()


def test_a_folder_can_be_read_through_webdataset_too(root):
    with open_loader(root, "train", config(backend="webdataset"), RAW) as loader:
        assert loader.backend.startswith("webdataset + dali")
        given = [(images.clone(), labels) for images, labels in loader]
    assert_same(given, batches(root, epochs=1, augment=RAW))


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_a_stream_is_resumed_in_the_middle_of_a_shard(root, http_root, backend):
    expected = batches(root, backend=backend)
    for stop in range(1, 6):
        with open_loader(http_root, "train", config(backend=backend)) as loader:
            numbers = iter(loader)
            for _ in range(stop):
                next(numbers)
            state = json.loads(json.dumps(loader.state_dict()))
        with open_loader(http_root, "train", config(backend=backend)) as loader:
            loader.load_state_dict(state)
            rest = [(images.clone(), labels) for images, labels in loader]
        assert_same(rest, expected[stop : len(expected) // 2])


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_stream_every_image_once(http_root, split, world):
    given = []
    for rank in range(world):
        with open_loader(http_root, split, config(rank=rank, world=world), RAW) as loader:
            labels = [label for _, batch in loader for label in batch.tolist()]
            given += labels
            if split == "validation":
                assert loader.keys == [f"held_{label:05d}" for label in labels]
    assert sorted(given) == list(range(45 if split == "train" else 10))


def fails(root, augment=RAW, **changes):
    """The message of the error that ends an epoch, and the seconds it took."""
    started, caught = time.monotonic(), None
    try:
        batches(root, epochs=1, augment=augment, **changes)
    except DataError as error:
        caught = str(error)
    return caught, time.monotonic() - started


def test_global_order_is_refused_for_a_stream(http_root):
    with pytest.raises(ValueError, match=r"streamed.*LoaderConfig\(order='shards'\)"):
        open_loader(http_root, "train", LoaderConfig())


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    message, seconds = fails(url)
    assert f"{url}/manifest.json cannot be read" in message
    assert seconds < 60


def test_a_url_without_a_data_set_is_named(http_root):
    message, _ = fails(f"{http_root}/train")
    assert "/train/manifest.json cannot be read (HTTPError" in message
    message, _ = fails("pipe:cat /nowhere/at/all/{}")
    assert "cat /nowhere/at/all/manifest.json cannot be read" in message


def test_a_server_that_dies_in_the_middle_is_an_error_in_the_consumer(root):
    died = threading.Event()

    class Mortal(Quiet):
        tars = 0

        def copyfile(self, source, outputfile):
            Mortal.tars += self.path.endswith(".tar")
            if Mortal.tars < 3:
                return super().copyfile(source, outputfile)
            # However far ahead the reader is: it gets no more of the last shard than this.
            outputfile.write(source.read(10_000))
            died.wait(20)
            return None

    server, thread, url = serve(functools.partial(Mortal, directory=root))
    loader = open_loader(url, "train", config(readers=1), RAW)
    given = iter(loader)
    next(given)
    server.shutdown()
    server.server_close()
    died.set()
    thread.join()
    with pytest.raises(DataError, match=rf"{url}/train/.*, sample \d+: the shard cannot be read"):
        list(given)
    loader.close()


def test_a_server_that_falls_silent_is_an_error_after_the_timeout(root):
    silent = threading.Event()

    class Silent(Quiet):
        def do_GET(self):
            if self.path.endswith(".tar"):
                silent.wait(200)
            super().do_GET()

    server, thread, url = serve(functools.partial(Silent, directory=root))
    try:
        message, seconds = fails(url, timeout=1.0)
        assert "nothing has arrived for 1 seconds" in message
        assert url in message
        assert seconds < 60
    finally:
        silent.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_command_that_hangs_is_an_error_and_is_ended(root):
    before = processes()
    command = f"pipe:case {{}} in *.tar) sleep 250;; *) cat {root}/{{}};; esac"
    message, seconds = fails(command, timeout=1.0)
    assert "nothing has arrived for 1 seconds" in message
    assert seconds < 60
    assert processes() == before


def test_an_answer_that_breaks_off_is_named_with_key_and_offset(root):
    class Cut(Quiet):
        cut = 40_000

    server, thread, url = serve(functools.partial(Cut, directory=root))
    try:
        message, _ = fails(url)
        assert ".tar, key item_000" in message
        assert "offset" in message
        assert "the shard cannot be read" in message
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_connection_that_breaks_once_is_taken_up_where_it_broke(root):
    class Flaky(Quiet):
        cuts = iter([40_000, 40_000])  # requests come in several threads

        def copyfile(self, source, outputfile):
            self.cut = next(Flaky.cuts, None) if self.path.endswith(".tar") else None
            return super().copyfile(source, outputfile)

    server, thread, url = serve(functools.partial(Flaky, directory=root))
    try:
        assert_same(batches(url, augment=RAW), batches(root, augment=RAW))
        assert next(Flaky.cuts, None) is None
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_shard_that_was_changed_is_found_at_its_end(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    data = bytearray((copy / SHARD).read_bytes())
    data[data.index(b"\xff\xda") + 400] ^= 1
    (copy / SHARD).write_bytes(data)
    message, _ = fails(f"pipe:cat {copy}/{{}}")
    assert f"{SHARD}: the {len(data)} bytes that were read have sha256" in message


def test_a_bad_jpeg_in_a_stream_is_named(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    data = bytearray((copy / SHARD).read_bytes())
    at = data.index(b"item_00020.jpg") + 512
    data[at : at + 200] = bytes(200)
    (copy / SHARD).write_bytes(data)
    message, _ = fails(f"pipe:cat {copy}/{{}}")
    assert f"{SHARD}, key item_00020, offset {at}: no JPEG" in message


def test_a_name_in_a_manifest_runs_no_command(root, tmp_path, monkeypatch):
    copy = shutil.copytree(root, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["name"] = "x; touch PWNED; echo "
    (copy / "manifest.json").write_text(json.dumps(manifest))
    message, _ = fails(f"pipe:cat {copy}/{{}}")
    assert "manifest.json is not a manifest of alexprep (a shard of 'train' is called" in message
    assert not (tmp_path / "PWNED").exists()


def test_a_folder_that_is_called_like_a_command_is_a_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("pipe:touch PWNED #")
    shutil.copytree(root, folder)
    with open_loader(folder, "train", config(), RAW) as loader:
        assert loader.backend.startswith("dali")
        assert len(next(iter(loader))[1]) == 8
    assert not Path("PWNED").exists()


class Guarded(Quiet):
    """Answers only the user alice with the password p@ss, or the signature of a query."""

    def do_GET(self):
        token = base64.b64encode(b"alice:p@ss").decode()
        signed = self.path.endswith("?sig=0123abc")
        if not signed and self.headers["Authorization"] != f"Basic {token}":
            return self.send_error(403)
        return super().do_GET()


def test_passwords_and_signatures_are_used_and_never_shown(root):
    server, thread, url = serve(functools.partial(Guarded, directory=root))
    secret = url.replace("://", "://alice:p%40ss@")
    expected = batches(root)
    assert_same(batches(secret), expected)
    assert_same(batches(f"{url}/{{}}?sig=0123abc"), expected)
    wrong = url.replace("://", "://alice:wr0ng@")
    for address in (wrong, f"{url}/{{}}?sig=wr0ng", f"{secret}/train", f"pipe:cat {wrong}/{{}}"):
        message, _ = fails(address)
        assert "***" in message
        assert not any(word in message for word in ("alice", "p@ss", "p%40ss", "wr0ng"))
    with pytest.raises(ValueError, match="is streamed") as refused:
        open_loader(secret, "train", LoaderConfig())
    assert "p%40ss" not in str(refused.value)
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["manifest.json", "stats.npz", SHARD])
def test_a_file_without_end_is_given_up_at_the_length_it_may_have(root, name):
    class Endless(Quiet):
        sent = 0

        def copyfile(self, source, outputfile):
            super().copyfile(source, outputfile)
            while self.path.endswith(name):
                Endless.sent += outputfile.write(bytes(1 << 20))

        def send_header(self, keyword, value):
            if keyword != "Content-Length":  # so that the answer ends with the connection
                super().send_header(keyword, value)

    server, thread, url = serve(functools.partial(Endless, directory=root))
    message, _ = fails(url, augment=None)
    server.shutdown()
    server.server_close()
    thread.join()
    assert f"{url}/{name}" in message
    assert re.search("has more than [0-9]+ bytes|continues after the [0-9]+ bytes", message)
    assert Endless.sent < 300 << 20
