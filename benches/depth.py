#!/usr/bin/env python3
"""Tokens per second of one answer behind prompts of several lengths, from a running server: what attention costs.

    aha serv --gguf-path q06-q4_k_m.gguf & benches/depth.py [--url http://127.0.0.1:10100] [--depths 1024,4096]
"""
import argparse
import json
import random
import time
import urllib.request


def arrivals(url, prompt, tokens):
    """Seconds until each token of the answer came."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    started = time.time()
    with urllib.request.urlopen(request, timeout=3600) as answer:
        times = [time.time() - started for line in answer if line.startswith(b"data: {")]
    return times[:tokens]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:10100")
    parser.add_argument("--depths", default="1024,4096")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    random.seed(1)
    for depth in map(int, options.depths.split(",")):
        prompt = [random.randrange(1000, 50000) for _ in range(depth)]
        times = arrivals(options.url, prompt, options.tokens)
        rate = (len(times) - 1) / (times[-1] - times[0])
        print("behind %6d tokens: first after %.2f s, then %.1f tokens/s" % (depth, times[0], rate))


if __name__ == "__main__":
    main()
