"""The official OpenAI client on a model that speaks: files, streams, events, and voices by name."""
import base64
import io
import json
import struct
import tempfile
import unittest
import wave
from pathlib import Path

import openai

from server import ROOT, Server

FIXTURE = ROOT / "tests/fixtures/voxcpm/base"
GOLDEN = json.load(open(FIXTURE / "golden.json", encoding="utf-8"))
QUICK = {"seed": 1, "inference_timesteps": 3, "max_tokens": 8, "retry_badcase": False}


def data_url(name):
    raw = (FIXTURE / name).read_bytes()
    return "data:audio/wav;base64," + base64.b64encode(raw).decode()


def samples(wav):
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        raw = file.readframes(file.getnframes())
    return [value / 32768 for value in struct.unpack("<%dh" % (len(raw) // 2), raw)]


class Speech(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(model=GOLDEN["model"], weights=("--weight-path", str(FIXTURE)))
        cls.client = openai.OpenAI(base_url=cls.server.base + "/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def speech(self, text, voice="default", form="wav", **more):
        extra = {**QUICK, **more}
        return {"model": GOLDEN["model"], "input": text, "voice": voice, "response_format": form, "extra_body": extra}

    def test_the_sound_is_a_file(self):
        answer = self.client.audio.speech.create(**self.speech("Hello world"))
        self.assertEqual(answer.response.headers["content-type"], "audio/wav")
        self.assertGreater(len(samples(answer.content)), 4 * 1280 - 1)
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            answer.write_to_file(file.name)
            self.assertEqual(Path(file.name).read_bytes(), answer.content)

    def test_the_golden_wave_is_spoken_by_a_reference(self):
        case = GOLDEN["cases"][0]
        request = dict(case["request"], ref_audio=data_url(case["request"]["ref_audio"]), retry_badcase=False)
        text, form = request.pop("input"), request.pop("response_format")
        answer = self.client.audio.speech.create(
            model=GOLDEN["model"], input=text, voice="default", response_format=form, extra_body=request)
        self.assertEqual(len(samples(answer.content)), case["expect"]["samples"])

    def test_streams_and_events_hold_the_whole(self):
        whole = self.client.audio.speech.create(**self.speech("Hello world", form="pcm")).content
        request = self.speech("Hello world", form="pcm", stream=True)
        with self.client.audio.speech.with_streaming_response.create(**request) as answer:
            pieces = list(answer.iter_bytes(512))
        self.assertGreater(len(pieces), 2)
        self.assertEqual(b"".join(pieces), whole)
        request = self.speech("Hello world", form="pcm")
        with self.client.audio.speech.with_streaming_response.create(**request, stream_format="sse") as answer:
            lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        self.assertEqual(lines.pop(), "[DONE]")
        events = [json.loads(line) for line in lines]
        self.assertEqual(events[-1]["type"], "speech.audio.done")
        self.assertEqual(b"".join(base64.b64decode(event["audio"]) for event in events[:-1]), whole)

    def test_mistakes_are_told(self):
        for wrong, param in (({"text": "?!"}, "input"), ({"text": "a", "form": "aac"}, "response_format")):
            with self.assertRaises(openai.BadRequestError) as refused:
                self.client.audio.speech.create(**self.speech(**wrong))
            self.assertEqual(refused.exception.body["param"], param)
        with self.assertRaises(openai.NotFoundError):
            self.client.audio.speech.create(**self.speech("a", voice="nobody"))

    def test_voices_are_kept(self):
        name = "client-test"
        self.server.request("/v1/audio/voices/" + name, method="DELETE")
        voice = {"name": name, "ref_audio": data_url("media/ref_16k.wav"), "ref_text": "Hello there, "}
        status, _, body = self.server.post("/v1/audio/voices", voice)
        self.assertEqual(status, 200, body)
        try:
            names = [entry["id"] for entry in json.loads(self.server.get("/v1/audio/voices")[2])["data"]]
            self.assertIn(name, names)
            spoken = self.client.audio.speech.create(**self.speech("Hello world", voice=name)).content
            other = self.client.audio.speech.create(**self.speech("Hello world")).content
            self.assertNotEqual(spoken, other)
        finally:
            status, _, body = self.server.request("/v1/audio/voices/" + name, method="DELETE")
            self.assertEqual(status, 200, body)


if __name__ == "__main__":
    unittest.main()
