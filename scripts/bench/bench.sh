#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make bench: what the C tracker and the module cost, side by side in one boot
# of the stock kernel, with nested and with shadow paging.
#
#   PART=...    only these parts (scripts/bench/bench-report.py names their rows):
#               reader pages ranges notifiers memslots writes tables attach
#                      exact instructions (QEMU's -icount)
#               memory bytes
#               linux  instructions and wall time of a compile job in a Linux
#                      guest under shadow paging; takes long and runs only when
#                      named
#   ROUNDS=3    how often C and Rust are measured in turn
#   PAIRS=5     part linux: pairs of jobs
#   VM=nested|shadow  only that paging mode
#   BENCH_OUT=build/bench  where the results go
#
# Ends with the rows that users feel, and whether everything is within budget;
# fails if not (scripts/bench/bench-report.py names both).  Every row is printed before,
# unless the run is a whole one.
#
# Files in BENCH_OUT:
#   rows.md          every row
#   top.md           the rows that users feel
#   performance.svg  a chart of them
#   results.json     every row for programs, and results.svg, a chart of all
# make bench-docs copies the first three into docs.
#
# Counted parts run on one emulated processor whose time stamp counter counts
# instructions, in a machine where nothing is random: addresses, the random
# numbers of the processor, the time of day.  Two boots measure the same.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -z "${KPT_IN_ROOT:-}" ] || die "bench.sh: run it on the host"

cd "$KPT_TOP"
start=$SECONDS
append=
rounds=${ROUNDS:-3}
all_parts="reader pages ranges notifiers memslots writes tables attach memory"
read -ra parts <<<"${PART:-$all_parts}"
read -ra modes <<<"${VM:-nested shadow}"
out=${BENCH_OUT:-build/bench}
mkdir -p "$out" build/log

# What is measured, for the heads of the files.
commit=${BENCH_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
command="make bench"
for v in PART VM ROUNDS PAIRS; do
	[ -z "${!v:-}" ] || command+=" $v=\"${!v}\""
done
whole=(--whole)
for p in $all_parts nested shadow; do
	[[ " ${parts[*]} ${modes[*]} " == *" $p "* ]] || whole=()
done

exec 8>build/.bench-lock
flock -n 8 || die "another make bench is running in this clone"

counted=() plain=() linux=
for p in "${parts[@]}"; do
	case $p in
	memory) plain+=("$p") ;;
	linux) linux=1 ;;
	reader | pages | ranges | notifiers | memslots | writes | tables | attach) counted+=("$p") ;;
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
	scripts/vm/vm.sh "$name" --npt "$npt" --smp 1 --append "$append" \
		"$@" </dev/null | scripts/bench/bench-host-time.sh $$ "build/log/$name.host" |
		grep -v '^@' >&2 ||
		die "bench: the machine $name failed"
}

# The chart is drawn with matplotlib, in a Python environment of its own.
matplotlib=3.11.2
python=$KPT_CACHE/matplotlib-$matplotlib/bin/python
make_python() {
	local new
	[ ! -x "$python" ] || return 0
	if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
		run_logged "$KPT_CACHE/log/host-apt.log" "installing on the host: python3-venv" \
			env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y --no-install-recommends python3-venv
	fi
	# another clone may be making it too: the first to finish wins
	new=$(mktemp -d "$KPT_CACHE/matplotlib.XXXXXX")
	chmod 755 "$new"
	python3 -m venv "$new"
	run_logged "$KPT_CACHE/log/matplotlib.log" "fetching matplotlib $matplotlib" \
		"$new/bin/python" -m pip install --quiet "matplotlib==$matplotlib"
	mv -T "$new" "$KPT_CACHE/matplotlib-$matplotlib" 2>/dev/null || rm -rf "$new"
	[ -x "$python" ] || die "no matplotlib $matplotlib"
}

comma() {
	local IFS=,
	echo "$*"
}

scripts/setup.sh
make_python
scripts/in-root.sh make --no-print-directory module tests-build bench-build >build/bench.log 2>&1 ||
	{ tail -n 30 build/bench.log >&2; die "the bench does not build"; }
scripts/vm/initramfs.sh

cpu=max,phys-bits=46
program=(--job bench --file kpt_bench build/bench/bin/kpt_bench --qemu -cpu --qemu "$cpu")
# shellcheck disable=SC2054 # the commas are QEMU's
exact=(--accel tcg,thread=single --qemu -icount --qemu shift=0,sleep=off --qemu -seed --qemu 1
	--qemu -rtc --qemu base=2026-01-01,clock=vm)
for mode in "${modes[@]}"; do
	if [ ${#counted[@]} -gt 0 ]; then
		append="nokaslr kpt.env.ROUNDS=$rounds kpt.env.PARTS=$(comma "${counted[@]}")"
		machine "bench-$mode" "$mode" --limit 3000 "${program[@]}" "${exact[@]}"
	fi
	if [ ${#plain[@]} -gt 0 ]; then
		append="kpt.env.ROUNDS=1 kpt.env.PARTS=$(comma "${plain[@]}")"
		machine "bench-memory-$mode" "$mode" --limit 1800 --mem 6G "${program[@]}"
	fi
done
if [ -n "$linux" ]; then
	scripts/bench/bench-inner.sh
	append="nokaslr norandmaps kpt.env.PAIRS=${PAIRS:-5}"
	machine bench-linux shadow --job bench-linux --limit 7200 --share \
		--qemu -cpu --qemu "$cpu" "${exact[@]}"
	results+=(npt=0 build/log/bench-linux.host)
fi

rm -f "$out"/{results.json,results.svg,rows.md,top.md,performance.svg}
status=0
scripts/bench/bench-report.py --out "$out" --command "$command" --commit "$commit" "${whole[@]}" \
	"${results[@]}" >"$out/report" || status=$?
[ -s "$out/results.json" ] || die "bench: no results"
"$python" scripts/bench/bench-chart.py "$out"
say "bench took $((SECONDS - start)) s; $out has rows.md, top.md, performance.svg, results.json, results.svg"
echo
cat "$out/report"
exit "$status"
