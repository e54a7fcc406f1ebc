#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Bar charts of make bench: what the module costs, as a part of what C costs.

bench-chart.py DIR: from DIR/results.json DIR/performance.svg, the rows that users
feel, and DIR/results.svg, every row.
"""

import json
import os
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

LESS, MORE = "#2a7f62", "#c0504d"
PAGING = {"npt=1": "nested", "npt=0": "shadow"}


def colour(ratio):
    return LESS if ratio <= 1 else MORE


def save(figure, target):
    figure.savefig(target, metadata={"Date": None})


# ---- the rows that users feel ----

# In inches: a bar for what C costs, where bars are cut off, a row, between two columns.
ONE, WIDEST, ROW, GAP = 3.4, 3.4 * 1.25, 0.27, 0.25


def top_ratio(ratio):
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def top_columns(rows):
    """Columns of text, each with its head: left of the bars, and right of them."""
    left = [["instructions"] + [r["words"] for r in rows],
            ["paging"] + [PAGING[r["mode"]] for r in rows]]
    right = [["module/C"] + [top_ratio(r["ratio"]) for r in rows],
             ["C"] + [f"{r['c']:,}" for r in rows],
             ["module"] + [f"{r['rust']:,}" for r in rows]]
    return left, right


def width_of(figure, texts):
    """How many inches wide they are."""
    widest = 0
    for text in texts:
        drawn = figure.text(0, 0, text, weight="bold")
        widest = max(widest, drawn.get_window_extent().width / figure.dpi)
        drawn.remove()
    return widest


def top_texts(axes, texts, x, align, bold=False):
    for y, text in enumerate(texts, -1):
        axes.text(x, y, text, ha=align, va="center", color="#606060" if y < 0 else "black",
                  weight="bold" if bold and y >= 0 else "normal")


def top_bars(axes, rows, zero):
    end = len(rows) - 0.5
    for y, row in enumerate(rows):
        if y % 2 == 0:
            axes.axhspan(y - 0.5, y + 0.5, color="#f3f3f3", zorder=0)
        axes.barh(y, min(row["ratio"] * ONE, WIDEST), left=zero, color=colour(row["ratio"]),
                  height=0.66)
    for x, text in ((0, "0"), (ONE, "C = 1")):
        axes.plot((zero + x, zero + x), (-0.6, end), color="black", linewidth=1)
        axes.text(zero + x, -1, text, ha="center", va="center", weight="bold")


def top_chart(rows):
    left, right = top_columns(rows)
    figure = plt.figure()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    x = GAP
    for texts in left:
        top_texts(axes, texts, x, "left")
        x += width_of(figure, texts) + GAP
    top_bars(axes, rows, x)
    x += WIDEST
    for texts in right:
        x += width_of(figure, texts) + GAP
        top_texts(axes, texts, x, "right", bold=texts is right[0])
    axes.text(GAP, -2, "What the module costs, as a part of what C's tracker costs: "
              "shorter is better", ha="left", va="center", weight="bold")
    axes.set_xlim(0, x + GAP)
    axes.set_ylim(len(rows) - 0.3, -2.7)
    figure.set_size_inches(x + GAP, ROW * (len(rows) + 2.4))
    return figure


# ---- every row ----

SMALLEST = 1 / 64


def label(ratio):
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.4f}"


def panel(axes, mode, rows):
    names = [r["row"] for r in rows]
    ratios = [r["ratio"] for r in rows]
    # bars grow from 1; what is very small ends at the edge, its number is exact
    shown = [max(x, SMALLEST) for x in ratios]
    colours = [colour(x) for x in ratios]
    axes.barh(range(len(rows)), [x - 1 for x in shown], left=1, color=colours, height=0.7)
    axes.set_xscale("log", base=2)
    axes.set_xlim(SMALLEST / 1.6, max(2, *shown) * 1.6)
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.grid(axis="x", linewidth=0.3)
    axes.set_axisbelow(True)
    for i, (x, at) in enumerate(zip(ratios, shown)):
        axes.text(at * (1.03 if x > 1 else 0.97), i, label(x), va="center",
                  ha="left" if x > 1 else "right", fontsize=6)
    axes.set_title(f"{mode} ({PAGING[mode]} paging): module/C, left of 1 is less", fontsize=9,
                   loc="left")


def whole_chart(rows):
    modes = list(dict.fromkeys(r["mode"] for r in rows))
    by_mode = [[r for r in rows if r["mode"] == m] for m in modes]
    figure, axes = plt.subplots(
        len(modes), 1, squeeze=False, layout="constrained",
        figsize=(10, 1 + 0.16 * len(rows) + 0.6 * len(modes)),
        height_ratios=[len(r) + 3 for r in by_mode])
    for ax, mode, of_mode in zip(axes[:, 0], modes, by_mode):
        panel(ax, mode, of_mode)
    return figure


def main():
    directory = sys.argv[1]
    with open(os.path.join(directory, "results.json"), encoding="utf-8") as f:
        rows = [r for r in json.load(f) if r["ratio"] is not None]
    if not rows:
        print("bench-chart: nothing to compare, no charts", file=sys.stderr)
        return
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "kvm-page-track"
    # where there is no DejaVu, Verdana is as wide, and most others are less so
    plt.rcParams["font.sans-serif"] = ["DejaVu Sans", "Verdana", "sans-serif"]
    save(whole_chart(rows), os.path.join(directory, "results.svg"))
    top = sorted((r for r in rows if "top" in r), key=lambda r: r["top"])
    if top:
        save(top_chart(top), os.path.join(directory, "performance.svg"))


main()
