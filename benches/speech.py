#!/usr/bin/env python3
"""Speech recognition in the shape of Qwen3-ASR-0.6B with random weights: the front end and the encoder beside transformers,
and sixteen pieces decoded together beside one after the other.

    benches/speech.py make OUT                      # the checkpoint (1.6 GB, bf16) and recordings
    benches/speech.py encoder OUT [--threads 2]     # beside the reference: needs torch and transformers >= 5.23
    benches/speech.py batch OUT [--url http://127.0.0.1:10100] [--tokens 32]

`make` needs numpy. For `encoder`, build the example first: cargo build --release -p aha-models --example speech_encoder.
For `batch`, start the server on OUT first: aha serv -m OUT.
"""
import argparse
import concurrent.futures
import json
import os
import shutil
import struct
import subprocess
import time
import urllib.request
import wave
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parents[1]
FIXTURE = ROOT / "tests/fixtures/qwen3_asr/windows"
RATE, RECORDING_SECONDS, PIECES, PIECE_SECONDS = 16000, 30, 16, 10
AUDIO = {
    "d_model": 896, "encoder_layers": 18, "encoder_attention_heads": 14, "encoder_ffn_dim": 3584, "output_dim": 1024,
    "num_mel_bins": 128, "downsample_hidden_size": 480, "n_window": 50, "n_window_infer": 800, "activation_function": "gelu",
    "scale_embedding": False, "conv_chunksize": 500, "max_source_positions": 1500,
}
TEXT = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000, "max_position_embeddings": 65536,
    "vocab_size": 151936, "tie_word_embeddings": True, "attention_bias": False,
}


def shapes():
    d, c, f = AUDIO["d_model"], AUDIO["downsample_hidden_size"], AUDIO["encoder_ffn_dim"]
    tower = "thinker.audio_tower."
    for index, channels in ((1, 1), (2, c), (3, c)):
        yield tower + "conv2d%d.weight" % index, (c, channels, 3, 3)
        yield tower + "conv2d%d.bias" % index, (c,)
    yield tower + "conv_out.weight", (d, c * 16)
    for layer in range(AUDIO["encoder_layers"]):
        at = tower + "layers.%d." % layer
        linears = [("self_attn." + name, d, d) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
        for name, rows, columns in linears + [("fc1", f, d), ("fc2", d, f)]:
            yield at + name + ".weight", (rows, columns)
            yield at + name + ".bias", (rows,)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            yield at + norm + ".weight", (d,)
            yield at + norm + ".bias", (d,)
    for name in ("ln_post.weight", "ln_post.bias", "proj1.bias"):
        yield tower + name, (d,)
    yield tower + "proj1.weight", (d, d)
    yield tower + "proj2.weight", (AUDIO["output_dim"], d)
    yield tower + "proj2.bias", (AUDIO["output_dim"],)
    h, m, hd = TEXT["hidden_size"], TEXT["intermediate_size"], TEXT["head_dim"]
    q, kv = TEXT["num_attention_heads"] * hd, TEXT["num_key_value_heads"] * hd
    yield "thinker.model.embed_tokens.weight", (TEXT["vocab_size"], h)
    for layer in range(TEXT["num_hidden_layers"]):
        at = "thinker.model.layers.%d." % layer
        for name, shape in (("self_attn.q_proj", (q, h)), ("self_attn.k_proj", (kv, h)), ("self_attn.v_proj", (kv, h)),
                            ("self_attn.o_proj", (h, q)), ("mlp.gate_proj", (m, h)), ("mlp.up_proj", (m, h)),
                            ("mlp.down_proj", (h, m)), ("self_attn.q_norm", (hd,)), ("self_attn.k_norm", (hd,)),
                            ("input_layernorm", (h,)), ("post_attention_layernorm", (h,))):
            yield at + name + ".weight", shape
    yield "thinker.model.norm.weight", (h,)


def values(name, shape, random):
    """Small random numbers; ones where norms multiply."""
    count = int(numpy.prod(shape))
    norm = len(shape) == 1 and name.endswith("weight")
    return numpy.ones(count, "f4") if norm else random.standard_normal(count, "f4") * 0.02


def make(out):
    out.mkdir(parents=True, exist_ok=True)
    tensors, header, offset = list(shapes()), {}, 0
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
            file.write((values(name, shape, random).view("u4") >> 16).astype("<u2").tobytes())
    # The fixture's tokenizer: it only decides what the noise looks like.
    for path in FIXTURE.glob("*.json"):
        if path.name not in ("config.json", "golden.json"):
            shutil.copyfile(path, out / path.name)
    shutil.copyfile(FIXTURE / "merges.txt", out / "merges.txt")
    config = json.load(open(FIXTURE / "config.json"))
    config["thinker_config"]["audio_config"] = AUDIO
    config["thinker_config"]["text_config"] = TEXT
    (out / "config.json").write_text(json.dumps(config, indent=1))
    record(out / "recording.wav", RECORDING_SECONDS, 150, random)
    # Each is heard once: a second time the caches would know it.
    for piece in range(2 * PIECES):
        record(out / ("piece_%02d.wav" % piece), PIECE_SECONDS, 140 + 20 * piece, random)
    print("%s: %.2f GB" % (out, offset / 1e9))


def record(path, seconds, pitch, random):
    """A humming that comes and goes, with some noise."""
    at = numpy.arange(RATE * seconds) / RATE
    sound = 0.4 * numpy.sin(2 * numpy.pi * pitch * at) * numpy.sin(7 * at) ** 2 + 0.01 * random.standard_normal(len(at))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound * 32767).astype("<i2").tobytes())


def report(name, seconds):
    ordered = sorted(seconds)
    print("%-24s median %.3f s, rounds %s" % (name, ordered[len(ordered) // 2], ", ".join("%.3f" % s for s in seconds)))


def encoder(out, threads, rounds, binary):
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    recording = out / "recording.wav"
    done = subprocess.run([binary, out, recording, str(rounds)], env=environment, check=True, capture_output=True, text=True)
    own = json.loads(done.stdout.splitlines()[-1])
    report("front end, aha", own["front_end"])
    report("encoder, aha", own["encoder"])

    import torch
    from transformers import Qwen3ASRFeatureExtractor
    from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig
    from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder

    torch.set_num_threads(threads)
    keys = {key: value for key, value in AUDIO.items() if key not in ("conv_chunksize", "max_source_positions")}
    config = Qwen3ASREncoderConfig(**keys, max_position_embeddings=13)
    config._attn_implementation = "sdpa"
    tower = Qwen3ASREncoder(config).float().eval()
    sound = numpy.frombuffer(wave.open(str(recording)).readframes(RATE * RECORDING_SECONDS), "<i2").astype("f4") / 32768
    extractor, times = Qwen3ASRFeatureExtractor(), ([], [])
    for _ in range(rounds):
        started = time.perf_counter()
        features = extractor([sound], sampling_rate=RATE, return_tensors="pt", padding=True, truncation=False,
                             return_attention_mask=True)
        times[0].append(time.perf_counter() - started)
        mask = features.get("input_features_mask", features.get("attention_mask"))
        started = time.perf_counter()
        with torch.no_grad():
            tower(input_features=features["input_features"], input_features_mask=mask)
        times[1].append(time.perf_counter() - started)
    report("front end, reference", times[0])
    report("encoder, reference", times[1])


def transcribe(url, path, tokens):
    """Posts one recording; `ignore_eos` makes the noise of random weights as long as a transcript."""
    boundary = "aha-%d" % os.getpid()
    fields = {"temperature": "0", "max_tokens": str(tokens), "ignore_eos": "true", "response_format": "json"}
    body = b""
    for name, value in fields.items():
        body += ("--%s\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n%s\r\n" % (boundary, name, value)).encode()
    body += ("--%s\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n" % boundary).encode()
    body += path.read_bytes() + ("\r\n--%s--\r\n" % boundary).encode()
    headers = {"Content-Type": "multipart/form-data; boundary=" + boundary}
    request = urllib.request.Request(url + "/v1/audio/transcriptions", body, headers)
    with urllib.request.urlopen(request) as answer:
        answer.read()


def batch(out, url, tokens):
    recordings = sorted(out.glob("piece_*.wav"))
    transcribe(url, out / "recording.wav", 2)
    seconds = PIECES * PIECE_SECONDS
    rates = {}
    for name, workers, pieces in (("one by one", 1, recordings[:PIECES]), ("together", PIECES, recordings[PIECES:])):
        started = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda path: transcribe(url, path, tokens), pieces))
        rates[name] = seconds / (time.perf_counter() - started)
        print("%d pieces of %d s %s: %.2f times real time" % (len(pieces), PIECE_SECONDS, name, rates[name]))
    print("together / one by one: %.2f" % (rates["together"] / rates["one by one"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "encoder", "batch"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/examples/speech_encoder")
    parser.add_argument("--url", default="http://127.0.0.1:10100")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    if options.what == "make":
        make(options.out)
    elif options.what == "encoder":
        encoder(options.out, options.threads, options.rounds, options.binary)
    else:
        batch(options.out, options.url, options.tokens)


if __name__ == "__main__":
    main()
