"""SmolLM2-135M-Instruct (GGUF, Q4_1 and Q8_0) against recorded references, in f32 and with the weights as stored.

Runs where the model is in the local store, as after `./quickstart`.
"""
import json
import os
import unittest
from pathlib import Path

from server import ROOT, Server

GGUF = Path(os.environ.get("AHA_HOME", Path.home() / ".aha")) / (
    "HuggingFaceTB/SmolLM2-135M-Instruct/SmolLM2-135M-Instruct.Q4_1.gguf")
GOLDEN = json.load(open(ROOT / "tests/fixtures/real/smollm2-135m-q4_1.json", encoding="utf-8"))


@unittest.skipUnless(GGUF.is_file(), "the model is not here: run ./quickstart first")
class RealWeights(unittest.TestCase):
    def steps(self, server, case):
        status, _, body = server.post("/v1/chat/completions", {
            "messages": case["messages"], "max_tokens": len(case["ids"]), "temperature": 0, "logprobs": True,
            "ignore_eos": True})
        self.assertEqual(status, 200, body)
        answer = json.loads(body)
        self.assertEqual(answer["usage"]["prompt_tokens"], case["prompt_tokens"], case["name"])
        return answer["choices"][0]["logprobs"]["content"]

    def check(self, dtype):
        server = Server(model=GOLDEN["model"], weights=("--gguf-path", str(GGUF)), dtype=dtype)
        try:
            for case in GOLDEN["cases"]:
                steps = self.steps(server, case)
                self.assertEqual(len(steps), len(case["ids"]))
                for i, step in enumerate(steps):
                    where = "%s, %s, token %d" % (dtype, case["name"], i)
                    self.assertEqual(step["bytes"], case["bytes"][i], where)
                    self.assertLess(abs(step["logprob"] - case["logprobs"][i]), 0.01, where)
                # As far as the two references agree, the answer is llama.cpp's too.
                agreed = case["safe_tokens"]
                self.assertEqual(case["llama_cpp_ids"][:agreed], case["ids"][:agreed])
        finally:
            self.assertEqual(server.stop(), 0)

    def test_in_f32(self):
        self.check("f32")

    def test_weights_as_stored(self):
        self.check("auto")


if __name__ == "__main__":
    unittest.main()
