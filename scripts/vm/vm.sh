#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Run one virtual machine (QEMU without hardware virtualization, the stock
# kernel, build/initramfs.cpio.gz) and judge how it ended: vm.sh NAME [OPTION...]
#
#   --job JOB       test, shell, run, ... (scripts/vm/guest-init.sh); default none
#   --cmd COMMAND   job run: what to run
#   --tests GLOB    job test: only programs that match
#   --npt 0|1       shadow or nested paging; default 1
#   --limit SECS    wall-clock limit; default 1800
#   --once          not a second time if the emulator died
#   --mem SIZE      default 3G;   --smp N   default 2
#   --accel ACCEL   default tcg,thread=single
#   --append WORDS  for the kernel's command line
#   --share         the toolchain root as 9p share "root", read-only
#   --file NAME FILE  put FILE into the machine as /NAME (may be repeated)
#   --qemu OPTION   one more option for QEMU (may be repeated)
#
# Job output: stdout and build/log/NAME.out.  Kernel: build/log/NAME.console.
# Beside it runs watch.py, which wakes a machine that QEMU lets sleep for ever,
# and leaves the processors' state in build/log/NAME.state if time runs out.
#
# Exit status:
#   0  the guest's verdict is good and the kernel's log is clean
#   1  the guest's verdict is bad
#   2  the kernel reported something (always a failure)
#   3  the emulator itself died or stood still, twice
#   4  out of time
#   5  the machine ended without a verdict
# The last line of stdout tells the same: "# kpt-vm: NAME end=STATUS TEXT".
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=scripts/vm/machine.sh
. "$(dirname "$0")/machine.sh"
[ -n "${KPT_IN_ROOT:-}" ] || exec "$KPT_TOP/scripts/in-root.sh" scripts/vm/vm.sh "$@"

npt=1 limit=1800 mem=3G smp=2 accel=tcg,thread=single share='' extra=()
own_option() {
	case $1 in
	--npt) npt=$2 ;;
	--smp) smp=$2 ;;
	--accel) accel=$2 ;;
	--share) share=1 words=1 ;;
	--qemu) extra+=("$2") ;;
	*) die "vm.sh: unknown option $1" ;;
	esac
}
machine_options "$@"
machine_initrd
monitor=/tmp/monitor

# KVM on PREEMPT_RT wants a TSC that QEMU cannot promise, though its TSC is one.
case $(cat /kernel/release) in
*-rt-*) append="setcpuid=constant_tsc $append" ;;
esac

qemu=(
	qemu-system-x86_64 -accel "$accel" -cpu max -smp "$smp" -m "$mem" -M q35
	-nodefaults -display none -no-user-config -no-reboot
	-kernel /kernel/vmlinuz -initrd "$own"
	-append "console=ttyS0 panic=-1 oops=panic loglevel=7 kpt.job=$job kpt.npt=$npt $append"
	-serial "file:$console" -serial stdio
	-monitor "unix:$monitor,server=on,wait=off"
)
[ -z "$share" ] || qemu+=(-virtfs
	"local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap")
qemu+=("${extra[@]}")

boot() {
	local watch f
	rm -f "$log/$name.state"
	if [ "$job" = shell ] && [ -t 0 ]; then
		stty raw -echo
		timeout --foreground -k 10 "$limit" "${qemu[@]}" || rc=$?
		stty sane
	else
		rm -f "$log/$name".{stands,woken,stalled}
		"$KPT_TOP/scripts/vm/watch.py" "$monitor" "$log/$name" "$limit" &
		watch=$!
		timeout --foreground -k 10 "$limit" "${qemu[@]}" </dev/null 2>"$out.err" |
			tee "$out" || rc=${PIPESTATUS[0]}
		kill "$watch" 2>/dev/null || true
		[ ! -s "$out.err" ] || sed "s/^/# qemu: /" "$out.err"
	fi
	for f in "$log/$name".{woken,stalled}; do
		[ ! -e "$f" ] || sed 's/^/# emulator: /' "$f"
	done
}

machine_run "$out.err" "$log/$name.state"
