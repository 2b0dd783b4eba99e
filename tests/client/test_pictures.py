"""Pictures through the official OpenAI client against the built server."""
import base64
import http.server
import json
import threading
import unittest

import openai

from server import ROOT, Server

FIXTURE = ROOT / "tests/fixtures/lfm2vl/tiles"
MODEL = "LiquidAI/LFM2-VL-450M"
PICTURE = (FIXTURE / "media/a.png").read_bytes()
DATA = base64.b64encode(PICTURE).decode()
QUESTION = {"type": "text", "text": "Describe the image."}


class Host(http.server.BaseHTTPRequestHandler):
    """A web server with one picture."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", str(len(PICTURE)))
        self.end_headers()
        self.wfile.write(PICTURE)

    def log_message(self, *_):
        pass


class Pictures(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
        threading.Thread(target=cls.host.serve_forever, daemon=True).start()
        cls.address = "127.0.0.1:%d" % cls.host.server_port
        cls.server = Server("--allow-media-host", cls.address, "--media-root", str(FIXTURE / "media"), model=MODEL,
                            weights=("--weight-path", str(FIXTURE)))
        cls.client = openai.OpenAI(base_url=cls.server.base + "/v1", api_key="none", max_retries=0)
        cases = json.loads((FIXTURE / "golden.json").read_text())["cases"]
        cls.expected = next(case["expect"] for case in cases if case["name"] == "single-tile-exact")

    @classmethod
    def tearDownClass(cls):
        cls.host.shutdown()
        cls.host.server_close()
        status = cls.server.stop()
        assert status == 0, "the server ended with %r" % status

    def ask(self, part, **options):
        messages = [{"role": "user", "content": [part, QUESTION]}]
        options = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}, **options}
        return self.client.chat.completions.create(model=MODEL, messages=messages, **options)

    def test_every_source_gives_the_references_answer(self):
        for url in ["data:image/png;base64," + DATA, "http://%s/a.png" % self.address,
                    "file://%s" % (FIXTURE / "media/a.png")]:
            answer = self.ask({"type": "image_url", "image_url": {"url": url, "detail": "auto"}})
            self.assertEqual(answer.choices[0].message.content, self.expected["text"], url[:40])
            self.assertEqual(answer.usage.prompt_tokens, self.expected["prompt_tokens"])
        block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
        self.assertEqual(self.ask(block).choices[0].message.content, self.expected["text"])

    def test_streams_say_the_same(self):
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + DATA}}
        chunks = self.ask(part, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, self.expected["text"])

    def test_broken_and_forbidden_pictures_are_bad_requests(self):
        for url, status in [("data:image/png;base64," + DATA[:400], openai.BadRequestError),
                            ("http://169.254.169.254/latest/meta-data/", openai.BadRequestError),
                            ("file:///etc/passwd", openai.BadRequestError)]:
            with self.assertRaises(status) as caught:
                self.ask({"type": "image_url", "image_url": {"url": url}})
            self.assertEqual(caught.exception.param, "messages[0].content[0].image_url")


if __name__ == "__main__":
    unittest.main()
