#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make bench-docs: what the last make bench wrote goes into docs, if it was a
# whole run: every row to performance-rows.md, the rows that users feel to
# performance.svg and between the two marks in performance.md.
#
#   BENCH_OUT=build/bench  where the results are
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

cd "$KPT_TOP"
from=${BENCH_OUT:-build/bench}
text=docs/performance.md
begin="<!-- make bench-docs: begin -->"
end="<!-- make bench-docs: end -->"

for f in rows.md top.md performance.svg; do
	[ -s "$from/$f" ] || die "no $from/$f: run make bench first"
done
head -n 1 "$from/rows.md" | grep -q ': every row\.$' ||
	die "the last make bench was not a whole one: $(head -n 1 "$from/rows.md")"
for mark in "$begin" "$end"; do
	[ "$(grep -cxF -e "$mark" "$text")" = 1 ] || die "$text must have one line $mark"
done

new=$(mktemp)
trap 'rm -f "$new"' EXIT
{
	sed "/^$begin\$/q" "$text"
	echo
	cat "$from/top.md"
	echo
	sed -n "/^$end\$/,\$p" "$text"
} >"$new"
cat "$new" >"$text"
cp "$from/rows.md" docs/performance-rows.md
cp "$from/performance.svg" docs/performance.svg
say "docs/performance.md, performance-rows.md and performance.svg are of $(head -n 1 "$from/rows.md")"
