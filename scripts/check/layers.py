#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""make check: the rules of the house (docs/internals.md, rules 6 and 7), read from
the sources of the module.

- A layer names only layers below it, and two of one floor do not know each other.
- `unsafe` stays in the layers at the edges.
- A file fits one reading: 500 lines without its unit tests.
"""

import re
import subprocess
import sys
from pathlib import Path

FLOORS = [
    ["page_track"],
    ["mmu_hooks"],
    ["abi", "dev"],
    ["tracker"],
    ["memslot", "notifier"],
    ["kvm"],
    ["base"],
]
UNSAFE = ["page_track", "mmu_hooks", "abi", "dev", "kvm", "base"]
LINES = 500

floor = {layer: i for i, floor in enumerate(FLOORS) for layer in floor}


def code(text):
    """Without comments and unit tests."""
    text = text.partition("\n#[kernel::macros::kunit_tests")[0]
    return re.sub(r"//.*", "", text)


def named(text):
    """The layers that a file names: crate::a, and use crate::{a, b::{c, d}}."""
    for path in re.findall(r"\bcrate::(\w+)", text):
        yield path
    for group in re.findall(r"\bcrate::\{(.*?)\};", text, re.S):
        while re.search(r"\{[^{}]*\}", group):
            group = re.sub(r"\{[^{}]*\}", "", group)
        yield from re.findall(r"(?:^|,)\s*(\w+)", group)


def main():
    bad = 0
    arrows = set()
    files = [Path(f) for f in subprocess.check_output(
        ["find", ".", "-name", "build", "-prune", "-o", "-name", "*.rs", "-print"],
        text=True).split()]
    files = [f for f in files if f.parts[0].removesuffix(".rs") not in ("tests", "demo")]
    for path in sorted(files):
        layer = path.parts[0].removesuffix(".rs")
        if layer not in floor:
            print(f"{path}: in no layer")
            bad += 1
            continue
        text = code(path.read_text(encoding="utf-8"))
        for other in named(text):
            if other not in floor:
                print(f"{path}: names crate::{other}, which is no layer")
                bad += 1
            elif other != layer and floor[other] <= floor[layer]:
                print(f"{path}: names {other}, which is not below {layer}")
                bad += 1
            elif other != layer:
                arrows.add((layer, other))
        if layer not in UNSAFE and re.search(r"\bunsafe\b", text):
            print(f"{path}: says unsafe")
            bad += 1
        if text.count("\n") > LINES:
            print(f"{path}: {text.count(chr(10))} lines without its tests")
            bad += 1
    print(f"{len(files)} files, {len(arrows)} arrows between layers, {bad} bad")
    # Nothing found would be a check that looks at the wrong place.
    return bad != 0 or len(arrows) < len(FLOORS)


sys.exit(main())
