#!/usr/bin/env python3
"""Writes a random bf16 checkpoint in the shape of a released Qwen3, for measuring speed and memory.

    benches/make_checkpoint.py OUT [--size 0.6b|1.7b|4b]

Needs numpy. Weights are small random numbers, so the text is noise; shapes, types and file layout are the release's. The
tokenizer is that of a test fixture: it only decides what the noise looks like.
"""
import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy

# hidden, intermediate, layers, heads, kv heads
SIZES = {"0.6b": (1024, 3072, 28, 16, 8), "1.7b": (2048, 6144, 28, 16, 8), "4b": (2560, 9728, 36, 32, 8)}
VOCAB, HEAD_DIM = 151936, 128
FIXTURE = Path(__file__).resolve().parents[1] / "tests/fixtures/qwen3/sharded"


def shapes(hidden, intermediate, layers, heads, kv_heads):
    yield "model.embed_tokens.weight", (VOCAB, hidden)
    for i in range(layers):
        layer = "model.layers.%d." % i
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield layer + "self_attn.q_proj.weight", (heads * HEAD_DIM, hidden)
        yield layer + "self_attn.k_proj.weight", (kv_heads * HEAD_DIM, hidden)
        yield layer + "self_attn.v_proj.weight", (kv_heads * HEAD_DIM, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, heads * HEAD_DIM)
        yield layer + "self_attn.q_norm.weight", (HEAD_DIM,)
        yield layer + "self_attn.k_norm.weight", (HEAD_DIM,)
        yield layer + "mlp.gate_proj.weight", (intermediate, hidden)
        yield layer + "mlp.up_proj.weight", (intermediate, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, intermediate)
    yield "model.norm.weight", (hidden,)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="0.6b")
    options = parser.parse_args()
    hidden, intermediate, layers, heads, kv_heads = SIZES[options.size]
    options.out.mkdir(parents=True, exist_ok=True)

    header, offset = {}, 0
    tensors = list(shapes(hidden, intermediate, layers, heads, kv_heads))
    for name, shape in tensors:
        size = 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = numpy.random.default_rng(1)
    with open(options.out / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            count = int(numpy.prod(shape))
            values = numpy.ones(count, "f4") if len(shape) == 1 else random.standard_normal(count, "f4") * 0.02
            out.write((values.view("u4") >> 16).astype("<u2").tobytes())

    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(FIXTURE / name, options.out / name)
    config = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": HEAD_DIM, "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": intermediate, "max_position_embeddings": 40960, "model_type": "qwen3",
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "vocab_size": VOCAB, "eos_token_id": json.load(open(FIXTURE / "config.json"))["eos_token_id"],
    }
    (options.out / "config.json").write_text(json.dumps(config, indent=1))
    print("%s: %.2f GB" % (options.out, offset / 1e9))


if __name__ == "__main__":
    main()
