"""The training log as a picture: python curve.py LOG.jsonl CURVE.svg."""

import json
import pathlib
import sys

WIDTH, HEIGHT, LEFT, TOP = 640, 320, 56, 16


def polyline(points: list[tuple[float, float]], colour: str) -> str:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{text}"/>'


def label(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def main() -> None:
    log = [json.loads(line) for line in pathlib.Path(sys.argv[1]).read_text().splitlines()]
    # A killed run repeats the steps since its checkpoint: the last line of a step counts.
    train = list({line["tokens"]: line for line in log if "loss" in line}.values())
    held_out = list({line["tokens"]: line for line in log if line.get("event") == "held-out"}.values())
    train.sort(key=lambda line: line["tokens"])
    held_out.sort(key=lambda line: line["tokens"])
    if not train:
        raise SystemExit(f"{sys.argv[1]} holds no losses yet")
    last = max(line["tokens"] for line in train)
    low = min(line["loss"] for line in train) - 0.1
    high = min(max(line["loss"] for line in train), 6.0)

    def at(tokens: float, nats: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - 16) * tokens / last, TOP + (HEIGHT - TOP - 40) * (high - min(nats, high)) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    tick = round(low * 2 + 0.5) / 2
    while tick <= high:
        x, y = at(0, tick)
        out.append(f'<line x1="{x}" y1="{y:.1f}" x2="{WIDTH - 16}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(label(x - 6, y + 4, f"{tick:.1f}", "end"))
        tick += 0.5
    for million in range(0, int(last / 1e6) + 1, max(1, int(last / 6e6))):
        out.append(label(at(million * 1e6, low)[0], HEIGHT - 24, f"{million} M"))
    context = 0
    for line in train:
        if line["context"] != context:
            context = line["context"]
            x = at(line["tokens"], 0)[0]
            out.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - 40}" stroke="#aaa" stroke-dasharray="3"/>')
            if x < WIDTH - 100:
                out.append(label(x + 4, TOP + 10, f"context {context}", "start"))
            else:
                out.append(label(x - 4, TOP + 10, f"context {context}", "end"))
    out.append(polyline([at(line["tokens"], line["loss"]) for line in train], "#7aa6da"))
    out.append(polyline([at(line["tokens"], line["nats_per_token"]) for line in held_out], "#c0392b"))
    out.append(label(WIDTH / 2, HEIGHT - 8, "tokens seen"))
    out.append(label(WIDTH - 20, TOP + 40, "training loss, nats a token", "end", "#7aa6da"))
    out.append(label(WIDTH - 20, TOP + 56, "held-out (averaged weights, every fourth window)", "end", "#c0392b"))
    pathlib.Path(sys.argv[2]).write_text("\n".join([*out, "</svg>", ""]))


if __name__ == "__main__":
    main()
