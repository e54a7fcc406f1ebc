#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What make bench says, from what its machines printed.

bench-report.py --out DIR [--whole] [--command C] [--commit ID] MODE FILE [MODE FILE]...

Writes to DIR results.json, rows.md (every row) and top.md (the rows of TOP), and
prints the rows of TOP and whether everything is within budget; before them every
row, unless the run is the whole bench.

The lines read are those of tests/bench/bench.c.  A row's value is the median of
its measurements, whose values are medians of their samples.  "~" marks a value
whose rounds are not the same to the instruction.
"""

import argparse
import json
import os
import re
import statistics
import sys
from typing import NamedTuple

PAGING = {"npt=1": "nested", "npt=0": "shadow"}

# The rows that users feel: paging mode, the row's name, and what it is in plain words.  They
# count instructions unless the words say otherwise.  What each is held to is below.
TOP = (
    ("npt=1", "reader: page untracked",
     "is this page tracked? no (at every write fault)"),
    ("npt=0", "reader: page tracked",
     "is this page tracked? yes (KVM's page tables too)"),
    ("npt=1", "guest write: tracked page, 1 notifier",
     "guest writes to a tracked page, 1 notifier"),
    ("npt=0", "guest write: tracked page, 1 notifier",
     "guest writes to a tracked page, 1 notifier"),
    ("npt=0", "emulated write: untracked page, 1 notifier",
     "KVM emulates a write to another page, 1 notifier"),
    ("npt=0", "page tables: like a build, 0 notifiers",
     "guest forks and execs, KVM tracks its page tables"),
    ("npt=1", "kvm_page_track_add_page: mapped by 4 KiB, 1 running vCPU",
     "add a mapped page"),
    ("npt=1", "kvm_page_track_remove_page: mapped by 4 KiB, 1 running vCPU",
     "remove a page"),
    ("npt=1", "1,000 mapped pages: add, as a range",
     "add 1,000 mapped pages as a range (C: one by one)"),
    ("npt=1", "1,000 mapped pages: remote TLB flushes, as a range",
     "TLB flushes for that"),
    ("npt=1", "1,000 mapped pages: remove, as a range",
     "remove 1,000 pages as a range (C: one by one)"),
    ("npt=1", "register and unregister: only notifier, 1 GiB guest",
     "register and unregister the only notifier, 1 GiB"),
    ("npt=1", "register: further notifier, 1 GiB guest",
     "register a further notifier"),
    ("npt=1", "memslot: create, 1 GiB, with trackers",
     "create a memslot of 1 GiB in a VM with trackers"),
    ("npt=1", "memory: counters, 1000 pages, spread, 64 GiB guest",
     "bytes for 1,000 pages all over a 64 GiB guest"),
)


class Budget(NamedTuple):
    """What rows may cost."""

    rows: str                  # a regular expression, for the beginning of a row's name
    part: float | None = None  # at most so much of what C costs, to two digits
    more: int = 0              # or so many instructions more than C
    exactly: int | None = None

    def words(self):
        if self.exactly is not None:
            return f"{self.exactly:,}"
        if self.part is None:
            return ""
        return f"{self.part:.2f}" + (f" or +{self.more:,}" if self.more else "")


# What every row is held to: the first line that matches it.  Where users feel instructions
# they are counted, elsewhere plain code wins.  Times (ms, us) are held to nothing.  A row that
# no line matches fails the bench, and so does a line that matches no row of a whole run.
BUDGETS = (
    Budget(r"reader: ", 1.01),
    Budget(r"guest write: tracked page", 1.02),
    Budget(r"guest write: untracked page", 1.01),
    Budget(r"emulated write: ", 1.01),
    Budget(r"page tables: ", 1.01),
    # A single page: KVM's own functions change the large page counts, which costs what it costs
    # C, and its records are looked at, which C does not do.
    Budget(r"(add|remove|kvm_page_track_(add|remove)_page): ", 1.01, more=30),
    Budget(r"1,000 mapped pages: remote TLB flushes, as a range", exactly=1),
    Budget(r"1,000 unmapped pages: remote TLB flushes, as a range", exactly=0),
    Budget(r"1,000 mapped pages: (add|remove), as a range", 0.65),
    Budget(r"1,000 unmapped pages: (add|remove), as a range", 1.01),
    Budget(r"1,000 mapped pages: .*, one by one", 1.01, more=30000),
    Budget(r"register: first notifier", 1.10, more=1000),
    Budget(r"register: further notifier", 1.10, more=1000),
    Budget(r"register and first add", 1.10, more=1000),
    Budget(r"unregister: ", 1.10, more=1000),
    Budget(r"register and unregister: ", 1.10, more=1000),
    Budget(r"memslot: ", 1.10, more=1000),
    Budget(r"memory: ", 1.10),
    # C has no such thing
    Budget(r"(attach|detach)\b"),
)
# Rows of parts that run only when they are named.
BUDGETS_WHEN_NAMED = (
    Budget(r"Linux guest: ", 1.10, more=1000),
)


def budget_of(name):
    return next((b for b in BUDGETS + BUDGETS_WHEN_NAMED if re.match(b.rows, name)), None)


class Row:
    """One row: the measurements of both implementations."""

    def __init__(self, name, mode, unit):
        self.name, self.mode, self.unit = name, mode, unit
        self.budget = budget_of(name)
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

    def costs_more(self):
        """In every round, if they differ."""
        return self.spread("rust")[0] > self.spread("c")[1]

    def costs_less(self):
        return self.spread("rust")[1] < self.spread("c")[0]

    def more(self):
        """How many instructions more the module takes, if it does in every round."""
        if self.unit != "insn" or not self.compared() or not self.costs_more():
            return 0
        return number(self.value("rust") - self.value("c"))

    def show(self, impl):
        """The value as in the tables."""
        return ("" if self.agrees(impl) else "~") + show(self.value(impl))

    def show_more(self):
        return f"+{show(self.more())}" if self.more() else ""

    def compared(self):
        return bool(self.rounds["c"] and self.rounds["rust"])

    def limited(self):
        """Whether anything could exceed the row's budget."""
        return bool(self.unit not in ("ms", "us") and self.budget and self.budget.words())

    def held_to(self):
        return self.budget.words() if self.limited() else ""

    def over_budget(self):
        """What is wrong with the row, or nothing."""
        if not self.budget:
            return "no budget"
        if not self.limited():
            return ""
        if not self.compared():
            return "not measured with both"
        c, rust = self.value("c"), self.value("rust")
        if self.budget.exactly is not None:
            good = self.spread("rust") == [self.budget.exactly] * 2
            return "" if good else f"{show(rust)}, not {self.held_to()}"
        if rust == 0 or (c and round(rust / c, 2) <= self.budget.part):
            return ""
        if self.unit == "insn" and self.budget.more and rust - c <= self.budget.more:
            return ""
        # where the rounds differ, only if every one says so
        if self.budget.part >= 1 and not self.costs_more():
            return ""
        return f"{show(rust)}, C {show(c)}: more than {self.held_to()}"

    def result(self):
        r = {
            "row": self.name,
            "mode": self.mode,
            "c": self.value("c"),
            "rust": self.value("rust"),
            "ratio": self.ratio(),
            "unit": self.unit,
            "at_most": self.held_to(),
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
        for n, (mode, name, words) in enumerate(TOP, 1):
            if (mode, name) == (self.mode, self.name):
                r["top"], r["words"] = n, words
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
    return f"{x:.3f}" if x >= 0.01 else f"{x:.2g}"


def columns(lines, left):
    """The lines of a table, the first of which is its head; columns not in left are numbers."""
    width = [max(len(cell) for cell in column) for column in zip(*lines)]
    text = ["  ".join(cell.ljust(w) if i in left else cell.rjust(w)
                      for i, (cell, w) in enumerate(zip(line, width))).rstrip()
            for line in lines]
    text.insert(1, "  ".join("-" * w for w in width))
    return text


# ---- every row ----

def table(rows):
    lines = [("row", "unit", "C", "module", "module/C", "more", "at most")]
    for r in rows:
        lines.append((r.name, r.unit, r.show("c"), r.show("rust"), show_ratio(r.ratio()),
                      r.show_more(), r.held_to()))
    return columns(lines, left=(0, 1, 5, 6))


def notes(rows):
    lines = []
    for r in rows:
        if r.agrees("c") and r.agrees("rust"):
            continue
        parts = [f"{name} {show(r.spread(i)[0])}..{show(r.spread(i)[1])}"
                 for i, name in (("c", "C"), ("rust", "module")) if not r.agrees(i)]
        if r.pairs():
            parts.append(f"module/C of a pair {min(r.pairs()):.3f}..{max(r.pairs()):.3f}")
        lines.append(f"  {r.name}: {', '.join(parts)}" + (f" ({r.why})" if r.why else ""))
    if lines:
        lines.insert(0, "Not the same in every round (smallest to largest median of a round):")
    return lines


def summary(rows):
    compared = [r for r in rows if r.compared()]
    more = sum(r.costs_more() for r in compared)
    less = sum(r.costs_less() for r in compared)
    exact = [r for r in rows if r.unit == "insn"]
    agree = sum(r.agrees("c") and r.agrees("rust") for r in exact)
    return (f"{len(rows)} rows, {len(compared)} with C and the module: in every round the module "
            f"costs less in {less}, more in {more}; {agree} of {len(exact)} rows of instructions "
            "the same in every round")


def rows_md(rows, run, whole):
    """For docs/performance-rows.md; what the run was is the first line."""
    text = [f"{run}: {'every row' if whole else 'not every row'}.", "",
            '"~": not the same in every round, the notes below each table say why. "more": so many '
            'instructions more than C in every round. "at most": the budget, as a part of C or in '
            "instructions more than C."]
    for mode in dict.fromkeys(r.mode for r in rows):
        of_mode = [r for r in rows if r.mode == mode]
        text += ["", f"## {PAGING[mode].capitalize()} paging ({mode})", "", "```"]
        text += table(of_mode)
        if notes(of_mode):
            text += ["", *notes(of_mode)]
        text += ["```"]
    return text + ["", summary(rows)]


# ---- the rows that users feel ----

TOP_HEAD = ("instructions", "paging", "C", "module", "module/C", "at most")


def top_lines(rows):
    """Those of the run, in the order of TOP."""
    lines = []
    for mode, name, words in TOP:
        r = rows.get((mode, name))
        if r:
            lines.append((words, PAGING[mode], r.show("c"), r.show("rust"),
                          show_ratio(r.ratio()), r.held_to()))
    return lines


def top_md(rows, run, verdict):
    """They, for docs/performance.md."""
    text = ["| " + " | ".join(TOP_HEAD) + " |", "|---|---|--:|--:|--:|---|"]
    text += ["| " + " | ".join(line) + " |" for line in top_lines(rows)]
    return text + ["", f"{run}: {verdict}."]


# ---- verdict ----

def complaints(rows, whole):
    """What is over budget; in a whole run also lines of BUDGETS and TOP that have no row."""
    lines = [f"OVER BUDGET  {r.mode} {r.name}: {r.over_budget()}"
             for r in rows.values() if r.over_budget()]
    if whole:
        lines += [f"NO ROW  matches the budget '{b.rows}'" for b in BUDGETS
                  if all(r.budget != b for r in rows.values())]
        lines += [f"NO ROW  {mode} {name}, which users feel" for mode, name, _words in TOP
                  if (mode, name) not in rows]
    return lines


def verdict(rows, wrong):
    limited = sum(r.limited() for r in rows.values())
    if not wrong:
        return f"all {limited} rows that have a budget are within it"
    return f"{len(wrong)} complaints, {limited} rows have a budget"


def write(directory, name, lines):
    with open(os.path.join(directory, name), "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--out", required=True, help="where the files go")
    p.add_argument("--whole", action="store_true", help="the run is the whole bench")
    p.add_argument("--command", default="make bench", help="what ran")
    p.add_argument("--commit", default="unknown", help="and of which commit")
    p.add_argument("input", nargs="+", help="MODE FILE ...")
    args = p.parse_args()

    rows = {}
    for mode, path in zip(args.input[::2], args.input[1::2]):
        read(mode, path, rows)
    if not rows:
        sys.exit("bench-report: no measurements")

    wrong = complaints(rows, args.whole)
    run = f"`{args.command}` at commit {args.commit}"
    every = rows_md(list(rows.values()), run, args.whole)
    write(args.out, "results.json",
          json.dumps([r.result() for r in rows.values()], indent=1).split("\n"))
    write(args.out, "rows.md", every)
    write(args.out, "top.md", top_md(rows, run, verdict(rows, wrong)))

    if not args.whole:
        print("\n".join(every) + "\n")
    print("\n".join(columns([TOP_HEAD, *top_lines(rows)], left=(0, 1, 5))) + "\n")
    print("\n".join([*wrong, verdict(rows, wrong)]))
    return not wrong


sys.exit(0 if main() else 1)
