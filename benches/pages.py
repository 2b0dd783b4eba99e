#!/usr/bin/env python3
"""Pages per second of a document model, one by one and at once.

    benches/pages.py make OUT                # random bf16 weights in the shape of PaddleOCR-VL, 1.9 GB; needs numpy
    aha serv -m ./OUT & benches/pages.py ask [--url http://127.0.0.1:10100] [--pages 8] [--alone 4] [--tokens 256]
    benches/pages.py tower [--url ...]       # the tower's time, and that of PyTorch's layers of the same shape; needs torch

Weights are small random numbers, so the text is noise; shapes, types and file layout are the release's. Tokenizer, template
and picture settings are those of a test fixture. Every page is another picture of coarse noise.
"""
import argparse
import base64
import json
import shutil
import struct
import threading
import time
import urllib.request
import zlib
from pathlib import Path

FIXTURE = Path(__file__).resolve().parents[1] / "tests/fixtures/paddleocr_vl/spotting"
TEXT = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 103424,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}}
VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
          "image_size": 384}


def linear(name, rows, columns, bias=False):
    yield name + ".weight", (rows, columns)
    if bias:
        yield name + ".bias", (rows,)


def norm(name, size):
    yield name + ".weight", (size,)
    yield name + ".bias", (size,)


def shapes():
    hidden, inner, head = TEXT["hidden_size"], TEXT["intermediate_size"], TEXT["head_dim"]
    queries, keys = TEXT["num_attention_heads"] * head, TEXT["num_key_value_heads"] * head
    for name in ("model.embed_tokens", "lm_head"):
        yield from linear(name, TEXT["vocab_size"], hidden)
    for i in range(TEXT["num_hidden_layers"]):
        layer = "model.layers.%d." % i
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        for name, rows, columns in (("q", queries, hidden), ("k", keys, hidden), ("v", keys, hidden), ("o", hidden, queries)):
            yield from linear(layer + "self_attn.%s_proj" % name, rows, columns)
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            yield from linear(layer + "mlp.%s_proj" % name, rows, columns)
    yield "model.norm.weight", (hidden,)

    width, inner = VISION["hidden_size"], VISION["intermediate_size"]
    tower = "visual.vision_model."
    yield tower + "embeddings.patch_embedding.weight", (width, 3, 14, 14)
    yield tower + "embeddings.patch_embedding.bias", (width,)
    yield tower + "embeddings.position_embedding.weight", ((VISION["image_size"] // 14) ** 2, width)
    for i in range(VISION["num_hidden_layers"]):
        layer = tower + "encoder.layers.%d." % i
        yield from norm(layer + "layer_norm1", width)
        yield from norm(layer + "layer_norm2", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(layer + "self_attn." + name, width, width, True)
        yield from linear(layer + "mlp.fc1", inner, width, True)
        yield from linear(layer + "mlp.fc2", width, inner, True)
    yield from norm(tower + "post_layernorm", width)
    yield from norm("mlp_AR.pre_norm", width)
    yield from linear("mlp_AR.linear_1", 4 * width, 4 * width, True)
    yield from linear("mlp_AR.linear_2", hidden, 4 * width, True)


def make(out):
    import numpy

    out.mkdir(parents=True, exist_ok=True)
    header, offset, tensors = {}, 0, list(shapes())
    for name, shape in tensors:
        size = 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = numpy.random.default_rng(1)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            count = int(numpy.prod(shape))
            if len(shape) == 1:
                values = numpy.full(count, float(name.endswith("weight")), "f4")
            else:
                values = random.standard_normal(count, "f4") * numpy.float32(0.02)
            file.write((values.view("u4") >> 16).astype("<u2").tobytes())
    for file in FIXTURE.iterdir():
        if file.is_file() and file.name not in ("golden.json", "config.json") and file.suffix != ".safetensors":
            shutil.copyfile(file, out / file.name)
    config = json.loads((FIXTURE / "config.json").read_text())
    config.update(TEXT)
    config["vision_config"].update(VISION)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    settings = json.loads((FIXTURE / "preprocessor_config.json").read_text())
    settings.update(min_pixels=112896, max_pixels=1003520, size={"min_pixels": 112896, "max_pixels": 1003520})
    (out / "preprocessor_config.json").write_text(json.dumps(settings, indent=1))
    print("%s: %.2f GB" % (out, offset / 1e9))


def picture(number, width=448, height=280):
    """A PNG of coarse noise as a data URL."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            value = ((x // 12) * 31 + (y // 8) * 17 + number * 101) * 2654435761 >> 24 & 255
            rows += bytes((value, value, value))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(bytes(rows))) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def post(url, tokens, content):
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=1200) as answer:
        usage = json.load(answer)["usage"]
    assert usage["completion_tokens"] == tokens
    return usage["prompt_tokens"]


def read(url, tokens, number):
    content = [{"type": "image_url", "image_url": {"url": picture(number)}}, {"type": "text", "text": "OCR:"}]
    return post(url, tokens, content)


def seconds(work, times=3):
    """The least of some runs."""
    best = None
    for number in range(times):
        started = time.time()
        work(number)
        spent = time.time() - started
        best = min(best or spent, spent)
    return best


def tower(options):
    import torch

    tokens = read(options.url, 1, 2000)
    seen = seconds(lambda number: read(options.url, 1, 3000 + number))
    # As many tokens of text: what is not the tower's.
    text = seconds(lambda number: post(options.url, 1, "%d " % number + "\N{SNOWMAN}" * (tokens // 3)))
    torch.set_num_threads(options.threads)
    layer = torch.nn.TransformerEncoderLayer(
        VISION["hidden_size"], VISION["num_attention_heads"], VISION["intermediate_size"], activation="gelu",
        batch_first=True, norm_first=True)
    layers = torch.nn.TransformerEncoder(layer, VISION["num_hidden_layers"], enable_nested_tensor=False).eval()
    patches = (448 // 14) * (280 // 14)
    with torch.inference_mode():
        x = torch.randn(1, patches, VISION["hidden_size"])
        layers(x)
        peer = seconds(lambda number: layers(x))
    print("%d patches: tower %.2f s (a request of %.2f s less %.2f s for as much text); PyTorch's layers, f32: %.2f s"
          % (patches, seen - text, seen, text, peer))


def ask(options):
    read(options.url, 2, 1000)
    started = time.time()
    for number in range(options.alone):
        read(options.url, options.tokens, number)
    alone = options.alone / (time.time() - started)
    threads = [
        threading.Thread(target=read, args=(options.url, options.tokens, 100 + number)) for number in range(options.pages)
    ]
    started = time.time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = options.pages / (time.time() - started)
    print("one by one: %.3f pages/s; %d at once: %.3f pages/s, %.1f times" % (alone, options.pages, together, together / alone))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("out", type=Path)
    asking = commands.add_parser("ask")
    asking.add_argument("--url", default="http://127.0.0.1:10100")
    asking.add_argument("--pages", type=int, default=8)
    asking.add_argument("--alone", type=int, default=4)
    asking.add_argument("--tokens", type=int, default=256)
    peer = commands.add_parser("tower")
    peer.add_argument("--url", default="http://127.0.0.1:10100")
    peer.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.command == "make":
        make(options.out)
    elif options.command == "ask":
        ask(options)
    else:
        tower(options)


if __name__ == "__main__":
    main()
