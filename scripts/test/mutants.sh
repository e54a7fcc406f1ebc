#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make mutants: show that the tests can fail.  Every line of tests/mutants.list
# is one breakage of the module; each is made in a scratch copy, built, and must
# make its test program fail.  M=GLOB runs only the breakages that match.
#
# The last line is "N passed, N failed": passed are those that were noticed.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -z "${KPT_IN_ROOT:-}" ] || die "mutants.sh: run it on the host"

cd "$KPT_TOP"
work=$KPT_TOP/build/mutants
rm -rf "$work"
mkdir -p "$work"

# A copy with everything built that a breakage does not touch.
scripts/setup.sh
scripts/in-root.sh make --no-print-directory module tests-build >"$work/build.log" 2>&1 ||
	{ tail -n 20 "$work/build.log"; die "the tests do not build"; }

# try NAME MACHINE PROGRAMS FILE SUBSTITUTION: prints "noticed ..." or "FAIL ..."
try() {
	local name=$1 vm=$2 programs=$3 file=$4 change=$5 dir=$work/$1 p part flavour=$KPT_FLAVOUR
	[[ $vm != *@* ]] || flavour=${vm#*@}
	mkdir -p "$dir/build"
	copy_clone "$dir"
	cp -a build/tests build/module "$dir/build/"
	cp "$dir/$file" "$dir/before"
	while IFS= read -r part; do
		perl -0pi -e "$part" "$dir/$file"
		if cmp -s "$dir/before" "$dir/$file"; then
			echo "FAIL  $name: this changes nothing: $part"
			return
		fi
		cp "$dir/$file" "$dir/before"
	done < <(perl -e 'print join("\n", split(/;\s+(?=s\/)/, $ARGV[0])), "\n"' -- "$change")
	for p in $programs; do
		# a broken module may hang its machine
		if KPT_FLAVOUR=$flavour KPT_LIMIT=${KPT_LIMIT:-240} T=$p VM=${vm%@*} \
			"$dir/scripts/test/test.sh" >"$dir/$p.log" 2>&1; then
			continue
		fi
		if grep -q '^FAIL  build' "$dir/$p.log"; then
			echo "FAIL  $name: does not build, see $dir/$p.log"
		elif grep -q "^FAIL" "$dir/$p.log"; then
			echo "noticed  $name: $(grep '^FAIL' "$dir/$p.log" | head -n 1 | cut -c7-)"
			rm -rf "${dir:?}/build"
		else
			echo "FAIL  $name: no verdict, see $dir/$p.log"
		fi
		return
	done
	echo "FAIL  $name: nobody noticed ($programs, $vm)"
}

while IFS= read -r line; do
	case $line in
	'' | '#'*) continue ;;
	esac
	name=${line%% | *} rest=${line#* | }
	vm=${rest%% | *} rest=${rest#* | }
	programs=${rest%% | *} rest=${rest#* | }
	file=${rest%% | *} change=${rest#* | }
	# shellcheck disable=SC2053
	[[ $name == ${M:-*} ]] || continue
	while [ "$(jobs -rp | wc -l)" -ge 2 ]; do
		wait -n || true
	done
	try "$name" "$vm" "$programs" "$file" "$change" </dev/null | tee -a "$work/results" &
done <tests/mutants.list
wait

passed=$(grep -c '^noticed' "$work/results" || true)
failed=$(grep -c '^FAIL' "$work/results" || true)
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
