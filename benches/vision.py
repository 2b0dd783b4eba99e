#!/usr/bin/env python3
"""What a picture costs before the language model: aha beside Pillow and PyTorch, in turn.

    cargo build --release -p aha-models --example vision
    benches/vision.py [--example target/release/examples/vision] [--threads 2] [--rounds 3]

A 20-megapixel JPEG is decoded, resized by Qwen3-VL's rule (bicubic) and normalised; Pillow and numpy do the same steps.
A 1024x768 picture goes through a vision tower in Qwen3-VL-2B's shape with random weights in f32; transformers runs the
same weights. Needs: pip install torch transformers safetensors pillow numpy
"""
import argparse
import io
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

SHAPE = {"deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1024,
         "in_channels": 3, "intermediate_size": 4096, "model_type": "qwen3_vl", "num_heads": 16,
         "num_position_embeddings": 2304, "out_hidden_size": 2048, "patch_size": 16, "spatial_merge_size": 2,
         "temporal_patch_size": 2}
IDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653}


def photo(width, height, seed):
    """A smooth scene with noise, as a camera gives it."""
    import numpy
    from PIL import Image
    draw = numpy.random.default_rng(seed)
    coarse = draw.integers(0, 256, (height // 64 + 2, width // 64 + 2, 3), dtype=numpy.uint8)
    smooth = numpy.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(numpy.int16)
    noise = draw.integers(-12, 13, smooth.shape, dtype=numpy.int16)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(numpy.uint8))


def smart_resize(width, height, factor=32, least=65536, most=16777216):
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > most:
        scale = (height * width / most) ** 0.5
        rows, columns = (max(factor, int(side / scale / factor) * factor) for side in (height, width))
    elif rows * columns < least:
        scale = (least / (height * width)) ** 0.5
        rows, columns = (-int(-side * scale // factor) * factor for side in (height, width))
    return columns, rows


def by_pillow(data):
    import numpy
    from PIL import Image
    laps, began = [], time.perf_counter()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    laps.append(time.perf_counter() - began)
    began = time.perf_counter()
    image = image.resize(smart_resize(*image.size), Image.Resampling.BICUBIC)
    laps.append(time.perf_counter() - began)
    began = time.perf_counter()
    values = (numpy.asarray(image, dtype=numpy.float32) * numpy.float32(1 / 127.5) - numpy.float32(1)).transpose(2, 0, 1)
    numpy.ascontiguousarray(values)
    laps.append(time.perf_counter() - began)
    return laps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", default="target/release/examples/vision")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    import numpy
    import torch
    from safetensors.torch import load_file, save_file
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    config = Qwen3VLVisionConfig(**SHAPE)
    config._attn_implementation = "sdpa"
    tower = Qwen3VLVisionModel(config).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file({"model.visual." + key: value.contiguous() for key, value in tower.state_dict().items()},
                  folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({
            "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "vision_config": SHAPE, **IDS}))
        (folder / "preprocessor_config.json").write_text(json.dumps({
            "patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
        photo(5472, 3648, 1).save(folder / "photo.jpg", quality=90)
        picture = photo(1024, 768, 2)
        picture.save(folder / "picture.png")
        data = (folder / "photo.jpg").read_bytes()

        values = torch.from_numpy(numpy.asarray(picture, dtype=numpy.float32) / 127.5 - 1).permute(2, 0, 1)
        rows, columns = 768 // 16, 1024 // 16
        blocks = values.reshape(3, rows // 2, 2, 16, columns // 2, 2, 16).permute(1, 4, 2, 5, 0, 3, 6)
        pixels = blocks.unsqueeze(5).expand(-1, -1, -1, -1, -1, 2, -1, -1).reshape(rows * columns, -1).contiguous()
        grid = torch.tensor([[1, rows, columns]])

        ours = {"preparing": [], "tower": []}
        theirs = {"preparing": [], "tower": []}
        for _ in range(options.rounds):
            run = subprocess.run([options.example, name, str(folder / "photo.jpg"), str(folder / "picture.png"), "1",
                                  str(folder / "features")], check=True, capture_output=True, text=True)
            for key, found in json.loads(run.stdout).items():
                ours[key] += found
            theirs["preparing"].append(by_pillow(data))
            with torch.inference_mode():
                began = time.perf_counter()
                output = tower(pixels, grid_thw=grid)
                theirs["tower"].append(time.perf_counter() - began)
        merged = output.pooler_output if hasattr(output, "pooler_output") else output[0]
        found = load_file(folder / "features")["features"][:, :merged.shape[1]]
        size = merged.square().mean().sqrt()
        print("largest difference of the features: %.1e of their size" % ((found - merged).abs().max() / size))

    def row(name, own, other):
        own, other = statistics.median(own), statistics.median(other)
        print("%-34s %8.3f s %8.3f s   %.2f times" % (name, own, other, own / other))
    print("%-34s %10s %10s" % ("median of %d rounds" % options.rounds, "aha", "reference"))
    for index, name in enumerate(["decode 5472x3648", "resize", "normalise"]):
        row(name, [lap[index] for lap in ours["preparing"]], [lap[index] for lap in theirs["preparing"]])
    row("all three", [sum(lap) for lap in ours["preparing"]], [sum(lap) for lap in theirs["preparing"]])
    row("vision tower, 1024x768", ours["tower"], theirs["tower"])


if __name__ == "__main__":
    main()
