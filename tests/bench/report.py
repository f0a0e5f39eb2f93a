"""What bench.py measured, as a table and as a picture."""

import math
import pathlib
import statistics
import struct
import subprocess
from typing import Callable, Iterator

MB = 1e6
TITLES = {
    "prefill": "prefill of 512",
    "prefill-8192": "prefill of 512 after 8192",
    "decode": "decode, empty context",
    "decode-4096": "decode after 4096",
    "decode-8192": "decode after 8192",
    "sessions-32": "32 sessions decoding, sum",
    "open": "opening to the first token, s",
}


# ---- what a token costs ----


def pack_index(path: pathlib.Path) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Name, dimensions and bytes of a pack's tensors: lib/formats/README.md describes them. Needs the command zstd."""
    with open(path, "rb") as file:
        offset, stored = struct.unpack_from("<2Q", file.read(128), 24)
        file.seek(offset)
        index = subprocess.run(["zstd", "-dc"], input=file.read(stored), stdout=subprocess.PIPE, check=True).stdout
    at = 0
    while at < len(index):
        name_bytes, _, n_dims = struct.unpack_from("<HBB", index, at)
        (size,) = struct.unpack_from("<Q", index, at + 12)
        dims = struct.unpack_from(f"<{n_dims}Q", index, at + 36)
        at += 36 + 8 * n_dims
        yield index[at : at + name_bytes].decode(), dims, size
        at += name_bytes


def costs(path: pathlib.Path, facts: dict) -> dict:
    """Bytes of weights that a decoded token reads, and multiply-adds with weights for a token of a prompt. Only the last
    token of a prompt goes through the head. `facts` come from dsv2 inspect."""
    values = facts["v_head_dim"] / (facts["qk_nope_head_dim"] + facts["v_head_dim"])
    chosen = facts["num_experts_per_tok"] / facts["n_routed_experts"]
    read = products = 0.0
    for name, dims, size in pack_index(path):
        matrix = math.prod(dims) if len(dims) == 2 else 0
        if "embed_tokens" in name:
            read += size / dims[0]
        elif "lm_head" in name:
            read += size
        elif "kv_b_proj" in name:  # a decoded token uses its value half and k_up_transposed, a prompt all of it
            read += size * values
            products += matrix
        elif "k_up_transposed" in name:
            read += size
        else:
            share = chosen if ".mlp.experts." in name else 1
            read += size * share
            products += matrix * share
    return {"read_bytes": read, "products": products}


# ---- the table ----


def of(results: list[dict], engine: str, row: str) -> list[dict]:
    """The measurements of one engine; of llama.cpp the faster of those with and without flash attention."""
    found = [r for r in results if r.get("engine") == engine and r["row"] == row]
    if engine == "llama" and row != "open":
        ways = [[r for r in found if r["flash"] == flash] for flash in (False, True)]
        found = max(ways, key=lambda way: statistics.median(r.get("rate", 0) for r in way) if way else -1)
    return found


def summary(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def ratio(a: list[float], b: list[float]) -> str:
    return f"{statistics.median(a) / statistics.median(b):.2f}" if a and b else "–"


def table_line(results: list[dict], row: str, model: dict) -> list[str]:
    key = "seconds" if row == "open" else "rate"
    found = {engine: of(results, engine, row) for engine in ("pack", "gguf", "llama")}
    pack, gguf, llama = ([r[key] for r in found[engine]] for engine in ("pack", "gguf", "llama"))
    shares = []
    for r in found["pack"]:
        if row.startswith("decode"):
            shares.append(r["rate"] * model["read_bytes"] / r["bounds"]["bytes"] * 100)
        elif row.startswith("prefill"):
            shares.append(r["rate"] * model["products"] * 2 / r["bounds"]["int8"] * 100)
    bound = "bandwidth" if row.startswith("decode") else "int8"
    digits = 2 if row == "open" else 1
    times = ratio(llama, pack) if row == "open" else ratio(pack, llama)
    direct = ratio(llama, gguf) if row == "open" else ratio(gguf, llama)
    notes = [f"{len(pack)}/{len(gguf)}/{len(llama)} runs"]
    if llama and row != "open":
        notes.append("flash attention" if found["llama"][0]["flash"] else "no flash attention")
    return [TITLES[row], summary(pack, digits), summary(llama, digits), times, f"{summary(shares, 0)} of {bound}" if shares else "–",
            summary(gguf, digits), direct, ", ".join(notes)]


def memory_lines(results: list[dict], model: dict) -> Iterator[str]:
    for engine, title in (("pack", "pack"), ("gguf", "GGUF"), ("llama", "llama.cpp")):
        runs = [r for r in results if r.get("engine") == engine and "peak_bytes" in r]
        if not runs:
            continue
        file = model["pack_bytes" if engine == "pack" else "gguf_bytes"]
        over = max(r["peak_bytes"] - file - r.get("cache_bytes", 0) for r in runs)
        peak = max(r["peak_bytes"] for r in runs)
        yield f"{title}: file {file / MB:.0f} MB, peak resident {peak / MB:.0f} MB; over file and cache: {over / MB:.0f} MB at most"


def table(results: list[dict]) -> str:
    model = next((r for r in reversed(results) if "read_bytes" in r), None)
    if model is None:
        return "nothing measured yet"
    heads = ["tokens/s", "dsv2, pack", "llama.cpp", "ratio", "share of bound, %", "dsv2, GGUF", "GGUF to llama.cpp", "notes"]
    lines = [heads, ["---"] * len(heads)]
    lines += [table_line(results, row, model) for row in TITLES if any(r.get("row") == row for r in results)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    bounds = [r["bounds"] for r in results if "bounds" in r]
    out = [text, "", "Medians (least..most). The bound of a row is measured just before and after it."]
    if bounds:
        out.append("All threads together: int8 " + summary([b["int8"] / 1e9 for b in bounds], 0) + " GOP/s, memory "
                   + summary([b["bytes"] / 1e9 for b in bounds], 1) + " GB/s.")
    out.append(f"A decoded token reads {model['read_bytes'] / 1e9:.3f} GB of weights; a prompt's takes "
               f"{model['products'] / 1e9:.2f} G multiply-adds with them.")
    out += memory_lines(results, model)
    for r in of(results, "llama", "state-8192")[-1:]:
        out.append(f"llama.cpp's state of 8192 tokens: {r['bytes']} bytes, saved in {r['save_seconds']:.2f} s, loaded in {r['load_seconds']:.2f} s")
    return "\n".join(out)


# ---- the picture ----

WIDTH, PANEL, LEFT, TOP, RIGHT = 680, 300, 56, 34, 30
COLOURS = {"pack": ("#1f77b4", "libdsv2"), "llama": ("#c0392b", "llama.cpp")}


def curve(results: list[dict], engine: str, part: str) -> list[tuple[int, float]]:
    prefix = f"curve-{part}-"
    rows = {r["row"] for r in results if r.get("engine") == engine and r["row"].startswith(prefix)}
    points = [(int(row[len(prefix) :]), statistics.median(r["rate"] for r in of(results, engine, row))) for row in rows]
    return sorted(points)


def step_of(most: float) -> float:
    """A round number of which four to ten make `most`."""
    power = 10 ** math.floor(math.log10(most))
    return next(power * f for f in (0.1, 0.2, 0.5, 1) if most / (power * f) <= 10)


def label(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def panel(title: str, curves: dict[str, list[tuple[int, float]]], top: float) -> Iterator[str]:
    deepest = max(depth for points in curves.values() for depth, _ in points) or 1
    most = max(rate for points in curves.values() for _, rate in points) * 1.05
    bottom = top + PANEL - 40

    def at(depth: float, rate: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - RIGHT) * depth / deepest, bottom - (bottom - top - TOP) * rate / most

    yield label(LEFT, top + 18, title, "start", "#000")
    step = step_of(most)
    for i in range(int(most / step) + 1):
        y = at(0, i * step)[1]
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
        yield label(LEFT - 6, y + 4, f"{i * step:g}", "end")
    for depth in range(0, deepest + 1, 4096):
        yield label(at(depth, 0)[0], bottom + 16, f"{depth:,}")
    for engine, points in curves.items():
        colour, name = COLOURS[engine]
        places = [at(*point) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places)
        yield label(places[-1][0], places[-1][1] - 8, name, "end", colour)


def picture(results: list[dict]) -> str:
    titles = {"decode": "decoding, tokens a second, by tokens of context", "prefill": "a prompt of 512 more, tokens a second, by tokens of context"}
    panels = []
    for part, title in titles.items():
        curves = {engine: points for engine in COLOURS if (points := curve(results, engine, part))}
        if curves:
            panels.append((title, curves))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {PANEL * len(panels)}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{PANEL * len(panels)}" fill="white"/>',
    ]
    for i, (title, curves) in enumerate(panels):
        out += panel(title, curves, i * PANEL)
    return "\n".join([*out, "</svg>", ""])
