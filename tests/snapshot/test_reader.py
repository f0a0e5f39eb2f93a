#!/usr/bin/env python3
"""The independent reader finds in snapshots what the library put there: test_reader.py WRITE_SNAPSHOTS GOLDENS"""
import os
import struct
import subprocess
import sys
import tempfile
import unittest

import read_snapshot

WRITER, GOLDENS = sys.argv[1:3]
FIRST, SECOND = 70, 63


def floats(path):
    with open(path, "rb") as f:
        data = f.read()
    return struct.unpack("<%df" % (len(data) // 4), data)


class Reader(unittest.TestCase):
    def compare(self, golden, kind, folder):
        with open(os.path.join(folder, kind + ".snapshot"), "rb") as f:
            data = f.read()
        s = read_snapshot.read(data)
        n = FIRST + SECOND
        self.assertEqual((s["type"], s["saves"], s["tokens"]), (kind, 2, [i * 31 % 300 for i in range(n)]))
        self.assertEqual(s["logits"], list(floats(os.path.join(folder, kind + ".logits"))))
        self.assertEqual(s["sampler"]["temperature"], 1.0)
        expected = floats(os.path.join(folder, kind + ".rows"))
        width, lora, rope = s["kv_lora_rank"] + s["qk_rope_head_dim"], s["kv_lora_rank"], s["qk_rope_head_dim"]
        self.assertEqual(len(expected), n * s["layers"] * width)
        for (layer, token), row in s["rows"].items():
            at = (token * s["layers"] + layer) * width
            got = read_snapshot.decode_row(kind, lora, rope, row)
            largest = max(abs(v) for v in expected[at:at + width])
            for a, b in zip(got, expected[at:at + width]):
                self.assertLessEqual(abs(a - b), 1e-5 * largest, (golden, kind, layer, token))
        return data

    def test_reads_every_type_of_every_shape(self):
        for golden in ("plain", "lite"):
            with tempfile.TemporaryDirectory() as folder:
                subprocess.run([WRITER, os.path.join(GOLDENS, golden), folder], check=True)
                for kind in ("f32", "f16", "q8", "q6"):
                    data = self.compare(golden, kind, folder)
        for at in range(0, len(data), 101):  # and it is strict itself
            damaged = bytearray(data)
            damaged[at] ^= 4
            with self.assertRaises(read_snapshot.Damaged):
                read_snapshot.read(bytes(damaged))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
