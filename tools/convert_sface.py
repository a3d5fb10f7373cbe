"""Turn the OpenCV Zoo's int8 SFace (ONNX) into the float16 safetensors file that ``dawn.models.judges.sface`` reads.

    python tools/convert_sface.py face_recognition_sface_2021dec_int8bq.onnx sface.safetensors

Only the tensors of the ONNX file are read, not its graph, which ``SFace`` rebuilds by hand; a reader for those few
protobuf fields is shorter than a dependency. Weights are block-quantised: value = (int8 - zero point) x block scale.
Batch normalisations are folded into the convolution (or matrix) beside them.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from dawn.errors import CheckpointError
from dawn.models.judges.sface import STAGE_CHANNELS

Arrays = dict[str, NDArray[np.generic]]

# onnx.proto: numbers of the fields and of the element types that occur.
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_DIMS, _TYPE, _FLOATS, _INTS, _NAME, _RAW = 1, 2, 4, 5, 8, 9
_DTYPES: dict[int, np.dtype[np.generic]] = {1: np.dtype("<f4"), 3: np.dtype("i1"), 7: np.dtype("<i8")}

_CONV_EPSILON, _HEAD_EPSILON = 1e-3, 2e-5


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one protobuf message: number, and an integer or the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + size > len(data):
            raise ValueError("truncated")
        yield key >> 3, data[at : at + size]
        at += size


def _varints(value: int | memoryview) -> list[int]:
    """A repeated integer field comes one by one or packed."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _tensor(data: memoryview) -> tuple[str, NDArray[np.generic]]:
    dims: list[int] = []
    ints: list[int] = []
    floats, raw = bytearray(), b""
    name, kind = "", 0
    for number, value in _fields(data):
        if number == _DIMS:
            dims += _varints(value)
        elif number == _INTS:
            ints += _varints(value)
        elif number == _TYPE:
            kind = _varints(value)[0]
        elif isinstance(value, memoryview):
            if number == _FLOATS:
                floats += value
            elif number == _NAME:
                name = bytes(value).decode()
            elif number == _RAW:
                raw = bytes(value)
    dtype = _DTYPES[kind]
    if ints and not raw:  # int8 may be kept as 32-bit varints, negative ones as their 64-bit complement
        return name, np.array(ints, np.uint64).astype(np.int64).astype(dtype).reshape(dims)
    return name, np.frombuffer(raw or bytes(floats), dtype).reshape(dims)


def read_initializers(onnx_bytes: bytes) -> Arrays:
    """Name -> array of every constant tensor in an ONNX file (float32, int8, int64). Raises: CheckpointError."""
    try:
        graphs = [value for number, value in _fields(memoryview(onnx_bytes)) if number == _MODEL_GRAPH]
        fields = [field for graph in graphs if isinstance(graph, memoryview) for field in _fields(graph)]
        return dict(_tensor(v) for n, v in fields if n == _GRAPH_INITIALIZER and isinstance(v, memoryview))
    except (KeyError, IndexError, ValueError, struct.error) as error:
        raise CheckpointError(f"not a readable ONNX file ({error}); fetch it again") from error


def _dequantised(arrays: Arrays, name: str) -> Tensor:
    """(rows, columns) or (columns,) float64; blocks run along the last axis."""
    values, scales, zeros = (
        arrays[f"{name}_{part}"].astype(np.float64) for part in ("quantized", "scales", "zero_point")
    )
    block = -(-values.shape[-1] // scales.shape[-1])
    spread = [np.repeat(x, block, axis=-1)[..., : values.shape[-1]] for x in (scales, zeros)]
    return torch.from_numpy((values - spread[1]) * spread[0])


def _norm(arrays: Arrays, name: str, epsilon: float) -> tuple[Tensor, Tensor]:
    """Batch normalisation as (gain, offset), float64."""
    gamma, beta, mean, var = (
        torch.from_numpy(arrays[f"{name}_{part}"].astype(np.float64))
        for part in ("gamma", "beta", "moving_mean", "moving_var")
    )
    gain = gamma / (var + epsilon).sqrt()
    return gain, beta - mean * gain


def _head(arrays: Arrays) -> tuple[Tensor, Tensor]:
    """bn1, the matrix and fc1 as one matrix and one bias. bn1 acts on channels, the matrix on flattened (C, 7, 7)."""
    weight, bias = _dequantised(arrays, "pre_fc1_weight"), _dequantised(arrays, "pre_fc1_bias")
    gain, offset = _norm(arrays, "bn1", _HEAD_EPSILON)
    weight = weight.reshape(len(weight), len(gain), -1)
    bias = bias + (weight.sum(2) @ offset)
    weight = (weight * gain[:, None]).flatten(1)
    gain, offset = _norm(arrays, "fc1", _HEAD_EPSILON)
    return weight * gain[:, None], bias * gain + offset


def convert(onnx_bytes: bytes) -> dict[str, Tensor]:
    """Contents of the ONNX file -> float32 state dict of ``dawn.models.judges.sface.SFace``.

    Raises: CheckpointError if the file is damaged or not this network.
    """
    arrays = read_initializers(onnx_bytes)
    state: dict[str, Tensor] = {}
    block = 0
    try:
        for stage, widths in enumerate(STAGE_CHANNELS):
            unit = 0
            for _ in widths:
                block += 1
                for name in (f"conv_{block}_dw", f"conv_{block}") if block > 1 else ("conv_1",):
                    weight = _dequantised(arrays, f"{name}_conv2d_weight")
                    shape = arrays[f"{name}_conv2d_weight_shape"].astype(int).tolist()
                    gain, offset = _norm(arrays, f"{name}_batchnorm", _CONV_EPSILON)
                    key = f"stages.{stage}.{unit}"
                    state[f"{key}.conv.weight"] = (weight * gain[:, None]).reshape(shape)
                    state[f"{key}.conv.bias"] = offset
                    state[f"{key}.act.weight"] = torch.from_numpy(arrays[f"{name}_relu_gamma"].copy()).flatten()
                    unit += 1
        state["head.weight"], state["head.bias"] = _head(arrays)
    except KeyError as error:
        raise CheckpointError(f"no tensor {error} in the ONNX file: not SFace 2021dec int8bq") from error
    return {name: value.float().contiguous() for name, value in state.items()}


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: python tools/convert_sface.py IN.onnx OUT.safetensors")
    state = convert(Path(sys.argv[1]).read_bytes())
    save_file({name: value.half() for name, value in state.items()}, sys.argv[2])
    print(f"{sys.argv[2]}: {sum(value.numel() for value in state.values()):,} float16 values")


if __name__ == "__main__":
    main()
