#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make matrix: the kselftests on every kernel that is supported, with nested and
# with shadow paging.
#
#   amd64, cloud-amd64, rt-amd64   flavours of Debian trixie-backports
#   sid                            amd64 of Debian sid, in a root of its own
#
# MATRIX="sid rt-amd64" runs only these; VM="nested intel-ept" only these
# machines (of scripts/test/test.sh) on each; T=GLOB only programs that match.
# With --build nothing runs: the module, the tests and the bench are built.
#
# One kernel after the other: set up, built and run in a copy of the clone as it
# is at the start, build/matrix/KERNEL, where its logs are found.  A kernel that
# cannot be set up or built is one failure, and the others go on.  The table is
# build/matrix/table; the last line is "N passed, N failed, N skipped".
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -z "${KPT_IN_ROOT:-}" ] || die "matrix.sh: run it on the host"

cd "$KPT_TOP"
read -ra kernels <<<"${MATRIX:-amd64 cloud-amd64 rt-amd64 sid}"
build_only=
case ${1:-} in
"") ;;
--build) build_only=1 ;;
*) die "usage: matrix.sh [--build]" ;;
esac
out=$KPT_TOP/build/matrix
mkdir -p "$out"
exec 11>"$out/.lock"
flock -n 11 || die "another make matrix is running in this clone"

# The machines of a kernel.  Intel's are a processor that takes long to emulate:
# one kernel is enough for them.
machines() {
	if [ -n "$build_only" ]; then
		echo build
	elif [ -n "${VM:-}" ]; then
		echo "$VM"
	elif [ "$1" = amd64 ] && grep -q '^	intel-' scripts/test/test.sh; then
		echo nested shadow intel-ept intel-shadow
	else
		echo nested shadow
	fi
}

# The clone as it is, with what was built there before.
fresh_copy() {
	mkdir -p "$1"
	find "$1" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
	copy_clone "$1"
	rm -rf "$1/build/log"
}

# A row of the table: KERNEL RELEASE MACHINE PASSED FAILED SKIPPED SECONDS
row() {
	printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$out/rows"
}

# Sets up, builds and runs one kernel.  What fails is in $out/bad.
run_kernel() {
	local kernel=$1 dir=$out/$1 release='?' start=$SECONDS m p f s seconds
	local -a vms
	read -ra vms <<<"$(machines "$kernel")"
	if [ "$kernel" = sid ]; then
		export KPT_SUITE=sid KPT_FLAVOUR=amd64
	else
		export KPT_SUITE=trixie KPT_FLAVOUR=$kernel
	fi
	unset KPT_KERNEL_SUITE KPT_KERNEL_DIR KPT_ROOT_DIR
	say "$kernel: ${vms[*]}"
	if ! "$dir/scripts/setup.sh"; then
		row "$kernel" "$release" setup 0 1 0 $((SECONDS - start))
		echo "FAIL  [$kernel] cannot be set up" >>"$out/bad"
		return
	fi
	release=$("$dir/scripts/in-root.sh" cat /kernel/release)
	if [ -n "$build_only" ]; then
		f=0
		"$dir/scripts/in-root.sh" make --no-print-directory module tests-build bench-build \
			>"$dir/build.log" 2>&1 || f=1
		if [ "$f" -eq 0 ]; then
			echo "ok    [$kernel] module, tests and bench build for $release"
		else
			tail -n 30 "$dir/build.log"
			echo "FAIL  [$kernel] does not build for $release, see build/matrix/$kernel/build.log" |
				tee -a "$out/bad"
		fi
		row "$kernel" "$release" build $((1 - f)) "$f" 0 $((SECONDS - start))
		return
	fi
	VM="${vms[*]}" "$dir/scripts/test/test.sh" 2>&1 | tee "$dir/test.log" | sed -u "s/^/[$kernel] /" || true
	if grep -q '^FAIL  build' "$dir/test.log"; then
		row "$kernel" "$release" build 0 1 0 $((SECONDS - start))
		echo "FAIL  [$kernel] does not build, see build/matrix/$kernel/test.log" >>"$out/bad"
		return
	fi
	for m in "${vms[@]}"; do
		p=0 f=1 s=0 seconds=-
		[ ! -s "$dir/build/log/$m.seconds" ] || read -r seconds <"$dir/build/log/$m.seconds"
		if [ -s "$dir/build/log/$m.sum" ]; then
			read -r p f s <"$dir/build/log/$m.sum"
			sed -n "s/^FAIL  /FAIL  [$kernel] /p" "$dir/build/log/$m.sum" >>"$out/bad"
		else
			echo "FAIL  [$kernel] [$m] machine: no result" >>"$out/bad"
		fi
		row "$kernel" "$release" "$m" "$p" "$f" "$s" "$seconds"
	done
}

rm -f "$out"/{rows,bad,table}
touch "$out/rows" "$out/bad"
for kernel in "${kernels[@]}"; do
	case $kernel in
	amd64 | cloud-amd64 | rt-amd64 | sid) fresh_copy "$out/$kernel" ;;
	*) die "no kernel $kernel in the matrix" ;;
	esac
done
for kernel in "${kernels[@]}"; do
	(run_kernel "$kernel") || echo "FAIL  [$kernel] matrix.sh stopped" >>"$out/bad"
	cut -f1 "$out/rows" | grep -qx "$kernel" || row "$kernel" '?' '?' 0 1 0 -
done

awk -F'\t' 'BEGIN { form = "%-12s  %-26s  %-12s  %8s  %8s  %8s  %8s\n"
		printf form, "kernel", "release", "machine", "passed", "failed", "skipped", "seconds" }
	{ printf form, $1, $2, $3, $4, $5, $6, $7 }' "$out/rows" >"$out/table"
echo
cat "$out/bad" "$out/table"
echo
awk -F'\t' '{ p += $4; f += $5; s += $6 }
	END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 || p == 0 }' "$out/rows"
