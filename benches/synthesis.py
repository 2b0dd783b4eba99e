#!/usr/bin/env python3
"""Speaks a fixed number of patches with a random checkpoint in the shape of VoxCPM-0.5B, by aha over HTTP and by the
reference (the package voxcpm, PyTorch on the CPU), both in single precision; tells the real time factor and the time to
the first sound.

    benches/synthesis.py make OUT                                    # 1.6 GB
    benches/synthesis.py aha OUT [--bin target/release/aha] [--threads 2] [--patches 25]
    benches/synthesis.py reference OUT [--threads 2] [--patches 25]  # pip install voxcpm==2.0.3

Weights are small random numbers, so the sound is noise; shapes, types and file names are the release's.
"""
import argparse
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

FIXTURE = Path(__file__).resolve().parents[1] / "tests/fixtures/voxcpm/base"
TEXT = "The quick brown fox jumps over the lazy dog, and the sound is clear."
HIDDEN, FFN, HEADS, KV, HEAD_DIM, VOCAB = 1024, 4096, 16, 2, 64, 73448
LAYERS, RESIDUAL_LAYERS, LOCAL_LAYERS, FEAT, QUANTIZED = 24, 6, 4, 64, 256
FACTORS = [1.0 + i * i / 20 for i in range(HEAD_DIM // 2)]
ENCODER, RATES, DECODER = 128, [2, 5, 8, 8], 1536


def linear(name, to, of, bias=True):
    yield name + ".weight", (to, of)
    if bias:
        yield name + ".bias", (to,)


def stack(name, layers):
    for i in range(layers):
        layer = "%s.layers.%d." % (name, i)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield layer + norm + ".weight", (HIDDEN,)
        for part, to, of in (("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN), ("self_attn.k_proj", KV * HEAD_DIM, HIDDEN),
                             ("self_attn.v_proj", KV * HEAD_DIM, HIDDEN), ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
                             ("mlp.gate_proj", FFN, HIDDEN), ("mlp.up_proj", FFN, HIDDEN), ("mlp.down_proj", HIDDEN, FFN)):
            yield from linear(layer + part, to, of, bias=False)
    yield name + ".norm.weight", (HIDDEN,)


def model():
    yield "base_lm.embed_tokens.weight", (VOCAB, HIDDEN)
    yield from stack("base_lm", LAYERS)
    yield from stack("residual_lm", RESIDUAL_LAYERS)
    yield "feat_encoder.special_token", (1, 1, 1, HIDDEN)
    yield from linear("feat_encoder.in_proj", HIDDEN, FEAT)
    yield from stack("feat_encoder.encoder", LOCAL_LAYERS)
    estimator = "feat_decoder.estimator."
    for part, to, of in (("in_proj", HIDDEN, FEAT), ("cond_proj", HIDDEN, FEAT), ("out_proj", FEAT, HIDDEN),
                         ("time_mlp.linear_1", HIDDEN, HIDDEN), ("time_mlp.linear_2", HIDDEN, HIDDEN),
                         ("delta_time_mlp.linear_1", HIDDEN, HIDDEN), ("delta_time_mlp.linear_2", HIDDEN, HIDDEN)):
        yield from linear(estimator + part, to, of)
    yield from stack(estimator + "decoder", LOCAL_LAYERS)
    yield from linear("fsq_layer.in_proj", QUANTIZED, HIDDEN)
    yield from linear("fsq_layer.out_proj", HIDDEN, QUANTIZED)
    for part in ("enc_to_lm_proj", "lm_to_dit_proj", "res_to_dit_proj", "stop_proj"):
        yield from linear(part, HIDDEN, HIDDEN)
    yield from linear("stop_head", 2, HIDDEN, bias=False)


def conv(name, to, of, taps, transposed=False):
    shape = (of, to, taps) if transposed else (to, of, taps)
    yield name + ".weight_g", (shape[0], 1, 1)
    yield name + ".weight_v", shape
    yield name + ".bias", (to,)


def residual_units(name, first, channels):
    for unit in range(first, first + 3):
        block = "%s.block.%d.block." % (name, unit)
        yield block + "0.alpha", (1, channels, 1)
        yield from conv(block + "1", channels, 1, 7)
        yield block + "2.alpha", (1, channels, 1)
        yield from conv(block + "3", channels, channels, 1)


def autoencoder():
    channels = ENCODER
    yield from conv("encoder.block.0", channels, 1, 7)
    for i, rate in enumerate(RATES):
        block = "encoder.block.%d" % (i + 1)
        yield from residual_units(block, 0, channels)
        yield block + ".block.3.alpha", (1, channels, 1)
        yield from conv(block + ".block.4", 2 * channels, channels, 2 * rate)
        channels *= 2
    yield from conv("encoder.fc_mu", FEAT, channels, 3)
    yield from conv("encoder.fc_logvar", FEAT, channels, 3)
    yield from conv("decoder.model.0", FEAT, 1, 7)
    channels = DECODER
    yield from conv("decoder.model.1", channels, FEAT, 1)
    for i, rate in enumerate(reversed(RATES)):
        block = "decoder.model.%d" % (i + 2)
        yield block + ".block.0.alpha", (1, channels, 1)
        yield from conv(block + ".block.1", channels // 2, channels, 2 * rate, transposed=True)
        channels //= 2
        yield from residual_units(block, 2, channels)
    end = len(RATES) + 2
    yield "decoder.model.%d.alpha" % end, (1, channels, 1)
    yield from conv("decoder.model.%d" % (end + 1), 1, channels, 7)


def write(path, tensors, kind, values):
    import numpy
    size = {"BF16": 2, "F32": 4}[kind]
    header, offset = {}, 0
    for name, shape in tensors:
        length = size * int(numpy.prod(shape))
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            data = values(name, shape)
            out.write((data.view("u4") >> 16).astype("<u2").tobytes() if kind == "BF16" else data.tobytes())
    return offset


def make(folder):
    import numpy
    random = numpy.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)

    def of_model(name, shape):
        count = int(numpy.prod(shape))
        if "norm" in name:
            return numpy.ones(count, "f4")
        return random.standard_normal(count, "f4") * numpy.float32(0.02)

    def of_autoencoder(name, shape):
        count = int(numpy.prod(shape))
        if name.endswith(("weight_g", "alpha")):
            return numpy.ones(count, "f4")
        return random.standard_normal(count, "f4") * numpy.float32(0.01 if name.endswith("bias") else 1)

    size = write(folder / "model.safetensors", list(model()), "BF16", of_model)
    size += write(folder / "audiovae.safetensors", list(autoencoder()), "F32", of_autoencoder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(FIXTURE / name, folder / name)
    local = {"hidden_dim": HIDDEN, "ffn_dim": FFN, "num_heads": HEADS, "num_layers": LOCAL_LAYERS}
    flow = {"sigma_min": 1e-6, "solver": "euler", "t_scheduler": "log-norm", "inference_cfg_rate": 2.0}
    config = {
        "architecture": "voxcpm",
        "lm_config": {
            "bos_token_id": 1, "eos_token_id": 2, "hidden_size": HIDDEN, "intermediate_size": FFN,
            "max_position_embeddings": 32768, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
            "num_key_value_heads": KV, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": VOCAB, "scale_emb": 12,
            "dim_model_base": 256, "scale_depth": 1.4, "use_mup": False,
            "rope_scaling": {"type": "longrope", "long_factor": FACTORS, "short_factor": FACTORS,
                             "original_max_position_embeddings": 32768}},
        "patch_size": 2, "feat_dim": FEAT, "scalar_quantization_latent_dim": QUANTIZED, "scalar_quantization_scale": 9,
        "residual_lm_num_layers": RESIDUAL_LAYERS, "encoder_config": local, "dit_config": dict(local, cfm_config=flow),
        "max_length": 4096, "device": "cpu", "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    print("%s: %.2f GB" % (folder, size / 1e9))


def report(who, seconds, first, patches, whole):
    sound = patches * 0.08
    print("%s: %d patches (%.2f s of sound) whole in %.2f s, RTF %.2f; streamed in %.2f s, RTF %.2f, first sound after %.0f ms"
          % (who, patches, sound, whole, whole / sound, seconds, seconds / sound, first * 1000))


def by_aha(options):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    base = "http://127.0.0.1:%d" % port
    server = subprocess.Popen([options.bin, "serv", "-m", "openbmb/VoxCPM-0.5B", "--weight-path", str(options.folder), "-p", str(port),
                               "--dtype", "f32", "--device", "cpu", "--threads", str(options.threads), "--log", "warn"])

    def speak(patches, stream):
        body = {"input": TEXT, "seed": 1, "max_tokens": patches, "min_len": patches, "response_format": "pcm",
                "retry_badcase": False, "stream": stream}
        request = urllib.request.Request(base + "/v1/audio/speech", json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        started = time.time()
        with urllib.request.urlopen(request, timeout=600) as answer:
            first = None
            length = 0
            while piece := answer.read1(1 << 16):
                first = first or time.time() - started
                length += len(piece)
        assert length == patches * 1280 * 2, length
        return time.time() - started, first

    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(base + "/health", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        speak(2, False)
        whole, _ = speak(options.patches, False)
        seconds, first = speak(options.patches, True)
        report("aha", seconds, first, options.patches, whole)
    finally:
        server.terminate()
        server.wait()


def by_reference(options):
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    import transformers
    import voxcpm
    import voxcpm.model.voxcpm as implementation
    torch.set_num_threads(options.threads)
    if int(transformers.__version__.split(".")[0]) >= 5:
        implementation.LlamaTokenizerFast = transformers.PreTrainedTokenizerFast
    tts = voxcpm.VoxCPM.from_pretrained(str(options.folder), load_denoiser=False, optimize=False, device="cpu")

    def speak(patches):
        return tts.generate(text=TEXT, min_len=patches, max_len=patches, retry_badcase=False)

    speak(2)
    started = time.time()
    assert len(speak(options.patches)) == options.patches * 1280
    whole = time.time() - started
    started, first = time.time(), None
    for _ in tts.generate_streaming(text=TEXT, min_len=options.patches, max_len=options.patches, retry_badcase=False):
        first = first or time.time() - started
    report("reference", time.time() - started, first, options.patches, whole)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "aha", "reference"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bin", default="target/release/aha")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patches", type=int, default=25)
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder)
    elif options.what == "aha":
        by_aha(options)
    else:
        by_reference(options)


if __name__ == "__main__":
    sys.exit(main())
