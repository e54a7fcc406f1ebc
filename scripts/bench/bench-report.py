#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Table and results.json of make bench, from what the machines printed.

bench-report.py --out DIR MODE FILE [MODE FILE]...

The lines read are those of tests/bench/bench.c.  A row's value is the median of
its measurements, whose values are medians of their samples.  "~" marks a value
whose rounds are not the same to the instruction, and the notes below the table
say by how much, and why.
"""

import argparse
import json
import os
import statistics
import sys

# What make bench is to show: what a row may cost, as a part of what C costs, to two digits.  The
# first beginning that fits; where users feel instructions they are counted, elsewhere plain
# code wins.
BUDGETS = (
    ("guest write: tracked page", 1.02),
    ("1,000 mapped pages: add, as a range", 0.65),
    ("1,000 mapped pages: remove, as a range", 0.65),
    ("1,000 ", 1.01),
    ("reader: ", 1.01),
    ("add: ", 1.01),
    ("remove: ", 1.01),
    ("kvm_page_track_", 1.01),
    ("guest write: ", 1.01),
    ("emulated write: ", 1.01),
    ("page tables: ", 1.01),
)
ELSE_AT_MOST = 1.10
# or so many instructions more
ELSE_MORE = 1000
# One flush for a range that is mapped, none for one that is not.
FLUSHES = "pages: remote TLB flushes, as a range"
RANGE = "1,000 mapped pages: add, as a range"


class Row:
    """One row: the measurements of both implementations."""

    def __init__(self, name, mode, unit):
        self.name, self.mode, self.unit = name, mode, unit
        self.why = ""
        self.rounds = {"c": [], "rust": []}
        self.means = {"c": [], "rust": []}
        self.samples = 0

    def add(self, impl, median, mean, samples):
        self.rounds[impl].append(median)
        self.means[impl].append(mean)
        self.samples = samples

    def value(self, impl):
        return number(statistics.median(self.rounds[impl])) if self.rounds[impl] else None

    def agrees(self, impl):
        return len(set(self.rounds[impl])) <= 1

    def spread(self, impl):
        return [number(min(self.rounds[impl])), number(max(self.rounds[impl]))]

    def pairs(self):
        """Ratios of what was measured in turn, for what is time."""
        if self.unit != "ms":
            return []
        return [rust / c for c, rust in zip(self.rounds["c"], self.rounds["rust"])]

    def ratio(self):
        if self.pairs():
            return round(statistics.median(self.pairs()), 4)
        c, rust = self.value("c"), self.value("rust")
        if c is None or rust is None:
            return None
        if c == 0:
            return 1.0 if rust == 0 else None
        return round(rust / c, 4 if rust >= c / 100 else 6)

    def more(self):
        """How many instructions more Rust takes, if it does in every round."""
        if self.unit != "insn" or not self.rounds["c"] or not self.rounds["rust"]:
            return 0
        if self.spread("rust")[0] <= self.spread("c")[1]:
            return 0
        return number(self.value("rust") - self.value("c"))

    def show_more(self):
        return f"+{show(self.more())}" if self.more() else ""

    def misses(self):
        """What the row was to show and does not, or nothing."""
        c, rust = self.value("c"), self.value("rust")
        if c is None or rust is None or self.unit in ("ms", "us"):
            return ""
        if self.name.endswith(FLUSHES):
            want = min(c, 1)
            return "" if self.spread("rust") == [want, want] else f"{show(rust)} flushes, not {want}"
        limit = next((most for name, most in BUDGETS if self.name.startswith(name)), None)
        if rust == 0 or (c and round(rust / c, 2) <= (limit or ELSE_AT_MOST)):
            return ""
        if limit is None and self.unit == "insn" and rust - c <= ELSE_MORE:
            return ""
        # where the rounds differ, only if every one says so
        if (limit or 1) >= 1 and self.spread("rust")[0] <= self.spread("c")[1]:
            return ""
        return f"{show(rust)}, C {show(c)}: more than {limit or ELSE_AT_MOST:.2f}"

    def result(self):
        r = {
            "row": self.name,
            "mode": self.mode,
            "c": self.value("c"),
            "rust": self.value("rust"),
            "ratio": self.ratio(),
            "unit": self.unit,
            "rounds": max(len(v) for v in self.rounds.values()),
        }
        for impl in "c", "rust":
            if self.rounds[impl]:
                r[impl + "_mean"] = number(statistics.mean(self.means[impl]))
            if not self.agrees(impl):
                r[impl + "_spread"] = self.spread(impl)
        if self.pairs():
            r["ratio_spread"] = [round(x, 4) for x in (min(self.pairs()), max(self.pairs()))]
        if not (self.agrees("c") and self.agrees("rust")):
            r["why"] = self.why
        return r


def number(x):
    return int(x) if x == int(x) else round(x, 3)


def read(mode, path, rows):
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            if not line.startswith("@ "):
                continue
            field = line[2:].rstrip("\r\n").split("\t")
            impl, _round, unit, median, _min, _max, mean, samples, name, why = field
            row = rows.setdefault((mode, name), Row(name, mode, unit))
            row.add(impl, float(median), float(mean), int(samples))
            row.why = why


def show(x):
    return "" if x is None else f"{x:,}"


def show_ratio(x):
    if x is None:
        return ""
    return f"{x:.3f}" if x >= 0.1 else f"{x:.5f}"


def table(rows):
    lines = [("row", "unit", "C", "Rust", "Rust/C", "more")]
    for r in rows:
        mark = {i: "" if r.agrees(i) else "~" for i in ("c", "rust")}
        lines.append((r.name, r.unit, mark["c"] + show(r.value("c")),
                      mark["rust"] + show(r.value("rust")), show_ratio(r.ratio()),
                      r.show_more()))
    width = [max(len(line[i]) for line in lines) for i in range(6)]
    for n, line in enumerate(lines):
        print("  ".join(c.ljust(w) if i in (0, 1, 5) else c.rjust(w)
                        for i, (c, w) in enumerate(zip(line, width))).rstrip())
        if n == 0:
            print("  ".join("-" * w for w in width))


def notes(rows):
    differ = [r for r in rows if not (r.agrees("c") and r.agrees("rust"))]
    if not differ:
        return
    print("\nNot the same in every round (smallest to largest median of a round):")
    for r in differ:
        parts = [f"{name} {show(r.spread(i)[0])}..{show(r.spread(i)[1])}"
                 for i, name in (("c", "C"), ("rust", "Rust")) if not r.agrees(i)]
        if r.pairs():
            parts.append(f"Rust/C of a pair {min(r.pairs()):.3f}..{max(r.pairs()):.3f}")
        print(f"  {r.name}: {', '.join(parts)}" + (f" ({r.why})" if r.why else ""))


def summary(rows):
    rated = [r for r in rows if r.rounds["c"] and r.rounds["rust"]]
    # where the rounds differ: more or less only if every round says so
    more = sum(r.spread("rust")[0] > r.spread("c")[1] for r in rated)
    less = sum(r.spread("rust")[1] < r.spread("c")[0] for r in rated)
    exact = [r for r in rows if r.unit == "insn"]
    agree = sum(r.agrees("c") and r.agrees("rust") for r in exact)
    print(f"{len(rows)} rows, {len(rated)} with C and Rust: in every round Rust costs less in "
          f"{less}, more in {more}; {agree} of {len(exact)} rows of instructions the same in "
          "every round")


def goals(rows):
    """Whether every row shows what it is to show."""
    missed = [f"{r.mode} {r.name}: {r.misses()}" for r in rows if r.misses()]
    for mode in {r.mode for r in rows if "as a range" in r.name}:
        names = {r.name for r in rows if r.mode == mode and r.value("rust") is not None}
        missed += [f"{mode} {name}: not measured" for name in (RANGE, "1,000 mapped " + FLUSHES)
                   if name not in names]
    for line in missed:
        print(f"OVER BUDGET  {line}")
    if not missed:
        print("within budget, of the rows measured: of what C costs a tracked write at most 1.02, "
              "ranges of mapped pages 0.65 and one flush, what else users feel 1.01, everything "
              f"else {ELSE_AT_MOST:.2f} or {ELSE_MORE:,} instructions more")
    return not missed


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--out", required=True, help="where results.json goes")
    p.add_argument("input", nargs="+", help="MODE FILE ...")
    args = p.parse_args()

    rows = {}
    for mode, path in zip(args.input[::2], args.input[1::2]):
        read(mode, path, rows)
    if not rows:
        sys.exit("bench-report: no measurements")

    with open(os.path.join(args.out, "results.json"), "w", encoding="utf-8") as f:
        json.dump([r.result() for r in rows.values()], f, indent=1)
        f.write("\n")

    for mode in dict.fromkeys(r.mode for r in rows.values()):
        of_mode = [r for r in rows.values() if r.mode == mode]
        paging = "nested" if mode == "npt=1" else "shadow"
        print(f"\n{mode} ({paging} paging)")
        table(of_mode)
        notes(of_mode)
    print()
    summary(list(rows.values()))
    return goals(list(rows.values()))


sys.exit(0 if main() else 1)
