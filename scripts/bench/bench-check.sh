#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make bench-check: show that the bench notices.  Every line of
# tests/slowdowns.list slows the module down at one place, in a scratch copy; the
# rows it names must get slower, so that some exceed their budgets, and every
# other row, and all of C's, must stay as they are, to the instruction.
#
# The last line is "N passed, N failed, N skipped".
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -z "${KPT_IN_ROOT:-}" ] || die "bench-check.sh: run it on the host"

cd "$KPT_TOP"
work=$KPT_TOP/build/bench-check
rm -rf "$work"
mkdir -p "$work"

# measure CLONE OUT: what is measured must not change from boot to boot.  A module
# that exceeds a budget has been measured as well.
measure() {
	BENCH_OUT=$2 PART="reader pages" VM=nested ROUNDS=2 "$1/scripts/bench/bench.sh" >"$2.log" 2>&1 ||
		grep -q '^OVER BUDGET' "$2.log" || { tail -n 20 "$2.log" >&2; return 1; }
}

say "measuring the module as it is"
measure "$KPT_TOP" "$work/base" || die "the bench fails"
! grep '^OVER BUDGET' "$work/base.log" >&2 || die "the module as it is exceeds budgets: nothing can be shown"
passed=0 failed=0

try() {
	local name=$1 pattern=$2 file=$3 change=$4 dir=$work/$1.d
	mkdir -p "$dir/build"
	git ls-files -z -co --exclude-standard | xargs -0 cp --parents -t "$dir" 2>/dev/null || true
	cp -a build/tests build/module "$dir/build/"
	perl -0pi -e "$change" "$dir/$file"
	if cmp -s "$file" "$dir/$file"; then
		echo "the substitution changes nothing"
		return 1
	fi
	say "measuring with a slower $name"
	measure "$dir" "$work/$name" || return 1
	rm -rf "${dir:?}"
	sed -n 's/^OVER BUDGET  npt=[01] //p' "$work/$name.log" | grep -P "$pattern" >/dev/null ||
		{ echo "it misses no goal"; return 1; }
	scripts/bench/bench-compare.py "$work/base/results.json" "$work/$name/results.json" "$pattern"
}

while IFS= read -r line; do
	case $line in
	'' | '#'*) continue ;;
	esac
	name=${line%% | *} rest=${line#* | }
	pattern=${rest%% | *} rest=${rest#* | }
	file=${rest%% | *} change=${rest#* | }
	if try "$name" "$pattern" "$file" "$change" </dev/null; then
		echo "ok    a slower $name shows, and nothing else does"
		passed=$((passed + 1))
	else
		echo "FAIL  a slower $name"
		failed=$((failed + 1))
	fi
done <tests/slowdowns.list

echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
