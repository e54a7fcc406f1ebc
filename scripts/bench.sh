#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make bench: what the C tracker and the module cost, side by side in one boot
# of the stock kernel, with nested and with shadow paging.
#
#   PART=...    only these parts (scripts/bench-report.py names their rows):
#               reader pages notifiers memslots writes tables attach
#                      exact instructions (QEMU's -icount)
#               memory bytes
#               linux  wall time of a compile job in a Linux guest under shadow
#                      paging; takes long and runs only when named
#   ROUNDS=3    how often C and Rust are measured in turn
#   PAIRS=5     part linux: pairs of jobs
#   VM=nested|shadow  only that paging mode
#   BENCH_OUT=build/bench  where the results go
#
# The table goes to stdout, results.json and results.svg to BENCH_OUT.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
[ -z "${KPT_IN_ROOT:-}" ] || die "bench.sh: run it on the host"

cd "$KPT_TOP"
start=$SECONDS
rounds=${ROUNDS:-3}
read -ra parts <<<"${PART:-reader pages notifiers memslots writes tables attach memory}"
read -ra modes <<<"${VM:-nested shadow}"
out=${BENCH_OUT:-build/bench}
mkdir -p "$out"

exec 8>build/.bench-lock
flock -n 8 || die "another make bench is running in this clone"

counted=() plain=() linux=
for p in "${parts[@]}"; do
	case $p in
	memory) plain+=("$p") ;;
	linux) linux=1 ;;
	reader | pages | notifiers | memslots | writes | tables | attach) counted+=("$p") ;;
	*) die "no part $p" ;;
	esac
done

# machine NAME MODE OPTION...: run it, keep its lines.  A row is of its paging
# mode whatever the machine is called.
results=()
machine() {
	local name=$1 mode=$2 npt=1
	shift 2
	[ "$mode" = nested ] || npt=0
	results+=("npt=$npt" "build/log/$name.out")
	scripts/vm.sh "$name" --npt "$npt" --smp 1 --append "kpt.env.ROUNDS=$rounds $append" \
		"$@" </dev/null | grep -v '^@' >&2 ||
		die "bench: the machine $name failed"
}

comma() {
	local IFS=,
	echo "$*"
}

scripts/setup.sh
scripts/in-root.sh make --no-print-directory module tests-build bench-build >build/bench.log 2>&1 ||
	{ tail -n 30 build/bench.log >&2; die "the bench does not build"; }
scripts/initramfs.sh

program=(--job bench --file kpt_bench build/bench/bin/kpt_bench --qemu -cpu --qemu max,phys-bits=46)
for mode in "${modes[@]}"; do
	if [ ${#counted[@]} -gt 0 ]; then
		append="kpt.env.PARTS=$(comma "${counted[@]}")"
		machine "bench-$mode" "$mode" --limit 3000 "${program[@]}" \
			--accel tcg,thread=single --qemu -icount --qemu shift=0,sleep=off
	fi
	if [ ${#plain[@]} -gt 0 ]; then
		append="kpt.env.PARTS=$(comma "${plain[@]}")"
		machine "bench-memory-$mode" "$mode" --limit 1200 --mem 6G "${program[@]}"
	fi
done
if [ -n "$linux" ]; then
	append="kpt.env.PAIRS=${PAIRS:-5}"
	machine bench-linux shadow --job bench-linux --limit 7200 --share
fi

scripts/bench-report.py --out "$out" "${results[@]}"
say "bench took $((SECONDS - start)) s"
