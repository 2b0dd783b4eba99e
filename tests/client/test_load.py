"""Many clients, a third of which leave: the server forgets them and answers the next one as a fresh one would."""
import json
import random
import socket
import threading
import time
import unittest

from server import MODEL, Server

CLIENTS = 64


def body(i, max_tokens):
    return {"model": MODEL, "temperature": 0, "max_tokens": max_tokens, "stream": True, "ignore_eos": True,
            "messages": [{"role": "user", "content": "lantern %d " % i * (1 + i % 9)}]}


def stream(port, payload, leave_after=None):
    """Reads a stream to its end, or closes the connection after so many bytes."""
    data = json.dumps(payload).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
                           b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
        received = b""
        while leave_after is None or len(received) < leave_after:
            part = connection.recv(4096)
            if not part:
                return received
            received += part
    return None


class Load(unittest.TestCase):
    def greedy_answer(self, server):
        payload = dict(body(3, 32), stream=False, logprobs=True)
        status, _, answer = server.post("/v1/chat/completions", payload)
        self.assertEqual(status, 200, answer)
        return json.loads(answer)["choices"]

    def round(self, server, seed):
        chance = random.Random(seed)
        failures = []

        def client(i, leave_after):
            try:
                received = stream(server.port, body(i, 60), leave_after)
                if leave_after is None and b"data: [DONE]" not in received:
                    failures.append((i, received[-300:]))
            except OSError as error:
                failures.append((i, error))

        threads = [threading.Thread(target=client, args=(i, chance.randrange(1, 6000) if i % 3 == 0 else None))
                   for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def test_leaving_clients_leave_nothing(self):
        fresh = Server()
        expected = self.greedy_answer(fresh)
        self.assertEqual(fresh.stop(), 0)

        server = Server()
        try:
            self.round(server, 0)
            warm = server.resident_bytes()
            for seed in range(1, 6):
                self.round(server, seed)
            deadline = time.time() + 10
            while time.time() < deadline:
                metrics = server.metrics()
                if metrics["aha_requests_running"] == 0 and metrics["aha_requests_waiting"] == 0:
                    break
                time.sleep(0.05)
            self.assertEqual(metrics["aha_cache_blocks_free"], metrics["aha_cache_blocks_total"])
            self.assertEqual(self.greedy_answer(server), expected)
            self.assertLess(server.resident_bytes(), warm * 1.2 + (16 << 20))
        finally:
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
