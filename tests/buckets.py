"""Object storage within one machine: an emulator of S3."""

import contextlib
import logging
import urllib.request

import pytest

pytest.importorskip("obstore", reason="object storage needs uptake[objects]")


@contextlib.contextmanager
def emulator():
    """Serve a bucket named "bucket"; give the storage options that reach it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        request = urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
        urllib.request.urlopen(request).close()
        yield {
            "aws_endpoint": f"http://{host}:{port}",
            "aws_access_key_id": "somebody",
            "aws_secret_access_key": "secret",
            "aws_region": "us-east-1",
            "allow_http": "true",
        }
    finally:
        server.stop()
