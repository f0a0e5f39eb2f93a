#!/usr/bin/env python3
"""An independent reader of snapshots, written from lib/snapshot/README.md and lib/cache/quantise.c's description alone.

As a script it prints what a snapshot says as JSON. zstd and XXH3 come from the system's libraries through ctypes.
"""
import ctypes
import ctypes.util
import json
import struct
import sys

PAGE_TOKENS = 64
TYPES = {1: "f32", 2: "f16", 3: "q8", 4: "q6"}
WIDTHS = {"f32": 4, "f16": 2, "q8": 1, "q6": 1}


class Damaged(Exception):
    pass


class XXH128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


xxhash = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
xxhash.XXH3_128bits_withSeed.restype = XXH128
xxhash.XXH3_128bits_withSeed.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
xxhash.XXH3_64bits.restype = ctypes.c_uint64
xxhash.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
zstd = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
zstd.ZSTD_decompress.restype = ctypes.c_size_t
zstd.ZSTD_decompress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
zstd.ZSTD_isError.argtypes = [ctypes.c_size_t]


def digest(data, seed=0):
    h = xxhash.XXH3_128bits_withSeed(data, len(data), seed)
    return struct.pack("<QQ", h.low, h.high)


def row_bytes(kind, lora, rope):
    if kind in ("f32", "f16"):
        return WIDTHS[kind] * (lora + rope)
    if kind == "q8":
        return 2 * rope + 2 * -(-lora // 64) + lora
    latent, rest = lora - lora % 2, rope + lora % 2
    return 2 * -(-latent // 128) + 2 * -(-rest // 16) + 11 * -(-(latent // 2) // 8) + rest


def bf16(data, index):
    return struct.unpack("<f", b"\0\0" + data[2 * index:2 * index + 2])[0]


def rotate(x, block):
    """The Walsh-Hadamard transform of every `block` elements, over sqrt(block)."""
    x = list(x)
    h = 1
    while h < block:
        for i in range(0, len(x), 2 * h):
            for j in range(i, i + h):
                x[j], x[j + h] = x[j] + x[j + h], x[j] - x[j + h]
        h *= 2
    return [v / block ** 0.5 for v in x]


def decode_row(kind, lora, rope, row):
    """The latent, as the model has it, and the RoPE part behind it."""
    if kind == "f32":
        return list(struct.unpack("<%df" % (lora + rope), row))
    if kind == "f16":
        return list(struct.unpack("<%de" % (lora + rope), row))
    if kind == "q8":
        scales, codes = row[2 * rope:], row[2 * rope + 2 * -(-lora // 64):]
        latent = [struct.unpack_from("<b", codes, i)[0] * bf16(scales, i // 64) for i in range(lora)]
        return latent + list(struct.unpack("<%de" % rope, row[:2 * rope]))
    n, rest = lora - lora % 2, rope + lora % 2
    pairs_at = 2 * -(-n // 128) + 2 * -(-rest // 16)
    half, eighth = n // 2, -(-(n // 2) // 8)
    low = row[pairs_at:]
    middle, top = low[8 * eighth:], low[10 * eighth:]
    codes = [0] * n
    for i in range(half):
        code = low[i] | (middle[i % (2 * eighth)] >> 2 * (i // (2 * eighth)) & 3) << 8 | (top[i % eighth] >> i // eighth & 1) << 10
        codes[i], codes[i + half] = code % 45 - 22, code // 45 - 22
    latent = [codes[i] * bf16(row, i // 128) for i in range(n)]
    rope_scales, rope_codes = row[2 * -(-n // 128):], row[pairs_at + 11 * eighth:]
    tail = [struct.unpack_from("<b", rope_codes, i)[0] * bf16(rope_scales, i // 16) for i in range(rest)]
    whole = latent + tail
    return rotate(whole[:lora], lora & -lora) + whole[lora:]


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        if self.at + size > len(self.data):
            raise Damaged("cut short at byte %d" % self.at)
        self.at += size
        return self.data[self.at - size:self.at]

    def header(self, magic, size=64):
        header = self.take(size)
        if not header.startswith(magic) or digest(header[:-16]) != header[-16:]:
            raise Damaged("header at byte %d" % (self.at - size))
        return header


def read(data):
    r = Reader(data)
    header = r.header(b"DSV2SNAP", 128)
    version, kind, layers, lora, rope, vocab, config, tokenizer, weights = struct.unpack("<6I3Q", header[8:56])
    if version != 2 or any(header[56:112]):
        raise Damaged("version %d" % version)
    kind = TYPES[kind]
    size = row_bytes(kind, lora, rope)
    out = {"version": version, "type": kind, "layers": layers, "kv_lora_rank": lora, "qk_rope_head_dim": rope, "vocab_size": vocab,
           "config": config, "tokenizer": tokenizer, "weights": weights, "fingerprint": xxhash.XXH3_64bits(header[32:56], 24), "tokens": [], "saves": 0, "stored_bytes": 0}
    rows = {}  # (layer, token): the stored row
    while r.at < len(data) and any(data[r.at:r.at + 64]):
        sequence, flags, first, end, n_biases, zero = struct.unpack("<2I4Q", r.header(b"DSV2SAVE")[8:48])
        if sequence != out["saves"] or first != len(out["tokens"]) or end < first or flags > 1 or zero != 0:
            raise Damaged("save %d" % sequence)
        state = r.take(72 + 8 * n_biases + (4 * vocab if flags & 1 else 0) + 4 * (end - first))
        if digest(state) != r.take(16):
            raise Damaged("state of save %d" % sequence)
        names = ("repetition_penalty", "presence_penalty", "frequency_penalty", "penalty_window", "temperature", "top_k", "top_p", "min_p",
                 "seed", "random0", "random1", "random2", "random3")
        out["sampler"] = dict(zip(names, struct.unpack("<3fIfI2f5Q", state[:72])))
        out["biases"] = [struct.unpack_from("<if", state, 72 + 8 * i) for i in range(n_biases)]
        at = 72 + 8 * n_biases
        out["logits"] = list(struct.unpack_from("<%df" % vocab, state, at)) if flags & 1 else None
        out["tokens"] += struct.unpack("<%di" % (end - first), state[len(state) - 4 * (end - first):])
        while first < end:
            first = read_frame(r, out, rows, first, end, size)
        if any(r.take(-r.at % 64)):
            raise Damaged("padding before byte %d" % r.at)
        out["saves"] += 1
    if out["saves"] == 0:
        raise Damaged("no save")
    out["rows"] = rows
    return out


def read_frame(r, out, rows, first, end, size):
    header = r.take(64)
    magic, encoding, token, n, zero, stored_bytes = struct.unpack("<4sIQIIQ", header[:32])
    if magic != b"ROWS" or token != first or zero != 0 or not 0 < n <= min(end - first, PAGE_TOKENS - first % PAGE_TOKENS):
        raise Damaged("frame at token %d" % first)
    stored, raw_bytes = r.take(stored_bytes), n * size * out["layers"]
    if digest(stored, xxhash.XXH3_64bits(header[:48], 48)) != header[48:]:
        raise Damaged("frame of token %d" % first)
    raw = stored
    if encoding == 1:
        buffer = ctypes.create_string_buffer(raw_bytes)
        got = zstd.ZSTD_decompress(buffer, raw_bytes, stored, stored_bytes)
        if zstd.ZSTD_isError(got) or got != raw_bytes:
            raise Damaged("zstd of token %d" % first)
        width = WIDTHS[out["type"]]
        count = raw_bytes // width
        raw = bytearray(raw_bytes)
        for k in range(width):
            raw[k::width] = buffer.raw[k * count:(k + 1) * count]
        raw = bytes(raw)
    if len(raw) != raw_bytes or digest(raw) != header[32:48]:
        raise Damaged("rows of token %d" % first)
    for layer in range(out["layers"]):
        for t in range(n):
            start = (layer * n + t) * size
            rows[layer, first + t] = raw[start:start + size]
    out["stored_bytes"] += stored_bytes
    return first + n


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as f:
        snapshot = read(f.read())
    snapshot["rows"] = len(snapshot["rows"])
    json.dump(snapshot, sys.stdout)
