#!/usr/bin/env python3
"""Seconds a 1024x1024 picture and peak memory of background removal, on random weights in the shape of RMBG-2.0.

    benches/background_removal.py --bin target/release/aha --threads 2 --pictures 3
    benches/background_removal.py --reference birefnet.py --threads 2

The checkpoint (885 MB, float32) is made once in --checkpoint. --reference names a Python file with `load(folder)`, which
returns a function from a tensor [1, 3, 1024, 1024] to logits: the release's own class, or whatever it shall be compared
with; it runs in this process instead of aha. Needs numpy, pillow and safetensors, for a reference torch as well.
"""

import argparse
import io
import json
import math
import os
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

WIDTH, DEPTHS, HEADS, WINDOW = 192, (2, 2, 18, 2), (6, 12, 24, 48), 12
INNER, PYRAMID, IMAGE_INNER, GRADIENT = 64, 256, 64, 16
SIDE = 1024


def shapes():
    """Names and shapes of the release's tensors, without those that inference does not use."""
    found = {}

    def layer(name, *shape, bias=True):
        found[name + ".weight"] = shape
        if bias:
            found[name + ".bias"] = shape[:1]

    def norm(name, width, running=False):
        layer(name, width)
        if running:
            found[name + ".running_mean"] = found[name + ".running_var"] = (width,)

    layer("bb.patch_embed.proj", WIDTH, 3, 4, 4)
    norm("bb.patch_embed.norm", WIDTH)
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS)):
        width = WIDTH << stage
        for block in range(depth):
            name = f"bb.layers.{stage}.blocks.{block}"
            norm(name + ".norm1", width)
            norm(name + ".norm2", width)
            found[name + ".attn.relative_position_bias_table"] = ((2 * WINDOW - 1) ** 2, heads)
            layer(name + ".attn.qkv", 3 * width, width)
            layer(name + ".attn.proj", width, width)
            layer(name + ".mlp.fc1", 4 * width, width)
            layer(name + ".mlp.fc2", width, 4 * width)
        if stage + 1 < len(DEPTHS):
            layer(f"bb.layers.{stage}.downsample.reduction", 2 * width, 4 * width, bias=False)
            norm(f"bb.layers.{stage}.downsample.norm", 4 * width)
        norm(f"bb.norm{stage}", width)

    def decoder(name, before, behind):
        layer(name + ".conv_in", INNER, before, 3, 3)
        norm(name + ".bn_in", INNER, True)
        for branch, side in (("aspp1", 1), ("aspp_deforms.0", 1), ("aspp_deforms.1", 3), ("aspp_deforms.2", 7)):
            branch = f"{name}.dec_att.{branch}"
            taps = side * side
            layer(branch + ".atrous_conv.offset_conv", 2 * taps, INNER, side, side)
            layer(branch + ".atrous_conv.modulator_conv", taps, INNER, side, side)
            layer(branch + ".atrous_conv.regular_conv", PYRAMID, INNER, side, side, bias=False)
            norm(branch + ".bn", PYRAMID, True)
        layer(name + ".dec_att.global_avg_pool.1", PYRAMID, INNER, 1, 1, bias=False)
        norm(name + ".dec_att.global_avg_pool.2", PYRAMID, True)
        layer(name + ".dec_att.conv1", INNER, 5 * PYRAMID, 1, 1, bias=False)
        norm(name + ".dec_att.bn1", INNER, True)
        layer(name + ".conv_out", behind, INNER, 3, 3)
        norm(name + ".bn_out", behind, True)

    widths = [2 * (WIDTH << stage) for stage in (3, 2, 1, 0)]
    decoder("squeeze_module.0", sum(widths), widths[0])
    branches = [widths[0] // 8, widths[0] // 8, widths[1] // 8, widths[2] // 8, widths[3] // 8]
    for index, out in enumerate(branches):
        name, tiles = f"decoder.ipt_blk{5 - index}", (32 >> index) if index < 4 else 1
        layer(name + ".conv1", IMAGE_INNER, 3 * tiles * tiles, 3, 3)
        layer(name + ".conv_out", out, IMAGE_INNER, 3, 3)
    outs = widths[1:] + [widths[3] // 2]
    for index, (before, behind) in enumerate(zip(widths, outs)):
        decoder(f"decoder.decoder_block{4 - index}", before + branches[index], behind)
    for level, width in zip((4, 3, 2), outs):
        layer(f"decoder.lateral_block{level}.conv", width, width, 1, 1)
        layer(f"decoder.conv_ms_spvn_{level}", 1, width, 1, 1)
        layer(f"decoder.gdt_convs_{level}.0", GRADIENT, width, 3, 3)
        norm(f"decoder.gdt_convs_{level}.1", GRADIENT, True)
        layer(f"decoder.gdt_convs_attn_{level}.0", 1, GRADIENT, 1, 1)
    layer("decoder.conv_out1.0", 1, outs[3] + branches[4], 1, 1)
    return found


def make(folder):
    random = np.random.default_rng(1)
    tensors = {}
    for name, shape in shapes().items():
        values = random.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            values *= 1 / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("running_var") or (name.endswith(".weight")):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        tensors[name] = np.ascontiguousarray(values, dtype=np.float32)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump({"architectures": ["BiRefNet"], "bb_pretrained": False}, file)
    save_file(tensors, os.path.join(folder, "model.safetensors"))


def picture(seed):
    """Smooth shapes with some noise, 1024x1024."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in random.uniform(0, 3, (3, 3))]
    values = 127 + 90 * np.stack(waves, -1) + random.normal(0, 8, (SIDE, SIDE, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def resident(process, field):
    with open(f"/proc/{process}/status", encoding="utf-8") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) // 1024


def measure_aha(options):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    command = [options.bin, "serv", "-m", "bench", "--weight-path", options.checkpoint, "-p", str(port)]
    server = subprocess.Popen(command + ["--threads", str(options.threads)])
    try:
        while True:
            try:
                if urllib.request.urlopen(base + "/health", timeout=5).status == 200:
                    break
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
        loaded, times = resident(server.pid, "VmRSS"), []
        for index in range(options.pictures + 1):
            file = io.BytesIO()
            picture(index).save(file, "PNG")
            head = '--X\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
            body = head.encode() + file.getvalue() + b"\r\n--X--\r\n"
            kind = {"content-type": "multipart/form-data; boundary=X"}
            request = urllib.request.Request(base + "/v1/images/remove_background", body, kind)
            started = time.time()
            Image.open(io.BytesIO(urllib.request.urlopen(request, timeout=600).read())).load()
            times.append(time.time() - started)
        print(f"aha: {statistics.median(times[1:]):.2f} s a picture ({times[0]:.2f} s the first);", end=" ")
        print(f"{loaded} MiB after loading, {resident(server.pid, 'VmHWM')} MiB at most")
    finally:
        server.terminate()
        server.wait()


def measure_reference(options):
    import importlib.util

    import torch

    torch.set_num_threads(options.threads)
    spec = importlib.util.spec_from_file_location("reference", options.reference)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.set_num_threads(options.threads)
    network = module.load(options.checkpoint)
    times = []
    with torch.inference_mode():
        for index in range(options.pictures + 1):
            pixels = torch.from_numpy(np.array(picture(index))).permute(2, 0, 1)[None].float()
            started = time.time()
            network(pixels / 127.5 - 1)
            times.append(time.time() - started)
    print(f"reference: {statistics.median(times[1:] or times):.2f} s a picture ({times[0]:.2f} s the first);", end=" ")
    print(f"{resident(os.getpid(), 'VmHWM')} MiB at most")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/aha")
    parser.add_argument("--reference")
    parser.add_argument("--checkpoint", default="target/bench-rmbg2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=3, help="beside the first, which is told apart")
    options = parser.parse_args()
    if not os.path.exists(os.path.join(options.checkpoint, "model.safetensors")):
        make(options.checkpoint)
    if options.reference:
        measure_reference(options)
    else:
        measure_aha(options)


if __name__ == "__main__":
    main()
