"""Starts the built server on a fixture for the tests of this folder."""
import json
import os
import socket
import subprocess
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests/fixtures/qwen3/sharded"
MODEL = "Qwen/Qwen3-4B"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A running `aha serv`, by default on a fixture; `arguments` are added to its command line."""

    def __init__(self, *arguments, model=MODEL, weights=("--weight-path", str(FIXTURE)), dtype="f32"):
        self.port = free_port()
        self.base = "http://127.0.0.1:%d" % self.port
        binary = os.environ.get("AHA_BIN", str(ROOT / "target/release/aha"))
        command = [binary, "serv", "-m", model, *weights, "-p", str(self.port), "--dtype", dtype, "--device", "cpu",
                   "--log", "warn", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(600):
            try:
                if self.get("/health")[0] == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                raise AssertionError("the server ended: %s" % self.process.stderr.read().decode())
            time.sleep(0.05)
        raise AssertionError("the server did not become healthy")

    def request(self, path, body=None, headers=None, method=None):
        """Status, headers and body of a plain request; a dict is sent as JSON."""
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
        if body is not None:
            headers.setdefault("content-type", "application/json")
        request = urllib.request.Request(self.base + path, data=body, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def get(self, path, **options):
        return self.request(path, **options)

    def post(self, path, body, **options):
        return self.request(path, body, **options)

    def metrics(self):
        """Prometheus values by name, without their labels: there is one model."""
        lines = [line for line in self.get("/metrics")[2].decode().splitlines() if line and line[0] != "#"]
        return {line.split("{")[0].split(" ")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    def resident_bytes(self):
        with open("/proc/%d/status" % self.process.pid, encoding="ascii") as status:
            for line in status:
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def stop(self):
        """Sends SIGTERM and returns the exit status."""
        self.process.terminate()
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.stderr.close()


class ServerCase(unittest.TestCase):
    """Tests that share one server; `arguments` configure it."""

    arguments = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.arguments)

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        assert status == 0, "the server ended with %r" % status
