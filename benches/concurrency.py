#!/usr/bin/env python3
"""Tokens per second of a running server at several numbers of concurrent requests.

    aha serv -m ./q06 & benches/concurrency.py [--url http://127.0.0.1:10100] [--requests 1,4,16] [--tokens 48]
"""
import argparse
import json
import threading
import time
import urllib.request


def ask(url, tokens, number):
    body = {"prompt": "request number %d" % number, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:10100")
    parser.add_argument("--requests", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    ask(options.url, 4, 0)
    one = None
    for count in map(int, options.requests.split(",")):
        threads = [threading.Thread(target=ask, args=(options.url, options.tokens, i)) for i in range(count)]
        started = time.time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = count * options.tokens / (time.time() - started)
        one = one or rate
        print("%3d concurrent: %7.1f tokens/s, %.1f times the first" % (count, rate, rate / one))


if __name__ == "__main__":
    main()
