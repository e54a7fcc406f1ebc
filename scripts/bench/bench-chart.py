#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Bar chart of make bench: Rust/C of every row of results.json.

bench-chart.py results.json results.svg
"""

import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

LESS, MORE = "#2a7f62", "#c0504d"
SMALLEST = 1 / 64


def label(ratio):
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.4f}"


def panel(axes, mode, rows):
    names = [r["row"] for r in rows]
    ratios = [r["ratio"] for r in rows]
    # bars grow from 1; what is very small ends at the edge, its number is exact
    shown = [max(x, SMALLEST) for x in ratios]
    colours = [LESS if x <= 1 else MORE for x in ratios]
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
    axes.set_title(f"{mode}: Rust/C, left of 1 is less", fontsize=9, loc="left")


def main():
    source, target = sys.argv[1:]
    with open(source, encoding="utf-8") as f:
        rows = [r for r in json.load(f) if r["ratio"] is not None]
    modes = list(dict.fromkeys(r["mode"] for r in rows))
    if not modes:
        sys.exit("bench-chart: nothing to compare")
    by_mode = [[r for r in rows if r["mode"] == m] for m in modes]
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "kvm-page-track"
    figure, axes = plt.subplots(
        len(modes), 1, squeeze=False, layout="constrained",
        figsize=(10, 1 + 0.16 * len(rows) + 0.6 * len(modes)),
        height_ratios=[len(r) + 3 for r in by_mode])
    for ax, mode, of_mode in zip(axes[:, 0], modes, by_mode):
        panel(ax, mode, of_mode)
    figure.savefig(target, metadata={"Date": None})


main()
