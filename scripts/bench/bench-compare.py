#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Compares two results.json of make bench.

bench-compare.py BEFORE AFTER PATTERN: in rows that match PATTERN the module must
have become slower, in all others it must cost the same, and C everywhere.  Rows
whose rounds differ from each other say nothing and are counted only.
"""

import json
import re
import sys


def load(path):
    with open(path, encoding="utf-8") as f:
        return {(r["mode"], r["row"]): r for r in json.load(f)}


def main():
    before, after = load(sys.argv[1]), load(sys.argv[2])
    pattern = re.compile(sys.argv[3])
    bad = slower = same = unclear = 0
    if before.keys() != after.keys():
        sys.exit("bench-compare: not the same rows")
    for key, old in before.items():
        new = after[key]
        if "why" in old or "why" in new:
            unclear += 1
            continue
        wanted = bool(pattern.search(old["row"]))
        if old["c"] != new["c"] or (new["rust"] > old["rust"]) != wanted or (
                not wanted and new["rust"] != old["rust"]):
            bad += 1
            print(f"{old['row']}: C {old['c']} -> {new['c']}, Rust {old['rust']} -> {new['rust']}")
        elif wanted:
            slower += 1
        else:
            same += 1
    print(f"{slower} rows slower as expected, {same} the same, {bad} wrong, {unclear} unclear")
    sys.exit(bad > 0 or slower == 0 or same == 0)


main()
