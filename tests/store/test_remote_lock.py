"""The lock of a store behind a URL: one writer among all machines."""

import json
import os
import subprocess
import sys

import pytest
from s3_server import BUCKET, objects

from cspipe.store import open_store
from cspipe.store.cleaning import collect
from cspipe.store.errors import StoreError
from cspipe.store.remote import local_path, unlock

IMAGES = range(30)


def test_a_second_machine_is_refused_in_one_line_until_the_first_is_done(s3, at, prefix, made, cache, monkeypatch):
    one = made(at)
    one.extract(IMAGES)
    monkeypatch.setattr("cspipe.store.remote_lock._machine", lambda: "first")
    writer = one.writer()
    cache("there")
    monkeypatch.setattr("cspipe.store.remote_lock._machine", lambda: "second")
    with pytest.raises(StoreError, match="another writer") as caught:
        made(at).writer()
    url = f"{at}/{one.path.name}"
    assert f"process {os.getpid()} on" in str(caught.value) and f"cspipe store unlock {url}" in str(caught.value)
    assert "\n" not in str(caught.value) and collect(local_path(at), remove=True) == ([], [local_path(url)])
    assert len(open_store(url)["train"]) == 30  # reading goes on
    writer.close()
    made(at).writer().close()
    assert not [name for name in objects(s3, prefix) if ".locks" in name]


def test_a_lock_of_a_killed_writer_is_taken_over_here_and_elsewhere_removed_by_unlock(s3, at, prefix, made):
    one = made(at)
    one.extract(IMAGES)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    key = f"{prefix}/.locks/{one.path.name}.lock"
    writer = one.writer()
    left = json.loads(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()) | {"process": ended.pid}
    writer.close()
    s3.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(left))
    made(at).writer().close()
    s3.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(left | {"machine": "another"}))
    with pytest.raises(StoreError, match="cspipe store unlock"):
        made(at).writer()
    assert unlock(f"{at}/{one.path.name}")["process"] == ended.pid
    assert unlock(f"{at}/{one.path.name}") is None
    made(at).writer().close()


def test_two_locks_made_at_the_same_moment_are_one(at, made, cache, monkeypatch):
    """Both looked, and nobody held it: the object is made where there is none, or not at all."""
    from cspipe.store import remote_lock

    one = made(at)
    one.extract(IMAGES)
    held = remote_lock._holder
    monkeypatch.setattr(remote_lock, "_machine", lambda: "first")
    writer = one.writer()
    cache("there")
    looked = iter([True])
    monkeypatch.setattr(remote_lock, "_holder", lambda *place: None if next(looked, None) else held(*place))
    with pytest.raises(StoreError, match="another writer"):
        made(at).writer()
    writer.close()
