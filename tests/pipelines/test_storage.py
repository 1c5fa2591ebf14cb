"""Shared storage: a folder and a bucket of a real S3 server; what is published, fetched, refused, and said when it cannot be."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from grun.errors import StorageError
from pipelines import shared_store
from pipelines.benchmarks.servers import free_port
from pipelines.shared_store import MANIFEST, Manifest, SharedFile, SharedStore
from pipelines.storage import Storage
from tests.pipelines.s3_server import S3Server

FILES = {"a.bin": b"first" * 1000, "b.bin": bytes(range(256)) * 40_000, "empty": b""}


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def storage(place: str) -> Storage:
    return Storage.open(place, "cache.uri")


@pytest.fixture
def store(storage: Storage) -> SharedStore:
    return SharedStore(storage)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", FILES)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the objects that are read."""
    paths: list[str] = []
    blocks = Storage.blocks

    def noted(self: Storage, path: str) -> Iterator[bytes]:
        paths.append(path)
        return blocks(self, path)

    monkeypatch.setattr(Storage, "blocks", noted)
    return paths


def object_of(manifest: Manifest, name: str) -> str:
    [file] = [file for file in manifest.files if file.name == name]
    return f"one/objects/{file.sha256}"


class TestStorage:
    def test_objects_come_back_as_they_were_written(self, storage: Storage) -> None:
        assert (storage.list(), storage.read("x/y"), storage.size("x/y")) == ([], None, None)
        storage.write("x/y", b"1234")
        storage.write("x/z", b"")
        assert (storage.read("x/y"), storage.size("x/y"), storage.read("x/z")) == (b"1234", 4, b"")
        assert sorted((found.path, found.num_bytes) for found in storage.list()) == [("x/y", 4), ("x/z", 0)]
        assert [found.path for found in storage.list("x")] == ["x/y", "x/z"]
        storage.copy("x/y", "w/y")
        storage.delete("x/y", "x/never")
        assert sorted(found.path for found in storage.list()) == ["w/y", "x/z"]

    def test_a_check_leaves_nothing_behind(self, storage: Storage) -> None:
        storage.check()
        assert storage.list() == []

    def test_an_upload_that_is_broken_off_leaves_no_half_object(self, storage: Storage, source: Path) -> None:
        def broken(_bytes: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            storage.upload(source / "b.bin", "x/b", broken)
        assert storage.list() == []


class TestRefusals:
    """One message each: the setting, the value, the reason, the remedy."""

    @pytest.mark.parametrize(
        ("uri", "reason"),
        [
            ("foo://bucket/x", "Unrecognized filesystem type"),
            ("s3://bu cket/x", "syntax error"),
            ("s3://", "must name a bucket or folder"),
            ("relative/path", "empty scheme"),
        ],
    )
    def test_a_uri_that_names_nothing(self, uri: str, reason: str) -> None:
        with pytest.raises(StorageError, match=f"^`cache.uri` must .*got '{uri}'.*(write `s3://bucket/folder`)") as error:
            Storage.open(uri, "cache.uri")
        assert reason in str(error.value)

    def test_a_bucket_that_is_not_there(self, s3: S3Server) -> None:
        with pytest.raises(
            StorageError, match=r"got 's3://no-such-bucket/x': could not write .*as there is no such bucket .*; create it"
        ):
            Storage.open("s3://no-such-bucket/x", "cache.uri").check()

    def test_a_server_that_is_not_there(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StorageError, match=r"as its server does not answer .*; check the network and the endpoint"):
            Storage.open("s3://bucket/x", "cache.uri").check()

    def test_a_server_that_denies_access(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        class Denying(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
                self.send_response(403)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = answer  # noqa: N815 - the names of http.server

            def log_message(self, *_args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Denying) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            with pytest.raises(StorageError, match=r"as access is denied .*; give credentials"):
                Storage.open("s3://bucket/x", "cache.uri").check()
            server.shutdown()

    def test_a_folder_that_cannot_be_written_to(self) -> None:
        with pytest.raises(StorageError, match="got 'file:///proc/none': could not write"):
            Storage.open("file:///proc/none", "cache.uri").check()

    def test_storage_that_forgets_what_was_written(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Storage, "read", lambda *_: None)
        with pytest.raises(StorageError, match="must be storage that gives back what was written"):
            storage.check()


class TestPublishing:
    def test_a_folder_comes_back_as_it_was(self, store: SharedStore, source: Path, tmp_path: Path) -> None:
        write(source, {".hidden": b"not for others"})
        steps: list[tuple[int, int]] = []
        store.publish(source, "one")
        copy = tmp_path / "node" / "one"
        manifest = store.fetch("one", copy, on_progress=lambda done, total: steps.append((done, total)))
        assert contents(copy) == FILES
        assert copy.stat().st_mode & 0o077 == 0
        assert manifest is not None
        assert steps[-1] == (manifest.num_bytes, manifest.num_bytes) == (len(FILES["a.bin"]) + len(FILES["b.bin"]),) * 2

    def test_what_was_never_published_is_not_there(self, store: SharedStore, tmp_path: Path) -> None:
        assert store.fetch("one", tmp_path / "node" / "local") is None
        assert not (tmp_path / "node" / "local").exists()

    @pytest.mark.parametrize("fails_at", [1, 2, 3])
    def test_a_folder_is_there_when_all_of_it_is(
        self, store: SharedStore, source: Path, tmp_path: Path, fails_at: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload = Storage.upload
        uploaded: list[str] = []

        def failing(self: Storage, file: Path, path: str, *more: Any) -> None:
            uploaded.append(path)
            if len(uploaded) >= fails_at:
                raise StorageError("the line was cut")
            upload(self, file, path, *more)

        monkeypatch.setattr(shared_store, "_PARALLEL", 1)
        with monkeypatch.context() as broken:
            broken.setattr(Storage, "upload", failing)
            with pytest.raises(StorageError, match="the line was cut"):
                store.publish(source, "one")
        assert store.manifest("one") is None
        assert store.fetch("one", tmp_path / "node" / "local") is None
        again: list[str] = []

        def noted(self: Storage, file: Path, path: str, *more: Any) -> None:
            again.append(path)
            upload(self, file, path, *more)

        monkeypatch.setattr(Storage, "upload", noted)
        store.publish(source, "one")
        assert len(again) == len(FILES) - (fails_at - 1), "what is there is not written again"
        assert store.fetch("one", tmp_path / "node" / "local") is not None

    def test_a_process_that_is_killed_has_published_nothing(self, s3: S3Server, source: Path, tmp_path: Path) -> None:
        place = f"s3://{s3.make_bucket('killed')}/x"
        script = f"""
import os, signal
from pathlib import Path
from pipelines import shared_store
from pipelines.storage import Storage
shared_store._PARALLEL = 1
upload = Storage.upload
def cut(self, file, path, *more):
    upload(self, file, path, lambda count: os.kill(os.getpid(), signal.SIGKILL) if file.name == "b.bin" else None)
Storage.upload = cut
shared_store.SharedStore(Storage.open({place!r}, "cache.uri")).publish(Path({str(source)!r}), "one")
"""
        ended = subprocess.run([sys.executable, "-c", script], check=False)
        assert ended.returncode == -signal.SIGKILL
        store = SharedStore(Storage.open(place, "cache.uri"))
        assert [found.num_bytes for found in store.storage.list()] == [len(FILES["a.bin"])]
        assert store.fetch("one", tmp_path / "node" / "local") is None

    def test_two_that_publish_other_bytes_do_no_harm(self, store: SharedStore, source: Path, tmp_path: Path) -> None:
        first = store.put("one", sorted(source.iterdir()))
        other = write(tmp_path / "other", {**FILES, "b.bin": b"rounded otherwise"})
        store.publish(other, "one")
        assert store.fetch("one", tmp_path / "node" / "local") is not None
        assert contents(tmp_path / "node" / "local") == contents(other)
        store.declare("one", first)
        store.fetch("one", tmp_path / "node" / "local")
        assert contents(tmp_path / "node" / "local") == FILES

    def test_a_manifest_is_refused_whose_objects_were_deleted(self, store: SharedStore, source: Path) -> None:
        files = store.put("one", sorted(source.iterdir()))
        store.take_back("one", files[1:2])
        with pytest.raises(StorageError, match=r"is published when all its files are there, got '.*one' without b.bin"):
            store.declare("one", files)
        assert store.manifest("one") is None

    def test_a_removed_folder_is_gone_but_for_what_is_kept(self, store: SharedStore, source: Path) -> None:
        store.publish(source, "one")
        store.publish(source, "two")
        store.storage.write("one/copies/node", b"{}")
        store.remove("one", keep=["copies/"])
        assert [found.path for found in store.storage.list("one")] == ["one/copies/node"]
        store.remove("one")
        assert store.storage.list("one") == []
        assert store.manifest("two") is not None


class TestFetching:
    def test_of_all_that_ask_at_once_one_copies(self, store: SharedStore, source: Path, tmp_path: Path, read: list[str]) -> None:
        store.publish(source, "one")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _n: store.fetch("one", tmp_path / "node" / "local"), range(4)))
        assert len([path for path in read if "/objects/" in path]) == len(FILES)
        assert contents(tmp_path / "node" / "local") == FILES

    def test_a_copy_that_was_broken_off_goes_on(self, store: SharedStore, source: Path, tmp_path: Path, read: list[str]) -> None:
        manifest = store.publish(source, "one")
        write(tmp_path / "node" / "local", {"a.bin": FILES["a.bin"], "b.bin": FILES["b.bin"][:-1] + b"x", "of-another": b"build"})
        store.fetch("one", tmp_path / "node" / "local")
        assert contents(tmp_path / "node" / "local") == FILES
        assert object_of(manifest, "a.bin") not in read
        assert object_of(manifest, "b.bin") in read

    def test_a_run_reads_every_byte_once(self, store: SharedStore, source: Path, tmp_path: Path, read: list[str]) -> None:
        manifest = store.publish(source, "one")
        damaged = tmp_path / "node" / "local" / "b.bin"
        for run, is_mended in (("first", True), ("first", False), ("second", True), (None, True)):
            store.fetch("one", tmp_path / "node" / "local", run=run)
            assert (damaged.read_bytes() == FILES["b.bin"]) is is_mended
            damaged.write_bytes(FILES["b.bin"][:-1] + b"x")
        assert read.count(object_of(manifest, "b.bin")) == 3

    @pytest.mark.parametrize(("content", "said"), [(b"short", "5 bytes of"), (FILES["b.bin"][:-1] + b"x", "other bytes")])
    def test_an_object_that_was_changed_is_refused(
        self, store: SharedStore, source: Path, tmp_path: Path, content: bytes, said: str, read: list[str]
    ) -> None:
        manifest = store.publish(source, "one")
        path = object_of(manifest, "b.bin")
        store.storage.write(path, content)
        with pytest.raises(
            StorageError, match=f"an object must be what was published, got {said}.* for b.bin, twice, from .*one/objects"
        ):
            store.fetch("one", tmp_path / "node" / "local")
        assert read.count(path) == 2
        assert "b.bin" not in contents(tmp_path / "node" / "local")
        store.storage.delete(path)
        with pytest.raises(StorageError, match=r"got nothing for b\.bin"):
            store.fetch("one", tmp_path / "node" / "local")

    def test_one_that_was_garbled_on_the_way_is_asked_for_again(
        self, store: SharedStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, blocks, asked = object_of(store.publish(source, "one"), "b.bin"), Storage.blocks, []

        def garbled(self: Storage, wanted: str) -> Iterator[bytes]:
            asked.append(wanted)
            return iter([b"noise"]) if wanted == path and asked.count(path) == 1 else blocks(self, wanted)

        monkeypatch.setattr(Storage, "blocks", garbled)
        store.fetch("one", tmp_path / "node" / "local")
        assert asked.count(path) == 2
        assert contents(tmp_path / "node" / "local") == FILES

    def test_a_file_that_the_node_has_elsewhere_is_linked(
        self, store: SharedStore, source: Path, tmp_path: Path, read: list[str]
    ) -> None:
        store.publish(source, "one")
        store.publish(write(tmp_path / "more", {**FILES, "c.bin": b"own"}), "two")
        store.fetch("one", tmp_path / "node" / "one")
        read.clear()
        store.fetch("two", tmp_path / "node" / "two")
        assert len([path for path in read if "/objects/" in path]) == 1
        assert (tmp_path / "node" / "two" / "b.bin").samefile(tmp_path / "node" / "one" / "b.bin")

    def test_a_disk_that_is_full_is_named_before_anything_is_copied(
        self, store: SharedStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
    ) -> None:
        store.publish(source, "one")
        usage = type("Usage", (), {"free": 10})
        monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
        with pytest.raises(StorageError, match=r"a node must have room for its copy .*got 1e-08 GB free in .*; .*`cache.local`"):
            store.fetch("one", tmp_path / "node" / "local")
        assert not [path for path in read if "/objects/" in path]

    def test_a_folder_of_somebody_else_is_refused(
        self, store: SharedStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.publish(source, "one")
        (tmp_path / "node" / "local").mkdir(parents=True)
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(
            StorageError, match=r"must lie in a folder of one's own, got .* \(which belongs to user \d+\); set `cache.local`"
        ):
            store.fetch("one", tmp_path / "node" / "local")

    def test_a_manifest_cannot_name_a_file_elsewhere(self, store: SharedStore) -> None:
        files = '{"files": [{"name": "../x", "num_bytes": 1, "sha256": "%s"}]}' % ("0" * 64)
        store.storage.write(f"one/{MANIFEST}", files.encode())
        with pytest.raises(StorageError, match="which cannot be read; delete that folder there"):
            store.manifest("one")
        assert SharedFile(name="x", num_bytes=1, sha256="0" * 64).name == "x"
