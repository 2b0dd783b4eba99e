"""The official OpenAI client on a speech recogniser, held to the recorded reference."""
import json
import unittest

import openai

from server import ROOT, Server

FIXTURE = ROOT / "tests/fixtures/qwen3_asr/windows"
GOLDEN = json.load(open(FIXTURE / "golden.json", encoding="utf-8"))
CASES = [case for case in GOLDEN["cases"] if case["endpoint"].endswith("/transcriptions")]
KNOWN = ("language", "prompt", "temperature")


class Transcriptions(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(model=GOLDEN["model"], weights=("--weight-path", str(FIXTURE)))
        cls.client = openai.OpenAI(base_url=cls.server.base + "/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def create(self, case, **more):
        request = case["request"]
        known = {name: request[name] for name in KNOWN if name in request}
        extra = {name: request[name] for name in ("max_tokens", "ignore_eos", "hotwords") if name in request}
        with open(FIXTURE / request["file"], "rb") as file:
            return self.client.audio.transcriptions.create(
                file=file, model=GOLDEN["model"], extra_body=extra, **known, **more)

    def test_texts_equal_the_reference(self):
        self.assertGreater(len(CASES), 1)
        for case in CASES:
            answer = self.create(case, include=["logprobs"])
            self.assertEqual(answer.text.strip(), case["expect"]["text"].strip(), case["name"])
            self.assertEqual([token.bytes for token in answer.logprobs],
                             [step["bytes"] for step in case["expect"]["steps"]])
            self.assertEqual(answer.usage.output_tokens, len(case["expect"]["steps"]))

    def test_streams_tell_the_same(self):
        for case in CASES:
            events = list(self.create(case, stream=True))
            deltas = "".join(event.delta for event in events if event.type == "transcript.text.delta")
            self.assertEqual(events[-1].type, "transcript.text.done")
            self.assertEqual(events[-1].text, self.create(case).text)
            self.assertEqual(deltas.strip(), events[-1].text.strip())

    def test_other_formats(self):
        verbose = self.create(CASES[0], response_format="verbose_json", timestamp_granularities=["segment"],
                              chunking_strategy={"type": "server_vad", "threshold": 0.1})
        self.assertGreater(verbose.duration, 0.5)
        for segment in verbose.segments:
            self.assertLess(segment.start, segment.end)
        self.assertEqual(self.create(CASES[0], response_format="text", chunking_strategy=None).strip(),
                         CASES[0]["expect"]["text"].strip())
        self.assertTrue(self.create(CASES[0], response_format="vtt").startswith("WEBVTT"))

    def test_faults(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            self.create(CASES[0], response_format="verbose_json", timestamp_granularities=["word"])
        self.assertEqual(refused.exception.param, "timestamp_granularities")
        with self.assertRaises(openai.BadRequestError):
            self.client.audio.translations.create(file=b"no sound", model=GOLDEN["model"])
        with self.assertRaises(openai.BadRequestError) as refused:
            self.client.audio.transcriptions.create(file=b"no sound", model=GOLDEN["model"])
        self.assertEqual(refused.exception.param, "file")


if __name__ == "__main__":
    unittest.main()
