#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Prove by disassembly that kvm_page_track.ko makes no indirect call or jump
# except in functions that are meant to: indirect-calls.sh FILE.ko
#
# KVM's own functions have no ENDBR in a distribution's kernel, so an indirect
# call to one is a fatal fault on a CPU with IBT, and no emulated machine would
# show it.  They must be reached by direct calls (static_call) only.
set -euo pipefail

# Functions that may branch through a pointer, by their demangled names, and how
# often at most: the callbacks of other modules' notifiers and clients (code that
# has ENDBR), and the kernel's formatting.
declare -A allowed=(
	["page_track::notifier::tell_written"]=2
	["page_track::notifier::tell_removed"]=2
	["<page_track::kvm::listeners::Client>::track_move_region"]=1
	# core::fmt::Formatter's output, a trait object
	["page_track::dev::debugfs::show_vms"]=1
	["page_track::dev::debugfs::show_hooks"]=1
)

[ $# -eq 1 ] || { echo "usage: indirect-calls.sh FILE.ko" >&2; exit 2; }

# Lines "FUNCTION: INSTRUCTION" of all indirect branches.  -r shows the thunks'
# names, which are relocations in a module.
found=$(objdump -dr --no-show-raw-insn -C "$1" | awk '
	/^[0-9a-f]+ <.*>:$/ {
		fn = $0
		sub(/^[0-9a-f]+ </, "", fn)
		sub(/>:$/, "", fn)
		next
	}
	/__x86_indirect_(call_|jump_)?thunk_/ || /[[:space:]]not(rack)? +(call|jmp)/ ||
	/[[:space:]](bnd +)?(call|jmp) +\*/ {
		insn = $0
		sub(/^[[:space:]]*[0-9a-f]+:[[:space:]]*/, "", insn)
		print fn ": " insn
	}')

bad=0
n=0
declare -A seen=()
while IFS= read -r line; do
	[ -n "$line" ] || continue
	n=$((n + 1))
	fn=${line%%: *}
	seen[$fn]=$((${seen[$fn]:-0} + 1))
	if [ "${seen[$fn]}" -gt "${allowed[$fn]:-0}" ]; then
		echo "indirect branch that is not on the list: $line"
		bad=$((bad + 1))
	fi
done <<<"$found"

# The direct way must be there, or this check looks at the wrong thing.
calls=$(objdump -t "$1" | grep -c '__SCT__' || true)
if [ "$calls" -eq 0 ]; then
	echo "no static calls in $1: how are KVM's functions reached?"
	bad=$((bad + 1))
fi
echo "indirect branches: $n, not allowed: $bad; static calls: $calls"
[ "$bad" -eq 0 ]
