"""A real S3 server on loopback, with one bucket."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import pytest

BUCKET = "tokens"


@contextmanager
def serve_s3(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts the server and points the environment at it; gives a boto3 client with which tests look behind."""
    import boto3
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    S3FileSystem.clear_instance_cache()
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST"))  # what an earlier server was told
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    server.stop()


def objects(client: Any, prefix: str) -> dict[str, bytes]:
    """Every object below a prefix with its bytes."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    names = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {
        name.removeprefix(f"{prefix}/"): client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names
    }
