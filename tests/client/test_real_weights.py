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

# Log-probability: more than rounded activations move it.
SURE = 0.5


@unittest.skipUnless(GGUF.is_file(), "the model is not here: run ./quickstart first")
class RealWeights(unittest.TestCase):
    def setUp(self):
        self.server = None

    def start(self, dtype):
        self.server = Server(model=GOLDEN["model"], weights=("--gguf-path", str(GGUF)), dtype=dtype)

    def tearDown(self):
        if self.server:
            self.assertEqual(self.server.stop(), 0)

    def post(self, path, body):
        status, _, answer = self.server.post(path, {"temperature": 0, "ignore_eos": True, **body})
        self.assertEqual(status, 200, answer)
        return json.loads(answer)

    def test_in_f32(self):
        self.start("f32")
        for case in GOLDEN["cases"]:
            answer = self.post("/v1/chat/completions", {
                "messages": case["messages"], "max_tokens": len(case["ids"]), "logprobs": True})
            self.assertEqual(answer["usage"]["prompt_tokens"], case["prompt_tokens"], case["name"])
            steps = answer["choices"][0]["logprobs"]["content"]
            self.assertEqual([step["bytes"] for step in steps], case["bytes"], case["name"])
            for i, (step, logprob) in enumerate(zip(steps, case["logprobs"])):
                self.assertLess(abs(step["logprob"] - logprob), 0.01, "%s, token %d" % (case["name"], i))
            # As far as the two references agree, the answer is llama.cpp's too.
            agreed = case["safe_tokens"]
            self.assertEqual(case["llama_cpp_ids"][:agreed], case["ids"][:agreed])

    def test_weights_as_stored(self):
        """Each next token after the reference's own text: one near tie must not decide about all that follow.

        Weights as stored meet activations in eight bits, so tokens are only compared where the reference is sure.
        """
        self.start("auto")
        errors = []
        for case in GOLDEN["cases"]:
            answer = self.post("/v1/completions", {
                "prompt": [case["prompt_ids"] + case["ids"][:i] for i in range(len(case["ids"]))],
                "max_tokens": 1, "logprobs": 1})
            steps = [choice["logprobs"] for choice in answer["choices"]]
            for i, (step, lead, logprob) in enumerate(zip(steps, case["leads"], case["logprobs"])):
                token = bytes(case["bytes"][i]).decode()
                where = "%s, token %d" % (case["name"], i)
                if lead > SURE:
                    self.assertEqual(step["tokens"][0], token, where)
                if step["tokens"][0] == token:
                    errors.append(abs(step["token_logprobs"][0] - logprob))
        self.assertGreater(len(errors), 130)
        self.assertLess(sum(errors) / len(errors), 0.05)
        self.assertLess(max(errors), SURE)


if __name__ == "__main__":
    unittest.main()
