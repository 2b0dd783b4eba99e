#!/usr/bin/env python3
"""Weights as they may have been before they were quantised: dither.py FILE.gguf OUT.gguf

Writes a GGUF file in f32 whose Q4_1 matrices are spread evenly over the steps of their codes. A quantiser that meets
weights on the grid of another one can repeat the grid; on these it has to do its work. Needs gguf and numpy.
"""

import sys

import gguf
import numpy as np


def main(source: str, target: str) -> None:
    reader = gguf.GGUFReader(source)
    replaced = {"general.architecture", "general.file_type", "general.quantization_version"}
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in replaced:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    random = np.random.default_rng(1)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1:
            # Blocks of 32 values begin with their step, a half float.
            blocks = np.ascontiguousarray(tensor.data).reshape(-1, 20)
            steps = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            noise = random.uniform(-0.5, 0.5, (len(blocks), 32)).astype(np.float32)
            values = values + (steps * noise).reshape(values.shape)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
