# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# Common part of the scripts: where things are, how to speak, how to fail.
# To be sourced, with "set -euo pipefail" in force.
#
# setup/   the toolchain root and the kernels     vm/       the virtual machines
# test/    make test and its kin                  bench/    make bench
# check/   make check                             package/  the Debian package
#
# KPT_CACHE         the one directory outside the clone that we write to
# KPT_SUITE         Debian release of the toolchain root
# KPT_KERNEL_SUITE  Debian suite that the kernel comes from
# KPT_FLAVOUR       amd64, cloud-amd64 or rt-amd64
# KPT_MIRROR        Debian mirror; the host's own apt settings if empty

KPT_CACHE=${KPT_CACHE:-/var/cache/kvm-page-track}
KPT_SUITE=${KPT_SUITE:-trixie}
if [ "$KPT_SUITE" = sid ]; then
	KPT_KERNEL_SUITE=${KPT_KERNEL_SUITE:-sid}
else
	KPT_KERNEL_SUITE=${KPT_KERNEL_SUITE:-$KPT_SUITE-backports}
fi
KPT_FLAVOUR=${KPT_FLAVOUR:-amd64}
export KPT_CACHE KPT_SUITE KPT_KERNEL_SUITE KPT_FLAVOUR

# The clone, wherever the script is that sources this.
KPT_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Used by setup.sh.
# shellcheck disable=SC2034
KPT_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

say() {
	printf 'kpt: %s\n' "$*" >&2
}

die() {
	printf 'kpt: ERROR: %s\n' "$*" >&2
	exit 1
}

# The packages of the toolchain root, comma separated.
root_packages() {
	sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' \
		"$KPT_TOP/scripts/setup/root-packages" | paste -sd, -
}

# Where the toolchain root is: a new place for every package list.
root_dir() {
	local key
	key=$( (echo "1 $KPT_SUITE"; root_packages) | sha256sum | cut -c1-12)
	echo "$KPT_CACHE/toolchain-$KPT_SUITE-$key"
}

# A symbolic link to the kernel in use.
kernel_link() {
	echo "$KPT_CACHE/kernel-$KPT_KERNEL_SUITE-$KPT_FLAVOUR"
}

# run_logged LOG WHAT CMD...: run CMD with its output in LOG and a sign of life
# every 15 seconds; on failure show the log's end.
run_logged() {
	local log=$1 what=$2 pid start=$SECONDS next=15 rc=0
	shift 2
	mkdir -p "$(dirname "$log")"
	say "$what ..."
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if [ $((SECONDS - start)) -ge "$next" ]; then
			say "  $what: $next s, $(tail -n 1 "$log" | tr -d '\r' |
				tr -c '[:print:]' ' ' | cut -c1-60)"
			next=$((next + 15))
		fi
	done
	wait "$pid" || rc=$?
	if [ "$rc" -ne 0 ]; then
		tail -n 25 "$log" >&2
		say "ERROR: $what failed (exit $rc); the whole log is $log"
		return 1
	fi
	say "$what: done in $((SECONDS - start)) s"
}

# lock_cache_for WHAT: one of us at a time may make WHAT in the cache; with WHAT
# "all" nobody makes anything.
lock_cache_for() {
	local what=$1 how=--shared
	mkdir -p "$KPT_CACHE/lock.d" || die "cannot create $KPT_CACHE (KPT_CACHE names another place)"
	[ "$what" != all ] || how=--exclusive
	exec 10>"$KPT_CACHE/lock.d/all" 9>"$KPT_CACHE/lock.d/of-$what"
	if ! flock --nonblock "$how" 10 || ! flock --nonblock 9; then
		say "another run is writing to $KPT_CACHE ($what), waiting for it ..."
		flock "$how" 10
		flock 9
	fi
}

lock_cache() {
	lock_cache_for other
}

unlock_cache() {
	exec 9>&- 10>&-
}

# copy_clone DIR: the clone, in which we are, as it is, without what was built.  Times
# are kept: what was built can be copied as well and is not built again.
copy_clone() {
	mkdir -p "$1"
	# a file that is deleted and not yet committed is no failure
	git ls-files -z -co --exclude-standard |
		xargs -0 cp --parents --preserve=mode,timestamps -t "$1" 2>/dev/null || true
}

# The end of a test run that has nothing to run.
build_failed() {
	echo "FAIL  build"
	echo "0 passed, 1 failed, 0 skipped"
	exit 1
}

# Add up build/log/MACHINE.sum (scripts/test/tap.awk) of all $machines, print what did
# not pass and the last line of a test run.  Fails unless all passed.
# shellcheck disable=SC2154 # machines and start are the caller's
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
