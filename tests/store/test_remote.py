"""Stores behind a URL: the remote objects are the truth, the local mirror a working copy."""

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import fsspec
import numpy as np
import pytest
from s3_server import BUCKET, objects

from cspipe.store import open_store
from cspipe.store.cleaning import remove_store
from cspipe.store.errors import CspipeError, SettingError, StoreError
from cspipe.store.layout import find_store, list_stores, record_latest
from cspipe.store.remote import local_path, unlock, url_of
from cspipe.store.repair import repair_store
from cspipe.store.verify import verify_store

IMAGES = range(30)


def without_copies(tree):
    return {name: data for name, data in tree.items() if not name.startswith(".locks")}


def memory_files(url):
    system = fsspec.filesystem("memory")
    start = "/" + url.removeprefix("memory://") + "/"
    return {name.removeprefix(start): bytes(system.cat_file(name)) for name in system.find(start)}


def flip(s3, key):
    data = bytearray(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    data[len(data) // 2] ^= 4
    s3.put_object(Bucket=BUCKET, Key=key, Body=bytes(data))


def test_a_url_is_known_as_text_and_as_a_path_that_lost_a_slash():
    assert url_of(Path("s3://bucket/a/b")) == url_of("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert url_of("stores") is url_of(Path("/data/stores")) is url_of("file:///data") is None
    assert local_path("file:///data/stores") == local_path(Path("file:///data/stores")) == Path("/data/stores")


def test_objects_are_byte_for_byte_the_files_of_a_local_store_also_after_it_grew(s3, at, prefix, made, uninterrupted):
    one = made(at)
    one.extract(range(11), bad=[3])
    one.extract(IMAGES, bad=[3])
    held = objects(s3, prefix)
    assert held == {f"{one.path.name}/{name}": data
                    for name, data in uninterrupted(range(11), IMAGES, bad=[3]).items()}  # fmt: skip


def test_another_machine_reads_the_same_tokens_and_the_latest_store(at, made, cache, tokens):
    one = made(at)
    one.extract(IMAGES)
    record_latest(one.stores, one.path)
    cache("there")
    split = open_store(f"{at}/{one.path.name}")["train"]
    assert np.array_equal(split.embedding(), tokens(IMAGES).astype(np.float16))
    stores = local_path(at)
    assert stores.is_relative_to(os.environ["CSPIPE_CACHE"])
    assert find_store(stores) == stores / one.path.name


def test_only_the_split_that_is_opened_is_brought(at, made, cache):
    one = made(at)
    one.extract(IMAGES)
    one.extract(range(9), split="test")
    cache("there")
    opened = open_store(f"{at}/{one.path.name}")
    assert opened.splits == ["test", "train"] and not list(opened.path.glob("*/embedding/c/*/0"))
    assert len(opened["test"]) == 9
    assert {path.parts[-5] for path in opened.path.glob("*/embedding/c/*/0")} == {"test"}


def test_what_changes_or_goes_remotely_changes_and_goes_here_and_other_objects_are_left_alone(s3, at, prefix, made):
    one = made(at)
    one.extract(IMAGES)
    s3.put_object(Bucket=BUCKET, Key=f"{prefix}/holiday.jpg", Body=b"no store")
    s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{one.path.name}/train/../../../../out.zarr/x", Body=b"climbs")
    chunk = f"{one.path.name}/train/embedding/c/1/0"
    (one.stores / chunk).write_bytes(b"rubbish")  # a local change is none
    s3.delete_object(Bucket=BUCKET, Key=f"{prefix}/{one.path.name}/train/embedding/c/2/0")
    stores = local_path(at)
    problems = {problem.where for problem in verify_store(one.path)}
    assert problems == {"train/embedding/c/2/0"} and (stores / chunk).stat().st_size > 7
    assert sorted(path.name for path in stores.iterdir()) == [".locks", one.path.name]
    assert not list(stores.parent.parent.rglob("out.zarr"))


def test_files_that_are_here_already_are_not_brought_again(at, made, monkeypatch):
    one = made(at)
    one.extract(IMAGES)
    monkeypatch.setattr("cspipe.store.remote_files.RemoteFolder.get", lambda *_: pytest.fail("it was brought"))
    assert len(open_store(f"{at}/{one.path.name}")["train"]) == 30
    assert verify_store(f"{at}/{one.path.name}") == []


def test_verify_finds_a_bit_flipped_in_a_remote_object_and_repair_takes_its_chunk_out(s3, at, prefix, made):
    one = made(at)
    one.extract(IMAGES)
    whole = objects(s3, prefix)
    flip(s3, f"{prefix}/{one.path.name}/train/embedding/c/1/0")
    assert [problem.where for problem in verify_store(f"{at}/{one.path.name}")] == ["train/embedding/c/1/0"]
    repair_store(f"{at}/{one.path.name}")
    assert f"{one.path.name}/train/embedding/c/1/0" not in objects(s3, prefix)
    assert [task.chunk for task in made(at).extract(IMAGES)] == [1]
    assert objects(s3, prefix) == whole


def test_verify_reads_again_what_rotted_in_the_mirror_alone(at, made):
    one = made(at)
    one.extract(IMAGES)
    chunk = one.path / "train/embedding/c/1/0"
    times = chunk.stat()
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(bytes(data))
    os.utime(chunk, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify_store(one.path) == []


def test_a_write_that_fails_anywhere_is_one_plain_error_and_the_next_run_ends_with_the_same_bytes(
    memory, made, cache, monkeypatch, uninterrupted
):
    system, wanted = type(fsspec.filesystem("memory")), uninterrupted(range(11), IMAGES, bad=[3])
    put, calls, told, computed = system.put_file, count(), [], []

    def failing(self, here, there, **options):
        number = next(calls)
        if number == point and point % 2:
            put(self, here, there, **options)  # it arrived, but the answer did not
        if number >= point:
            raise ConnectionResetError("the line broke")
        put(self, here, there, **options)

    point = 10**6
    monkeypatch.setattr(system, "put_file", failing)
    for images in (range(11), IMAGES):
        made(f"{memory}/whole").extract(images, bad=[3])
    for point in range(0, next(calls), 3):
        url, calls = f"{memory}/{point}", count()
        cache(f"before-{point}")
        monkeypatch.setattr(system, "put_file", failing)
        try:
            made(url).extract(range(11), bad=[3])
            made(url).extract(IMAGES, bad=[3])
        except StoreError as error:
            told.append(str(error))
        monkeypatch.setattr(system, "put_file", put)
        if point % 3:
            cache(f"after-{point}")
        made(url).extract(range(11), bad=[3], whole=False)
        one = made(url)
        computed.append(sum(len(task.images) for task in one.extract(IMAGES, bad=[3])))
        held = {name.removeprefix(f"{one.path.name}/"): data for name, data in memory_files(url).items()}
        assert held == wanted, point
    assert len(told) == len(computed) >= 20 and all("run the same command again" in line for line in told)
    assert computed == sorted(computed, reverse=True) and {computed[0], computed[-1]} == {19, 0}


def test_an_extension_whose_record_did_not_arrive_is_undone_remotely_and_no_committed_row_is_lost(
    memory, made, cache, monkeypatch
):
    one = made(memory)
    one.extract(range(11))
    former = memory_files(memory)
    chunk, record = (f"{one.path.name}/train/{name}/c/1/0" for name in ("embedding", "commit"))
    system = type(fsspec.filesystem("memory"))
    put = system.put_file

    def failing(self, here, there, **options):
        if there.endswith(broken):
            raise ConnectionResetError("the line broke")
        put(self, here, there, **options)

    monkeypatch.setattr(system, "put_file", failing)
    broken = record
    with pytest.raises(StoreError, match="the line broke"):
        one.extract(IMAGES)
    assert memory_files(memory)[chunk] != former[chunk]
    cache("there")
    broken = chunk
    with pytest.raises(StoreError, match="the line broke"):
        made(memory).writer()
    cache("elsewhere")
    broken = "nothing"
    made(memory).writer().close()
    held = memory_files(memory)
    assert held[chunk] == former[chunk] and held[record] == former[record] and f"{chunk}.kept" not in held
    assert sum(len(task.images) for task in made(memory).extract(IMAGES)) == 19


def test_a_download_that_breaks_leaves_no_file_under_a_final_name(memory, made, cache, monkeypatch):
    one = made(memory)
    one.extract(IMAGES)
    cache("there")
    system = type(fsspec.filesystem("memory"))

    def half(self, there, here, **options):
        Path(here).write_bytes(self.cat_file(there)[:10])

    with monkeypatch.context() as patch:
        patch.setattr(system, "get_file", half)
        with pytest.raises(StoreError, match="was replaced while it was read"):
            local_path(memory)
    assert not list(Path(os.environ["CSPIPE_CACHE"]).rglob("*.json"))
    assert len(open_store(f"{memory}/{one.path.name}")["train"]) == 30


def test_a_writer_works_on_what_another_machine_wrote_since_it_looked(s3, at, prefix, made, cache, uninterrupted):
    cache("there")
    early = made(at)
    cache("here")
    made(at).extract(IMAGES)
    cache("there")
    assert early.extract(IMAGES) == []
    assert {name.partition("/")[2]: data for name, data in objects(s3, prefix).items()} == uninterrupted(IMAGES, bad=[])


def test_a_reader_leaves_the_files_of_a_writer_on_the_same_machine_alone(memory, made, table, tokens):
    one = made(memory)
    with one.writer() as writer:
        tasks = writer.plan("train", table(IMAGES), whole=True)
        (one.path / "train/row_id/unsent").write_bytes(b"on its way")
        local_path(memory)
        assert (one.path / "train/row_id/unsent").is_file()
        (one.path / "train/row_id/unsent").unlink()
        for task in tasks:
            writer.commit("train", task, tokens([IMAGES[n] for n in task.images]))
        writer.finish("train")
    assert verify_store(one.path) == []


def test_a_removed_store_is_gone_on_every_machine(s3, at, prefix, made, cache):
    one = made(at)
    one.extract(IMAGES)
    cache("there")
    size = sum(map(len, objects(s3, prefix).values()))
    assert remove_store(local_path(f"{at}/{one.path.name}")) == size
    assert objects(s3, prefix) == {}
    cache("here")
    assert list_stores(local_path(at)) == [] and not one.path.exists()
    assert made(at).extract(IMAGES)


def test_errors_that_users_can_mend_are_one_plain_line(s3, cache, monkeypatch):
    def line(url):
        with pytest.raises(CspipeError) as caught:
            local_path(url)
        assert "\n" not in str(caught.value) and url in str(caught.value)
        return str(caught.value)

    assert "there is no bucket nowhere" in line("s3://nowhere/stores")
    assert "Protocol not known" in line("what://bucket/stores")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fsspec.core", None)
        assert "pip install 'content-style-pipeline[remote]'" in line("s3://other/stores")
    with pytest.raises(SettingError, match="no store behind a URL"):
        unlock("stores/a.zarr")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "AWS_ENDPOINT_URL"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "AWS_ACCESS_KEY_ID"),
    ],
)
def test_no_network_and_no_credentials_are_told(s3, cache, tmp_path, monkeypatch, changes, words):
    from s3fs import S3FileSystem

    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=f"cannot be listed .*{words}"):
        local_path("s3://elsewhere/stores")
    S3FileSystem.clear_instance_cache()


def test_local_stores_load_neither_fsspec_nor_s3fs():
    code = (
        "import sys, json, pathlib, cspipe.cli, cspipe.store.writer, cspipe.store.verify as v; v.local_path('stores');"
        "print(json.dumps([m for m in ('fsspec', 's3fs', 'botocore') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
