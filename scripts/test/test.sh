#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make test: build everything, run the tests in virtual machines, sum up.
#
#   nested          kvm-amd npt=1, all kselftests
#   shadow          kvm-amd npt=0, all kselftests
#   linux-guest     a stock Linux as guest (scripts/vm/jobs/linux-guest), npt=0
#   linux-guest-nested                                                 npt=1
#   refusals        the module when kvm.ko lacks a function (scripts/test/refusals.sh)
#   upstream-nested, upstream-shadow
#                   upstream's selftests of tests/upstream-short, in three
#                   machines one after the other (scripts/test/upstream.sh)
#
# and, when named with VM=:
#
#   intel-ept       kvm-intel ept=1, all kselftests, in Bochs (scripts/vm/bochs.sh)
#   intel-shadow    kvm-intel ept=0
#
# and (make test-long, make test-debug), with nested- or shadow- before it:
#
#   fuzz            api_fuzz, 100,000 operations
#   cycles          200 attaches and detaches under a busy guest, and 200 under
#                   page-table churn (KPT_CYCLES)
#   storms          every storm with 20 attaches and detaches
#   smp             the programs that race on purpose
#   faults          fault_injection, which only the debug kernel can run
#
# Two machines run at a time, one for each processor they would use.
# T=GLOB runs only the programs that match (or several globs), VM=NAME only that
# machine.  The last line is "N passed, N failed, N skipped".
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -z "${KPT_IN_ROOT:-}" ] || die "test.sh: run it on the host"

cd "$KPT_TOP"
start=$SECONDS
machines=(linux-guest nested shadow linux-guest-nested refusals upstream-nested upstream-shadow)
if [ -n "${VM:-}" ]; then
	read -ra machines <<<"$VM"
elif [ -n "${T:-}" ]; then
	machines=(nested shadow)
fi

mkdir -p build/log
exec 8>build/.test-lock
flock -n 8 || die "another make test is running in this clone"

build() {
	if ! scripts/in-root.sh make --no-print-directory module tests-build ||
		! scripts/vm/initramfs.sh ||
		{ [[ "${machines[*]}" == *upstream* ]] && ! scripts/test/upstream-build.sh; }; then
		build_failed
	fi
}

# The Linux guest has a machine of one processor: with two, and one thread of
# the emulator for both, the guest stops for good early in its boot (seen
# without our module as well).
run() {
	local opts=() tests='' limit=2400 env=() ko vm=scripts/vm/vm.sh
	case $1 in
	upstream-*)
		sed '/^#/d' tests/upstream-short >"build/log/$1.programs"
		LIMIT=${LIMIT:-300} scripts/test/upstream.sh --mode "${1#upstream-}" \
			--list "build/log/$1.programs" --sum "build/log/$1.sum" || true
		return
		;;
	linux-guest-nested) opts=(--job linux-guest --npt 1 --smp 1 --share) ;;
	linux-guest*) opts=(--job linux-guest --npt 0 --smp 1 --share) ;;
	refusals)
		scripts/test/refusals.sh build/refusals
		opts=(--job refusals)
		for ko in build/refusals/*.ko; do
			opts+=(--file "refusals/${ko##*/}" "$ko")
		done
		;;
	intel-ept) opts=(--job test --ept 1) vm=scripts/vm/bochs.sh ;;
	intel-shadow) opts=(--job test --ept 0) vm=scripts/vm/bochs.sh ;;
	nested*) opts=(--job test --npt 1) ;;
	shadow*) opts=(--job test --npt 0) ;;
	*) die "no machine $1" ;;
	esac
	case $1 in
	nested | shadow)
		# another kernel is a slower one
		[ -z "${KPT_KERNEL_DIR:-}" ] || env=(PATIENCE=5 TEST_LIMIT=2000 SECONDS=10)
		;;
	*-fuzz) tests='api_fuzz' env=("FUZZ_OPS=${KPT_FUZZ_OPS:-100000}") ;;
	*-cycles)
		tests='attach_detach shadow_paging' env=("CYCLES=${KPT_CYCLES:-200}")
		;;
	*-storms) tests='storms*' env=("CYCLES=${KPT_CYCLES:-20}") ;;
	*-smp) tests='smp races notifiers ranges storms' env=(SECONDS=10) ;;
	*-faults) tests='fault_injection' ;;
	intel-*)
		limit=7200
		env=(PATIENCE=5 TEST_LIMIT=2000)
		;;
	linux-guest* | refusals) ;;
	*) die "no machine $1" ;;
	esac
	case $1 in
	nested-* | shadow-*)
		limit=7200
		env+=(PATIENCE=60 TEST_LIMIT=7200)
		;;
	esac
	[ -z "${KPT_KERNEL_DIR:-}" ] || limit=7200
	tests=${T:-$tests}
	[ -z "$tests" ] || opts+=(--tests "$tests")
	rm -f "build/log/$1.sum"
	"$vm" "$1" "${opts[@]}" --append "${env[*]/#/kpt.env.}" \
		--limit "${KPT_LIMIT:-$limit}" </dev/null |
		awk -v vm="$1" -v sum="build/log/$1.sum" -f scripts/test/tap.awk || true
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
	{
		began=$SECONDS
		run "$m"
		echo $((SECONDS - began)) >"build/log/$m.seconds"
	} &
	pids+=($!)
done
wait
pids=()
summary
