#!/usr/bin/env python3
"""Time from starting a process to the first token of its answer: aha beside llama.cpp, in turn, on files that are in the page
cache.

    benches/make_checkpoint.py q06
    benches/start.py --checkpoint q06 --gguf q06-bf16.gguf --llama-bin llama.cpp/build/bin [--threads 2] [--rounds 5]

Measured are `aha run` and `aha serv` on the checkpoint's folder and on the GGUF file, and of llama.cpp what is there of
llama-server and llama-cli. A server is asked as soon as it accepts connections, and again while it says that it still loads; its
first token is the first piece of a streamed answer. A program of one answer writes it to a pipe; what it writes first counts.
All get the same raw text, which is continued greedily.
"""
import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import time
from pathlib import Path

TEXT = "The quick brown fox jumps over the lazy dog"
DEADLINE = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def warm(path):
    """Reads the files of a checkpoint, so that the page cache holds them."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    for file in files:
        with open(file, "rb") as data:
            while data.read(1 << 24):
                pass


def of_program(command):
    """Seconds to the first byte of standard output."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    first = process.stdout.read(1)
    seconds = time.perf_counter() - began
    process.kill()
    process.stdout.close()
    process.wait()
    assert first, "%s printed nothing" % command[0]
    return seconds


def of_server(command, port, path, body):
    """Seconds to the first piece of a streamed answer."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - began < DEADLINE:
            assert process.poll() is None, "%s ended with status %s" % (command[0], process.returncode)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
            try:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                if answer.status == 200:
                    while line := answer.readline():
                        if line.startswith(b"data:"):
                            return time.perf_counter() - began
                assert answer.status == 503, "%s answers with status %d" % (command[0], answer.status)
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.005)
        raise TimeoutError("%s did not answer" % command[0])
    finally:
        process.kill()
        process.wait()


def programs(options):
    """What there is to measure: names and functions that measure once."""
    threads, found = str(options.threads), {}
    sources = [("folder", "--weight-path", options.checkpoint), ("gguf", "--gguf-path", options.gguf)]
    body = {"model": "bench", "prompt": TEXT, "max_tokens": 8, "temperature": 0, "stream": True}
    for name, flag, path in sources:
        if path is None:
            continue
        model = ["-m", "bench", flag, str(path), "--threads", threads]
        found["aha run, " + name] = lambda model=model: of_program(
            [options.bin, "run", *model, "--raw", "-i", TEXT, "-t", "0", "-n", "8"])

        def served(model=model):
            port = free_port()
            return of_server([options.bin, "serv", *model, "-p", str(port)], port, "/v1/completions", body)
        found["aha serv, " + name] = served
    if options.llama_bin and options.gguf:
        server, program = (options.llama_bin / name for name in ("llama-server", "llama-cli"))
        if server.exists():
            def served_by_peer():
                port = free_port()
                command = [str(server), "-m", str(options.gguf), "-t", threads, "--port", str(port), "-fa", "on", "-c", "4096"]
                return of_server(command, port, "/v1/completions", body)
            found["llama-server, gguf"] = served_by_peer
        if program.exists():
            found["llama-cli, gguf"] = lambda: of_program(
                [str(program), "-m", str(options.gguf), "-t", threads, "-p", TEXT, "-n", "8", "--temp", "0", "-no-cnv",
                 "--no-display-prompt", "-c", "4096"])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/aha")
    parser.add_argument("--checkpoint", type=Path, help="folder in the release's layout")
    parser.add_argument("--gguf", type=Path, help="the same as one file")
    parser.add_argument("--llama-bin", type=Path, help="folder of llama.cpp's programs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not (options.checkpoint or options.gguf):
        parser.error("give --checkpoint, --gguf or both")
    os.environ.setdefault("AHA_OFFLINE", "1")
    for path in filter(None, (options.checkpoint, options.gguf)):
        warm(path)
    found = programs(options)
    seconds = {name: [] for name in found}
    for _ in range(options.rounds):
        for name, measure in found.items():
            seconds[name].append(measure())
    print("| | median, s | rounds, s |\n|---|---:|---|")
    for name, rounds in seconds.items():
        print("| %s | %.3f | %s |" % (name, statistics.median(rounds), ", ".join("%.3f" % second for second in rounds)))


if __name__ == "__main__":
    main()
