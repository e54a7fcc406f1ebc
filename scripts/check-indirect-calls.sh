#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Prove by disassembly that kvm_page_track.ko makes no indirect call or jump
# except in functions that are meant to: check-indirect-calls.sh FILE.ko
#
# KVM's own functions have no ENDBR in a distribution's kernel, so an indirect
# call to one is a fatal fault on a CPU with IBT, and no emulated machine would
# show it.  They must be reached by direct calls (static_call) only.
set -euo pipefail

# Functions that may call through a pointer, as patterns for the demangled name
# (v0 symbols; without hashes), each with the reason.
allowed=(
	# placeholder: filled from the module's code
)

[ $# -eq 1 ] || { echo "usage: check-indirect-calls.sh FILE.ko" >&2; exit 2; }

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
while IFS= read -r line; do
	[ -n "$line" ] || continue
	n=$((n + 1))
	fn=${line%%: *}
	ok=
	for a in "${allowed[@]}"; do
		if [[ $fn =~ ^($a)$ ]]; then
			ok=1
			break
		fi
	done
	if [ -z "$ok" ]; then
		echo "indirect branch in a function that is not on the list: $line"
		bad=$((bad + 1))
	fi
done <<<"$found"

# The direct way must be there, or this check looks at the wrong thing.
calls=$(objdump -t "$1" | grep -c '__SCT__' || true)
if [ "$calls" -eq 0 ]; then
	echo "no static calls in $1: how are KVM's functions reached?"
	bad=$((bad + 1))
fi
echo "indirect calls: $n, all but $bad in functions on the list; static calls: $calls"
[ "$bad" -eq 0 ]
