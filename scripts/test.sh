#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make test: build everything, run the tests in virtual machines, sum up.
#
#   nested       kvm-amd npt=1, all kselftests
#   shadow       kvm-amd npt=0, all kselftests
#   upstream-nested, upstream-shadow (only when named with VM=)
#                upstream's selftests of tests/upstream-short, in three machines
#                one after the other (scripts/upstream.sh)
#   linux-guest  kvm-amd npt=0, a stock Linux as guest (scripts/jobs/linux-guest)
#
# Two machines run at a time, one for each processor they would use.
# T=GLOB runs only the programs that match, VM=NAME only that machine.
# The last line is "N passed, N failed, N skipped".
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
[ -z "${KPT_IN_ROOT:-}" ] || die "test.sh: run it on the host"

cd "$KPT_TOP"
start=$SECONDS
machines=(nested shadow linux-guest)
if [ -n "${VM:-}" ]; then
	read -ra machines <<<"$VM"
elif [ -n "${T:-}" ]; then
	machines=(nested shadow)
fi

mkdir -p build/log
exec 8>build/.test-lock
flock -n 8 || die "another make test is running in this clone"

summary() {
	local passed=0 failed=0 skipped=0 p f s m
	echo
	for m in "${machines[@]}"; do
		if [ -s "build/log/$m.sum" ]; then
			read -r p f s <"build/log/$m.sum"
			tail -n +2 "build/log/$m.sum"
			passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
		else
			echo "FAIL  [$m] machine: no result"
			failed=$((failed + 1))
		fi
	done
	if [ $((passed + failed)) -eq 0 ]; then
		echo "FAIL  no test ran"
		failed=1
	fi
	say "tests took $((SECONDS - start)) s; logs are in build/log"
	echo "$passed passed, $failed failed, $skipped skipped"
	[ "$failed" -eq 0 ]
}

build() {
	if ! scripts/in-root.sh make --no-print-directory module tests-build ||
		! scripts/initramfs.sh ||
		{ [[ "${machines[*]}" == *upstream* ]] && ! scripts/upstream-build.sh; }; then
		echo "FAIL  build"
		echo "0 passed, 1 failed, 0 skipped"
		exit 1
	fi
}

# The Linux guest has a machine of one processor: with two, and one thread of
# the emulator for both, the guest stops for good early in its boot (seen
# without our module as well).
run() {
	local opts=() limit=2400
	case $1 in
	upstream-*)
		sed '/^#/d' tests/upstream-short >"build/log/$1.programs"
		LIMIT=${LIMIT:-120} scripts/upstream.sh --mode "${1#upstream-}" \
			--list "build/log/$1.programs" --sum "build/log/$1.sum" || true
		return
		;;
	nested*) opts=(--job test --npt 1) ;;
	shadow*) opts=(--job test --npt 0) ;;
	linux-guest-nested) limit=1200 opts=(--job linux-guest --npt 1 --smp 1 --share) ;;
	linux-guest*) limit=1200 opts=(--job linux-guest --npt 0 --smp 1 --share) ;;
	*) die "no machine $1" ;;
	esac
	[ -z "${T:-}" ] || opts+=(--tests "$T")
	[ -z "${KPT_LONG:-}" ] || opts+=(--append kpt.env.LONG=1)
	rm -f "build/log/$1.sum"
	scripts/vm.sh "$1" "${opts[@]}" --limit "${KPT_LIMIT:-$limit}" </dev/null |
		awk -v vm="$1" -v sum="build/log/$1.sum" -f scripts/tap.awk || true
}

scripts/setup.sh
build
say "running ${machines[*]}"
pids=()
trap '[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true' EXIT
for m in "${machines[@]}"; do
	while [ "$(jobs -rp | wc -l)" -ge 2 ]; do
		wait -n || true
	done
	run "$m" &
	pids+=($!)
done
wait
pids=()
summary
