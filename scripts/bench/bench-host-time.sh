#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Beside part linux of make bench: bench-host-time.sh PID OUT reads what the job
# prints, hands it on, and writes to OUT how long each job of the guest took here,
# and how much processor time QEMU used for it, which does not count who else was
# running.  PID is a process that QEMU is a descendant of.
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

# Milliseconds, in user mode and in the kernel.
cpu_time() {
	local user kernel
	read -r _ _ _ _ _ _ _ _ _ _ _ user kernel _ < <(sed 's/.*) //' "/proc/$qemu/stat")
	echo $(((user + kernel) * 10))
}

wall_time() {
	echo $((${EPOCHREALTIME/[^0-9]/} / 1000))
}

# row WHO ROUND MS TEXT WHY
row() {
	printf '@ %s\t%s\tms\t%s\t%s\t%s\t%s\t1\t%s\t%s\n' \
		"$1" "$2" "$3" "$3" "$3" "$3" "Linux guest: compile job, $4" "$5" >>"$out"
}

: >"$out"
while IFS= read -r line; do
	printf '%s\n' "$line"
	case $line in
	"# kpt-vm: "*" start")
		# perhaps not the first one: the emulator may have died
		qemu=
		: >"$out"
		;;
	"# job "*" begins"*)
		[ -n "$qemu" ] || find_qemu
		began=$(cpu_time)
		wall=$(wall_time)
		;;
	"# job "*" ends: "*)
		wall=$(($(wall_time) - wall))
		ms=$(($(cpu_time) - began))
		n=${line#\# job } n=${n%% *}
		who=${line#*: } who=${who%%,*}
		[ "$n" -gt 0 ] || continue
		row "$who" $(((n + 1) / 2)) "$wall" "wall time" "what else this computer does"
		row "$who" $(((n + 1) / 2)) "$ms" "processor time of the emulator" \
			"caches, translation of code"
		;;
	esac
done
