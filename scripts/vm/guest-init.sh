#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# /init of the virtual machine (busybox).  Sets the machine up, runs one job,
# powers off.  The kernel's command line says what to do:
#
#   kpt.job=NAME   runs /jobs/NAME; or shell, run (/kpt-cmd), none
#   kpt.npt=0|1    kvm-amd with shadow or nested paging
#   kpt.ept=0|1    instead: kvm-intel with shadow or nested paging
#   kpt.quirks=0   without the cures for TCG's SVM (tests/modules)
#   kpt.env.X=V    KPT_X=V in the environment of the job
#
# Job output goes to the second serial port, the kernel's to the first.
# The last line, "# kpt-job: done rc=N", is the machine's verdict.

export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TERM=linux

mkdir -p /proc /sys /dev /tmp /run /mnt /etc

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
mount -t cgroup2 cgroup /sys/fs/cgroup 2>/dev/null
mount -t hugetlbfs huge /dev/hugepages

stty -F /dev/ttyS1 115200 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1

param() {
	sed -n "s/.*\\bkpt\\.$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline
}

finish() {
	echo "# kpt-job: done rc=$1"
	# let both serial ports drain
	sync
	sleep 1
	poweroff -f
	sleep 100
}

# A kernel message that marks the place in the console's log.
mark() {
	echo "kpt: $*" >/dev/kmsg
}

job=$(param job)
npt=$(param npt)
npt=${npt:-1}
ept=$(param ept)
export KPT_NPT="${ept:-$npt}"
read -r words </proc/cmdline
for word in $words; do
	case $word in
	kpt.env.[A-Z]*=*)
		word=${word#kpt.env.}
		export "KPT_${word%%=*}=${word#*=}"
		;;
	esac
done

if [ -n "$ept" ]; then
	vendor=kvm-intel tdp=ept value=$ept
else
	vendor=kvm-amd tdp=npt value=$npt
fi
echo "# kpt-guest: Linux $(uname -r), $vendor $tdp=$value, job ${job:-none}"
echo 64 >/proc/sys/vm/nr_hugepages

if ! modprobe kvm || ! modprobe "$vendor" "$tdp=$value"; then
	echo "# kpt-guest: cannot load $vendor"
	finish 99
fi
case $value in
1) want=Y ;;
*) want=N ;;
esac
if [ "$(tr 10 YN <"/sys/module/kvm_${vendor#kvm-}/parameters/$tdp")" != "$want" ]; then
	echo "# kpt-guest: $vendor did not take $tdp=$value"
	finish 99
fi

if [ -e /modules/tcg_svm_quirks.ko ] && [ "$(param quirks)" != 0 ] &&
	grep -q AuthenticAMD /proc/cpuinfo &&
	[ "$(cat /sys/class/dmi/id/sys_vendor)" = QEMU ]; then
	insmod /modules/tcg_svm_quirks.ko || finish 99
fi

mark "job ${job:-none} starts"
rc=0
case $job in
shell)
	stty -F /dev/ttyS1 sane
	echo "A shell in the virtual machine.  /modules and /tests hold what was"
	echo "built; exit ends the machine."
	setsid -c sh -i
	;;
run)
	sh /kpt-cmd
	rc=$?
	;;
"" | none) ;;
*)
	if [ -e "/jobs/$job" ]; then
		sh "/jobs/$job"
		rc=$?
	else
		echo "# kpt-guest: no job $job"
		rc=98
	fi
	;;
esac
mark "job ${job:-none} ended: $rc"
finish "$rc"
