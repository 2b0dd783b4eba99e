#!/usr/bin/env python3
"""Time of DeepSeek-OCR's vision towers for one view of 1024 pixels, by aha over HTTP and by transformers, in turn.

    benches/deepencoder.py [--bin target/release/aha] [--threads 2] [--rounds 3] [--checkpoint towers]

Towers have the release's shapes (SAM-B and CLIP-L) and random f32 weights; the decoder behind them has one narrow layer, and a
request of text alone is taken off aha's times. Tokenizer and other files are those of a test fixture.
Needs: pip install numpy torch transformers pillow
"""
import argparse
import base64
import io
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import time
import urllib.request
from pathlib import Path

FIXTURE = Path(__file__).resolve().parents[1] / "tests/fixtures/deepseek_ocr/small"
SAM = {"width": 768, "layers": 12, "heads": 12, "global_attn_indexes": [2, 5, 8, 11], "downsample_channels": [512, 1024]}
CLIP = {"width": 1024, "layers": 24, "heads": 16, "image_size": 224, "patch_size": 14}
NECK = 256


def linear(name, rows, columns):
    yield name + ".weight", (rows, columns)
    yield name + ".bias", (rows,)


def norm(name, size):
    yield name + ".weight", (size,)
    yield name + ".bias", (size,)


def shapes(text):
    hidden = text["hidden_size"]
    for name in ("model.embed_tokens", "lm_head"):
        yield name + ".weight", (text["vocab_size"], hidden)
    layer = "model.layers.0."
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield layer + name + ".weight", (hidden,)
    for name in "qkvo":
        yield layer + "self_attn.%s_proj.weight" % name, (hidden, hidden)
    inner = text["intermediate_size"]
    for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        yield layer + "mlp.%s_proj.weight" % name, shape
    yield "model.norm.weight", (hidden,)

    width, sam = SAM["width"], "model.sam_model."
    yield sam + "patch_embed.proj.weight", (width, 3, 16, 16)
    yield sam + "patch_embed.proj.bias", (width,)
    yield sam + "pos_embed", (1, 64, 64, width)
    for i in range(SAM["layers"]):
        block = sam + "blocks.%d." % i
        entries = 127 if i in SAM["global_attn_indexes"] else 27
        for part in (norm(block + "norm1", width), norm(block + "norm2", width), linear(block + "attn.qkv", 3 * width, width),
                     linear(block + "attn.proj", width, width), linear(block + "mlp.lin1", 4 * width, width),
                     linear(block + "mlp.lin2", width, 4 * width)):
            yield from part
        for axis in "hw":
            yield block + "attn.rel_pos_" + axis, (entries, width // SAM["heads"])
    yield sam + "neck.0.weight", (NECK, width, 1, 1)
    yield from norm(sam + "neck.1", NECK)
    yield sam + "neck.2.weight", (NECK, NECK, 3, 3)
    yield from norm(sam + "neck.3", NECK)
    first, second = SAM["downsample_channels"]
    yield sam + "net_2.weight", (first, NECK, 3, 3)
    yield sam + "net_3.weight", (second, first, 3, 3)

    width, clip = CLIP["width"], "model.vision_model."
    yield clip + "embeddings.class_embedding", (width,)
    yield clip + "embeddings.position_embedding.weight", (257, width)
    yield from norm(clip + "pre_layrnorm", width)
    for i in range(CLIP["layers"]):
        layer = clip + "transformer.layers.%d." % i
        for part in (norm(layer + "layer_norm1", width), norm(layer + "layer_norm2", width),
                     linear(layer + "self_attn.qkv_proj", 3 * width, width), linear(layer + "self_attn.out_proj", width, width),
                     linear(layer + "mlp.fc1", 4 * width, width), linear(layer + "mlp.fc2", width, 4 * width)):
            yield from part
    yield from linear("model.projector.layers", hidden, 2 * width)
    yield "model.image_newline", (hidden,)
    yield "model.view_seperator", (hidden,)


def make(out):
    import numpy

    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "processor_config.json"):
        shutil.copy(FIXTURE / name, out / name)
    config = json.loads((FIXTURE / "config.json").read_text())
    for text in (config, config["language_config"]):
        text.update(num_hidden_layers=1, first_k_dense_replace=1)
    config["vision_config"]["width"] = {"sam_vit_b": SAM, "clip-l-14-224": CLIP}
    config["projector_config"]["input_dim"] = 2 * CLIP["width"]
    (out / "config.json").write_text(json.dumps(config))
    header, offset, tensors = {}, 0, list(shapes(config["language_config"]))
    for name, shape in tensors:
        size = 4 * int(numpy.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    draw = numpy.random.default_rng(7)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, shape in tensors:
            values = draw.standard_normal(shape, numpy.float32) * 0.02
            file.write((values + (1 if "norm" in name and name.endswith("weight") else 0)).astype(numpy.float32).tobytes())


def picture(seed):
    import numpy
    from PIL import Image

    cells = numpy.random.default_rng(seed).integers(0, 256, (64, 64, 3), numpy.uint8)
    file = io.BytesIO()
    Image.fromarray(cells).resize((1024, 1024), Image.NEAREST).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ask(base, content):
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0,
            "mm_processor_kwargs": {"base_size": 1024, "image_size": 1024, "crop_mode": False}}
    request = urllib.request.Request(base + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as answer:
        answer.read()
    return time.perf_counter() - start


def reference():
    import torch
    from transformers.models.unlimited_ocr import UnlimitedOcrConfig
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrVisionModel

    sam = {"hidden_size": SAM["width"], "output_channels": NECK, "num_hidden_layers": SAM["layers"],
           "num_attention_heads": SAM["heads"], "image_size": 1024, "patch_size": 16, "window_size": 14,
           "mlp_dim": 4 * SAM["width"], "global_attn_indexes": SAM["global_attn_indexes"],
           "downsample_channels": SAM["downsample_channels"]}
    clip = {"hidden_size": CLIP["width"], "intermediate_size": 4 * CLIP["width"], "num_hidden_layers": CLIP["layers"],
            "num_attention_heads": CLIP["heads"], "image_size": 224, "patch_size": 14, "hidden_act": "quick_gelu"}
    config = UnlimitedOcrConfig(vision_config={"sam_config": sam, "encoder_config": clip}).vision_config
    tower = UnlimitedOcrVisionModel(config).eval()
    pixels = torch.randn(1, 3, 1024, 1024)

    def run():
        start = time.perf_counter()
        with torch.no_grad():
            tower(pixels)
        return time.perf_counter() - start
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/aha")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, default=Path("towers"), help="made where it is missing, 1.6 GB")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    if not options.checkpoint.exists():
        making = options.checkpoint.with_suffix(".making")
        making.mkdir(parents=True, exist_ok=True)
        make(making)
        making.rename(options.checkpoint)
    folder = str(options.checkpoint.resolve())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [options.bin, "serv", "-m", folder, "--port", str(port), "--threads", str(options.threads), "--dtype", "f32"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base = "http://127.0.0.1:%d" % port
    try:
        while True:
            try:
                ask(base, "warm")
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit("the server ended")
                time.sleep(0.2)
        run = reference()
        times = {"aha": [], "transformers": []}
        for round in range(options.rounds + 1):
            seen = ask(base, [{"type": "image_url", "image_url": {"url": picture(round)}}])
            text = ask(base, "text %d" % round)
            other = run()
            if round:  # the first one warms up
                times["aha"].append(seen - text)
                times["transformers"].append(other)
    finally:
        server.terminate()
        server.wait()
    for name, seconds in times.items():
        print("%-12s median %.2f s of %s" % (name, statistics.median(seconds), ", ".join("%.2f" % s for s in seconds)))


if __name__ == "__main__":
    main()
