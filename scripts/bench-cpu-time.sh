#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Beside part linux of make bench: bench-cpu-time.sh PID OUT reads what the job
# prints, hands it on, and writes to OUT how much processor time QEMU used in each
# job of the guest.  Unlike wall time that does not count who else was running.
# PID is a process that QEMU is a descendant of.
set -euo pipefail

ancestor=$1
out=$2
qemu=

# Does the process descend from ours?
ours() {
	local pid=$1
	while [ "$pid" -gt 1 ]; do
		[ "$pid" -ne "$ancestor" ] || return 0
		pid=$(sed 's/.*) //' "/proc/$pid/stat" | cut -d' ' -f2) || return 1
	done
	return 1
}

find_qemu() {
	local comm pid
	while read -r comm; do
		pid=$(cut -d/ -f3 <<<"$comm")
		if ours "$pid"; then
			qemu=$pid
			return
		fi
	done < <(grep -lsx qemu-system-x86 /proc/[0-9]*/comm || true)
}

# Hundredths of a second, in user mode and in the kernel.
cpu_time() {
	local user kernel
	read -r _ _ _ _ _ _ _ _ _ _ _ user kernel _ < <(sed 's/.*) //' "/proc/$qemu/stat")
	echo $((user + kernel))
}

: >"$out"
while IFS= read -r line; do
	printf '%s\n' "$line"
	case $line in
	"# job "*" begins"*)
		[ -n "$qemu" ] || find_qemu
		began=$(cpu_time)
		;;
	"# job "*" ms, "*)
		ms=$((($(cpu_time) - began) * 10))
		n=${line#\# job } n=${n%%,*}
		who=${line#*, } who=${who%%:*}
		[ "$n" -eq 0 ] || printf '@ %s\t%s\tms\t%s\t%s\t%s\t%s\t1\t%s\t%s\n' \
			"$who" $(((n + 1) / 2)) "$ms" "$ms" "$ms" "$ms" \
			"Linux guest: compile job, processor time of the emulator" \
			"caches, translation of code" >>"$out"
		;;
	esac
done
