#!/usr/bin/env python3
"""What stands around the language models beside PyTorch on the CPU, in turn in one run:

    vision  the vision tower of Qwen3-VL-2B's shape, a picture of 1024x768
    speech  the audio encoder of Qwen3-ASR-0.6B's shape, 30 s of sound
    codec   the decoder of VoxCPM-0.5B's audio autoencoder, 5 s of sound
    matte   RMBG-2.0's shape, a picture of 1024x1024

    cargo build --release -p aha-models --example towers
    benches/towers.py FOLDER [vision speech codec matte] [--threads 2] [--rounds 3]

Weights are random, stored in the type of the release (bf16 for vision and speech, f32 for codec and matte), which aha takes
them in; PyTorch computes the same weights in f32. FOLDER keeps the checkpoints from run to run (4 GB in all). Each line names
the numbers that came out, whose root mean squares must agree. Needs numpy, pillow, safetensors, torch and transformers;
codec: pip install --no-deps voxcpm==2.0.3, and pydantic; matte: torchvision.
"""
import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
KINDS = ["vision", "speech", "codec", "matte"]
LATENT_WIDTH, LATENTS_A_SECOND, CODEC_SECONDS = 64, 25, 5


def vision(folder):
    """A checkpoint, its input for aha, and a function that runs the reference."""
    import torch
    import vision as bench
    import numpy
    from PIL import Image
    from safetensors.torch import load_file, save_file
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
    config = Qwen3VLVisionConfig(**bench.SHAPE)
    config._attn_implementation = "sdpa"
    torch.manual_seed(1)
    tower = Qwen3VLVisionModel(config).eval()
    if not (folder / "model.safetensors").exists():
        stored = {"model.visual." + key: value.bfloat16().contiguous() for key, value in tower.state_dict().items()}
        save_file(stored, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({
            "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "dtype": "bfloat16",
            "vision_config": bench.SHAPE, **bench.IDS}))
        (folder / "preprocessor_config.json").write_text(json.dumps({
            "patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
        bench.photo(1024, 768, 2).save(folder / "picture.png")
    stored = load_file(folder / "model.safetensors")
    tower.load_state_dict({key.removeprefix("model.visual."): value.float() for key, value in stored.items()})
    picture = numpy.asarray(Image.open(folder / "picture.png"), dtype=numpy.float32)
    values = torch.from_numpy(picture / 127.5 - 1).permute(2, 0, 1)
    rows, columns = 768 // 16, 1024 // 16
    blocks = values.reshape(3, rows // 2, 2, 16, columns // 2, 2, 16).permute(1, 4, 2, 5, 0, 3, 6)
    pixels = blocks.unsqueeze(5).expand(-1, -1, -1, -1, -1, 2, -1, -1).reshape(rows * columns, -1).contiguous()
    grid = torch.tensor([[1, rows, columns]])

    def run():
        output = tower(pixels, grid_thw=grid)
        return torch.cat([output.pooler_output, *output.deepstack_features], 1)
    return folder / "picture.png", run


def speech(folder):
    import numpy
    import speech as bench
    import torch
    import wave
    from safetensors.torch import load_file
    from transformers import Qwen3ASRFeatureExtractor
    from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig
    from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder
    if not (folder / "recording.wav").exists():
        bench.make(folder)
    keys = {key: value for key, value in bench.AUDIO.items() if key not in ("conv_chunksize", "max_source_positions")}
    config = Qwen3ASREncoderConfig(**keys, max_position_embeddings=13)
    config._attn_implementation = "sdpa"
    tower = Qwen3ASREncoder(config).float().eval()
    stored = {key.removeprefix("thinker.audio_tower."): value.float()
              for key, value in load_file(folder / "model.safetensors").items() if "audio_tower" in key}
    # transformers keeps the projector outside of the encoder.
    projector = {name: stored.pop(name) for name in [name for name in stored if name.startswith("proj")]}
    tower.load_state_dict(stored)
    data = wave.open(str(folder / "recording.wav")).readframes(bench.RATE * bench.RECORDING_SECONDS)
    sound = numpy.frombuffer(data, "<i2").astype("f4") / 32768
    features = Qwen3ASRFeatureExtractor()([sound], sampling_rate=bench.RATE, return_tensors="pt", padding=True,
                                          truncation=False, return_attention_mask=True)
    mask = features.get("input_features_mask", features.get("attention_mask"))

    def run():
        hidden = tower(input_features=features["input_features"], input_features_mask=mask).last_hidden_state
        linear = torch.nn.functional.linear
        inner = torch.nn.functional.gelu(linear(hidden, projector["proj1.weight"], projector["proj1.bias"]))
        return linear(inner, projector["proj2.weight"], projector["proj2.bias"])
    return folder / "recording.wav", run


def codec(folder):
    import synthesis as bench
    import torch
    from safetensors.torch import load_file
    if not (folder / "config.json").exists():
        bench.make(folder)
    # The package's own entry brings everything that the rest of it needs.
    package = importlib.util.find_spec("voxcpm").submodule_search_locations[0]
    path = os.path.join(package, "modules/audiovae/audio_vae.py")
    spec = importlib.util.spec_from_file_location("audio_vae", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vae = module.AudioVAE().eval()
    vae.load_state_dict(load_file(folder / "audiovae.safetensors"))
    count = LATENTS_A_SECOND * CODEC_SECONDS
    index = torch.arange(count * LATENT_WIDTH, dtype=torch.float32)
    latents = torch.sin(index * 0.37).reshape(count, LATENT_WIDTH).t()[None].contiguous()
    return count, lambda: vae.decode(latents)


def matte(folder):
    import background_removal as bench
    import birefnet
    import numpy
    import torch
    if not (folder / "model.safetensors").exists():
        bench.make(str(folder))
        bench.picture(1).save(folder / "picture.png")
    network = birefnet.load(folder)
    pixels = torch.from_numpy(numpy.array(bench.picture(1))).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((pixels - mean) / std).contiguous()
    return folder / "picture.png", lambda: torch.sigmoid(network(pixels))


class Aha:
    """The example, which runs once for every line that it gets."""

    def __init__(self, example, kind, folder, given, threads):
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen([example, kind, folder, str(given)], env=environment, text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == "ready\n", "the example did not start"

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, size = self.process.stdout.readline().split()
        return float(seconds), float(size)

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def compare(kind, options):
    import torch
    folder = options.folder / kind
    folder.mkdir(parents=True, exist_ok=True)
    given, reference = globals()[kind](folder)
    aha = Aha(options.example, kind, folder, given, options.threads)
    before = Aha(options.before, kind, folder, given, options.threads) if options.before else None
    own, other, earlier, sizes = [], [], [], None
    try:
        with torch.inference_mode():
            for round_ in range(options.rounds + options.warmup):
                seconds, size = aha.run()
                if before and round_ >= options.warmup:
                    earlier.append(before.run()[0])
                began = time.perf_counter()
                output = reference()
                elapsed = time.perf_counter() - began
                sizes = (size, output.square().mean().sqrt().item())
                if round_ >= options.warmup:
                    own.append(seconds)
                    other.append(elapsed)
    finally:
        aha.stop()
        if before:
            before.stop()
    ratio = statistics.median(other) / statistics.median(own)
    rounds = lambda seconds: ", ".join("%.3f" % second for second in seconds)
    print("| %s | %.3f | %.3f | %.2f | %s | %s | %.4g, %.4g |" % (
        kind, statistics.median(own), statistics.median(other), ratio, rounds(own), rounds(other), *sizes), flush=True)
    if earlier:
        print("| %s, before | %.3f | | %.2f | %s | | |" % (
            kind, statistics.median(earlier), statistics.median(other) / statistics.median(earlier), rounds(earlier)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []])
    parser.add_argument("--example", default=str(HERE.parent / "target/release/examples/towers"))
    parser.add_argument("--before", help="an earlier build of the example, to run in turn as well")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those that count")
    parser.add_argument("--make", action="store_true", help="only make the checkpoints")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    torch.set_num_threads(options.threads)
    kinds = options.kinds or KINDS
    if options.make:
        for kind in kinds:
            folder = options.folder / kind
            folder.mkdir(parents=True, exist_ok=True)
            globals()[kind](folder)
        return
    print("| tower | aha, s | PyTorch, s | times as fast | aha's rounds | PyTorch's rounds | root mean squares |")
    print("|---|---:|---:|---:|---|---|---|")
    for kind in kinds:
        compare(kind, options)


if __name__ == "__main__":
    main()
