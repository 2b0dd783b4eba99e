"""The official OpenAI client against the built server."""
import asyncio
import unittest

import openai

from server import MODEL, Server, ServerCase

QUESTION = [{"role": "user", "content": "What is the river of 音乐? 🙂"}]


class OpenAiClient(ServerCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=self.server.base + "/v1", api_key="none", max_retries=0)

    def chat(self, **options):
        options = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24, **options}
        return self.client.chat.completions.create(**options)

    def test_models(self):
        models = self.client.models.list().data
        self.assertEqual([model.id for model in models], [MODEL])
        self.assertEqual(self.client.models.retrieve(MODEL).object, "model")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("nobody/nothing")

    def test_stream_equals_plain(self):
        plain = self.chat()
        choice = plain.choices[0]
        whole = (getattr(choice.message, "reasoning_content", None) or "") + (choice.message.content or "")
        text, finish, usage, roles = "", None, None, []
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            if chunk.usage:
                usage = chunk.usage
            for part in chunk.choices:
                if part.delta.role:
                    roles.append(part.delta.role)
                text += (getattr(part.delta, "reasoning_content", None) or "") + (part.delta.content or "")
                finish = part.finish_reason or finish
        self.assertEqual(text, whole)
        self.assertEqual(roles, ["assistant"])
        self.assertEqual(finish, choice.finish_reason)
        self.assertEqual(usage.completion_tokens, plain.usage.completion_tokens)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)

    def test_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=3, max_tokens=5, extra_body={"ignore_eos": True})
        content = answer.choices[0].logprobs.content
        self.assertEqual(len(content), 5)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.top_logprobs[0].logprob, token.logprob)

    def test_n_and_seed(self):
        options = {"temperature": 1.2, "n": 3, "seed": 5, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
        first, second = self.chat(**options), self.chat(**options)
        texts = [choice.message.content or choice.message.reasoning_content for choice in first.choices]
        self.assertEqual(texts, [choice.message.content or choice.message.reasoning_content for choice in second.choices])
        self.assertEqual([choice.index for choice in first.choices], [0, 1, 2])
        self.assertGreater(len(set(texts)), 1)

    def test_completions(self):
        plain = self.client.completions.create(model=MODEL, prompt=["stone", "river"], temperature=0, max_tokens=8)
        self.assertEqual([choice.index for choice in plain.choices], [0, 1])
        streamed = {0: "", 1: ""}
        for chunk in self.client.completions.create(model=MODEL, prompt=["stone", "river"], temperature=0,
                                                    max_tokens=8, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        self.assertEqual([streamed[0], streamed[1]], [choice.text for choice in plain.choices])

    def test_errors_have_types(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.NotFoundError) as caught:
            self.chat(model="nobody/nothing")
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(max_tokens=10**9)
        self.assertEqual(caught.exception.code, "context_length_exceeded")

    def test_cached_tokens(self):
        messages = [{"role": "user", "content": "seven lanterns " * 40}]
        self.chat(messages=messages)
        again = self.chat(messages=messages)
        self.assertGreater(again.usage.prompt_tokens_details.cached_tokens, again.usage.prompt_tokens - 32)

    def test_concurrent_async_clients_agree_with_plain_ones(self):
        expected = [self.chat(messages=[{"role": "user", "content": "number %d" % i}]) for i in range(8)]

        async def ask(client, i):
            return await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "number %d" % i}], temperature=0, max_tokens=24)

        async def ask_all():
            async with openai.AsyncOpenAI(base_url=self.server.base + "/v1", api_key="none") as client:
                return await asyncio.gather(*(ask(client, i) for i in range(8)))

        for one, other in zip(expected, asyncio.run(ask_all())):
            self.assertEqual(one.choices[0].message, other.choices[0].message)


class ApiKey(unittest.TestCase):
    def test_only_the_key_opens(self):
        server = Server("--api-key", "sesame")
        try:
            with self.assertRaises(openai.AuthenticationError):
                openai.OpenAI(base_url=server.base + "/v1", api_key="wrong", max_retries=0).models.list()
            opened = openai.OpenAI(base_url=server.base + "/v1", api_key="sesame", max_retries=0)
            self.assertEqual(opened.models.list().data[0].id, MODEL)
            self.assertEqual(server.get("/health")[0], 200)
            self.assertEqual(server.get("/v1/models")[0], 401)
        finally:
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
