# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What vm.sh and bochs.sh share: options, what a machine is given, how it is run
# and its end is judged.  To be sourced after lib.sh; the variables are those of
# the scripts.
# shellcheck disable=SC2034,SC2154

# machine_options NAME [OPTION...]: reads them, and names the files that the machine
# writes.  For an option that only one emulator has own_option of its script is
# called with what is left, and sets $words if that is not two words.
machine_options() {
	local words
	job=none append='' cmd='' tests='' files=() once=''
	name=${1:-}
	[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9_.-]*$ ]] ||
		die "usage: ${0##*/} NAME [OPTION...], see its first lines"
	shift
	while [ $# -gt 0 ]; do
		words=2
		case $1 in
		--job) job=$2 ;;
		--cmd) job=run cmd=$2 ;;
		--tests) tests=$2 ;;
		--limit) limit=$2 ;;
		--once) once=1 words=1 ;;
		--mem) mem=$2 ;;
		--append) append=$2 ;;
		--file) files+=("$2" "$3") words=3 ;;
		*) own_option "$@" ;;
		esac
		shift "$words"
	done
	# What this kernel needs (scripts/setup/debug-kernel.sh).
	[ ! -e /kernel/cmdline ] || append="$(cat /kernel/cmdline) $append"
	log=$KPT_TOP/build/log
	mkdir -p "$log"
	console=$log/$name.console
	out=$log/$name.out
}

# machine_initrd: sets $own to a new file, build/initramfs.cpio.gz and behind it
# a second archive with what is for this one machine: $cmd, $tests, $files.
machine_initrd() {
	local initrd=$KPT_TOP/build/initramfs.cpio.gz tree
	[ -e "$initrd" ] || die "no $initrd; run make or scripts/vm/initramfs.sh"
	tree=$(mktemp -d)
	[ -z "$cmd" ] || printf '%s\n' "$cmd" >"$tree/kpt-cmd"
	[ -z "$tests" ] || printf '%s\n' "$tests" >"$tree/kpt-tests"
	set -- "${files[@]}"
	while [ $# -gt 0 ]; do
		mkdir -p "$tree/$(dirname "$1")"
		cp "$2" "$tree/$1"
		shift 2
	done
	own=$(mktemp)
	cat "$initrd" >"$own"
	(cd "$tree" && find . -mindepth 1 | cpio --quiet -o -H newc -R 0:0 | gzip -1) >>"$own"
	rm -rf "$tree"
}

# machine_run [FILE...]: the machine from its start to the script's end; once more
# if the emulator died, and FILEs of the first time are FILE.first then.  The
# script's boot runs it, and sets $rc as timeout does.
machine_run() {
	local f
	machine_boot
	if [ "$status" -eq 3 ] && [ -z "$once" ]; then
		echo "# kpt-vm: $name: $text; running this machine once more"
		for f in "$console" "$out" "$@"; do
			[ ! -e "$f" ] || mv "$f" "$f.first"
		done
		machine_boot
	fi
	echo "# kpt-vm: $name end=$status $text"
	exit "$status"
}

machine_boot() {
	local rc=0
	: >"$console"
	: >"$out"
	echo "# kpt-vm: $name start"
	boot
	machine_judge "$rc"
}

# machine_judge RC: from how the emulator ended (as timeout tells it), what the
# job said and what the kernel said; sets $status and $text.
#
# A machine that failed, but stood still meanwhile for longer than a kernel takes
# for a lockup (scripts/vm/watch.py), shows nothing: that is the emulator's
# failure, unless the kernel complains of anything but lockups and stalls.
machine_judge() {
	machine_judge_run "$1"
	case $status in
	1 | 2 | 5)
		if [ -e "$log/$name.stalled" ] && only_lockups "$console"; then
			status=3 text="$(tail -n 1 "$log/$name.stalled"); else: $text"
		fi
		;;
	esac
}

# only_lockups LOG: is there no report but of lockups and stalls, with what is
# printed behind each?
only_lockups() {
	local rest=$log/$name.rest
	tr -d '\r' <"$1" | awk '
		/watchdog: BUG: soft lockup|rcu: INFO: .*stall/ { theirs = 60 }
		theirs-- > 0 && /lockup|stall|starved|Modules linked in|Call Trace|Code: / { next }
		{ print }
	' >"$rest"
	"$KPT_TOP/scripts/vm/kernel-report.sh" "$rest" >/dev/null
}

machine_judge_run() {
	local rc=$1 verdict report line
	verdict=$(sed -n 's/^# kpt-job: done rc=\([0-9]*\).*/\1/p' "$out" | tail -n 1)

	if report=$("$KPT_TOP/scripts/vm/kernel-report.sh" "$console"); then
		if [ "$rc" -ge 124 ] && [ "$rc" -ne 137 ] && [ "$rc" -ne 124 ]; then
			status=3 text="the emulator died (exit $rc)"
			[ ! -e "$log/$name.stands" ] ||
				text="the emulator stood still (build/log/$name.state)"
		elif [ "$rc" -ne 0 ] && [ "$rc" -ne 124 ] && [ "$rc" -ne 137 ]; then
			status=3 text="the emulator failed (exit $rc)"
		elif [ "$job" = shell ] && [ "$rc" -eq 0 ]; then
			status=0 text="shell ended"
		elif [ "$verdict" = 0 ]; then
			status=0 text="good, kernel log clean"
		elif [ -n "$verdict" ]; then
			status=1 text="the job failed (rc=$verdict)"
		elif [ "$rc" -eq 124 ] || [ "$rc" -eq 137 ]; then
			status=4 text="out of time after $limit s"
		else
			status=5 text="ended without a verdict"
		fi
	else
		status=2 text="the kernel reported: $(head -n 1 <<<"$report") (see build/log/$name.console)"
		while IFS= read -r line; do
			echo "# kernel: $line"
		done <<<"$report"
	fi
}
