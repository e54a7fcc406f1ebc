#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The same as vm.sh for an Intel processor: Bochs, which emulates VMX and EPT,
# the stock kernel, build/initramfs.cpio.gz, kvm-intel: bochs.sh NAME [OPTION...]
#
#   --job JOB       test, run, ... (scripts/vm/guest-init.sh); default none
#   --cmd COMMAND   job run: what to run
#   --tests GLOB    job test: only programs that match
#   --ept 0|1       shadow or nested paging; default 1
#   --limit SECS    wall-clock limit; default 3600
#   --once          not a second time if the emulator died
#   --mem MIB       default 2048
#   --ips N         instructions in a second of the machine's own time; default
#                   50000000, about what Bochs does in a second
#   --append WORDS  for the kernel's command line
#   --file NAME FILE  put FILE into the machine as /NAME (may be repeated)
#
# Job output: stdout and build/log/NAME.out.  Kernel: build/log/NAME.console.
# Bochs: build/log/NAME.bochs.
#
# The machine has one processor, and its clock is counted in instructions: time
# in which the processor sleeps passes at once, time limits inside it do not
# depend on how busy the host is.
#
# Exit status and last line are those of vm.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=scripts/vm/machine.sh
. "$(dirname "$0")/machine.sh"
[ -n "${KPT_IN_ROOT:-}" ] || exec "$KPT_TOP/scripts/in-root.sh" scripts/vm/bochs.sh "$@"

ept=1 limit=3600 mem=2048 ips=50000000
own_option() {
	case $1 in
	--ept) ept=$2 ;;
	--ips) ips=$2 ;;
	*) die "bochs.sh: unknown option $1" ;;
	esac
}
machine_options "$@"
machine_initrd

# Bochs boots from a disc.  tsc=unstable, lpj: nothing to calibrate against.  A
# kernel that panics halts, as Bochs would otherwise boot it again.
dir=$(mktemp -d)
mkdir -p "$dir/disc/boot/grub"
cp /kernel/vmlinuz "$dir/disc/vmlinuz"
mv "$own" "$dir/disc/initrd"
cat >"$dir/disc/boot/grub/grub.cfg" <<END
linux /vmlinuz console=ttyS0 panic=0 oops=panic loglevel=7 tsc=unstable lpj=1000000 nokaslr mitigations=off kpt.job=$job kpt.ept=$ept $append
initrd /initrd
boot
END
grub-mkrescue -o "$dir/disc.iso" "$dir/disc" >"$dir/mkrescue" 2>&1 || {
	cat "$dir/mkrescue" >&2
	die "grub-mkrescue failed"
}
rm -rf "$dir/disc"

cat >"$dir/bochsrc" <<END
display_library: term
cpu: model=corei7_haswell_4770, count=1, ips=$ips
memory: guest=$mem, host=$mem
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
clock: sync=none
ata0-master: type=cdrom, path=$dir/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$console
com2: enabled=1, mode=file, dev=$out
log: $log/$name.bochs
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
END
# Debian's Bochs is the one with a debugger, which waits for its first command.
echo c >"$dir/commands"

# The emulator, on a terminal that nobody sees.
emulate() {
	# shellcheck disable=SC2016 # for the inner shell
	TERM=linux exec script -qefc 'echo $$ >'"$dir/pid"'
		exec bochs -q -f '"$dir/bochsrc -rc $dir/commands" "$dir/terminal" \
		</dev/null >/dev/null 2>&1
}

# The machine's screen is another terminal, whose name Bochs tells on the first.
# It must be read, or Bochs waits for ever once it is full.
screen() {
	local pts=''
	until [ -n "$pts" ]; do
		sleep 0.2
		pts=$(grep -aom 1 '/dev/pts/[0-9]*' "$dir/terminal") || true
	done
	stty -F "$pts" raw -echo
	exec cat "$pts" >/dev/null 2>&1
}

# The machine has ended, or will not go on, or begins again after a reset.
over() {
	grep -q '^# kpt-job: done rc=' "$out" ||
		grep -qE 'Kernel panic - not syncing|reboot: ' "$console" ||
		[ "$(grep -c '] Linux version ' "$console")" -gt 1 ]
}

boot() {
	local ended=0 machine screen tail end=$((SECONDS + limit)) grace=5
	rm -f "$dir"/{pid,terminal}
	emulate &
	machine=$!
	screen &
	screen=$!
	tail -s 0.5 -n +1 -f --pid="$machine" "$out" &
	tail=$!
	while kill -0 "$machine" 2>/dev/null; do
		sleep 1
		if over && [ $((grace -= 1)) -lt 0 ]; then
			kill -KILL "$(cat "$dir/pid")" 2>/dev/null || true
			break
		elif [ "$SECONDS" -ge "$end" ]; then
			kill -KILL "$(cat "$dir/pid")" 2>/dev/null || true
			rc=124
			break
		fi
	done
	# how the emulator ends once the machine is over is its own business
	wait "$machine" || ended=$?
	[ "$rc" -ne 0 ] || over || rc=$ended
	wait "$tail" || true
	kill "$screen" 2>/dev/null || true
}

machine_run "$log/$name.bochs"
