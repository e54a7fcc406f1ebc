#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Show that a kernel that lacks what the module needs is refused by name:
# build-refusals.sh, in the toolchain root.
#
# Each refusal is a tree that differs from $KDIR in one line of its auto.conf or of
# one of KVM's headers.
# (The refusals at load are the machine "refusals" of scripts/test/test.sh.)
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -n "${KPT_IN_ROOT:-}" ] || die "build-refusals.sh: run it with make check"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
conf=include/config/auto.conf
release=$(cat "$KDIR/include/config/kernel.release")
bad=0 n=0

# A tree of links to $KDIR, in which own FILE makes a file that can be changed.
links() {
	mkdir -p "$2"
	find "$1" -mindepth 1 -maxdepth 1 -exec ln -s -t "$2" {} +
}
own() {
	local dir=. parts part
	IFS=/ read -ra parts <<<"$(dirname "$1")"
	for part in "${parts[@]}"; do
		dir=$dir/$part
		if [ -L "$tree/$dir" ]; then
			rm "$tree/$dir"
			links "$KDIR/$dir" "$tree/$dir"
		fi
	done
	rm -f "$tree/$1"
	cp "$KDIR/$1" "$tree/$1"
}
links "$KDIR" "$tree"

# build TARGET: what make of that kernel says to our Kbuild
build() {
	rm -rf "$work/out"
	mkdir -p "$work/out"
	make -C "$tree" M="$KPT_TOP" MO="$work/out" KERNELRELEASE="$release" "$1" \
		>"$work/log" 2>&1
}

# refused WHAT TARGET MESSAGE: the tree as it is now is, with that message
refused() {
	n=$((n + 1))
	if build "$2"; then
		echo "$1 is not refused"
	elif ! grep -o "$3" "$work/log" | head -n 1 | grep .; then
		cat "$work/log"
		echo "$1: refused without \"$3\""
	else
		return 0
	fi
	bad=$((bad + 1))
	return 1
}

# refused_option OPTION VALUE: by name, before anything is compiled
refused_option() {
	{
		grep -v "^$1=" "$KDIR/$conf"
		[ "$2" = n ] || echo "$1=$2"
	} >"$tree/$conf"
	if refused "$1=$2" modules "this kernel is refused: it has $1=$2 and not .*" &&
		grep -E '^ +(CC|RUSTC|BINDGEN) ' "$work/log"; then
		echo "$1=$2 is only refused after something was compiled"
		bad=$((bad + 1))
	fi
}

# refused_header FILE CHANGE MESSAGE: a header of KVM's is another
refused_header() {
	own "$1"
	sed -i "$2" "$tree/$1"
	cmp -s "$KDIR/$1" "$tree/$1" && die "$2 changes nothing in $1"
	refused "$2" kvm/prototypes.o "$3" || true
	own "$1"
}

own "$conf"
if ! build kvm/prototypes.o || [ ! -s "$work/out/kvm/prototypes.o" ]; then
	cat "$work/log"
	die "the tree does not even build with nothing changed"
fi

refused_option CONFIG_X86_64 n
refused_option CONFIG_RUST n
refused_option CONFIG_KVM_X86 n
refused_option CONFIG_KVM_X86 y
refused_option CONFIG_LTO_CLANG y
refused_option CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS n
refused_option CONFIG_DYNAMIC_FTRACE_WITH_JMP n
refused_option CONFIG_KPROBES n
refused_option CONFIG_HAVE_STATIC_CALL_INLINE n
own "$conf"

mmu=arch/x86/kvm/mmu
refused_header $mmu/page_track.h 's/kvm_page_track_create_memslot/kvm_page_track_make_memslot/' \
	"kvm_page_track_create_memslot. undeclared"
refused_header $mmu/page_track.h '/__kvm_write_track_add_gfn/s/struct kvm \*kvm/struct kvm_vcpu *vcpu/' \
	'this kernel is refused: __kvm_write_track_add_gfn() is not the function .*'
refused_header $mmu/mmu_internal.h '/^bool kvm_mmu_slot_gfn_write_protect/s/bool/int/' \
	'this kernel is refused: kvm_mmu_slot_gfn_write_protect() is not the function .*'

# Every function is among those that are looked at.
for function in $(sed -n 's/^    replace \([a-z_]*\):.*/\1/p' mmu_hooks/with*_tracking.rs) \
	$(sed -n 's/.*c"kvm:\([a-z_]*\)".*/\1/p' kvm/functions.rs); do
	if ! grep -q "^KVM_FUNCTION($function," kvm/prototypes.c; then
		echo "$function is not in kvm/prototypes.c"
		bad=$((bad + 1))
	fi
done

# Every requirement is shown.
# shellcheck disable=SC2016 # make's, not the shell's
while read -r option; do
	if ! grep -q "^refused_option $option " "$0"; then
		echo "nothing shows that $option is needed"
		bad=$((bad + 1))
	fi
done < <(sed -n 's/^$(call kpt-need,\([A-Z0-9_]*\),.*/\1/p' "$KPT_TOP/base/requirements.mk")

# Nor are headers prepared without Rust, or for another compiler.
headers=$work/headers
mkdir -p "$headers"
touch "$headers/Module.symvers"
metadata_refused() {
	n=$((n + 1))
	echo "$1" >"$headers/.config"
	if scripts/setup/rust-metadata.sh "$release" "$headers" "$KDIR" "$work/metadata" \
		>"$work/log" 2>&1 || ! grep "$2" "$work/log"; then
		cat "$work/log"
		echo "headers with \"$1\": not refused, or not with \"$2\""
		bad=$((bad + 1))
	fi
}
metadata_refused '# CONFIG_RUST is not set' 'built without CONFIG_RUST'
metadata_refused $'CONFIG_RUST=y\nCONFIG_RUSTC_VERSION_TEXT="rustc 0.1.2 (x)"' \
	'was built with rustc 0\.1\.2, this is rustc '

echo "refusals shown: $n, failed: $bad"
[ "$bad" -eq 0 ] && [ "$n" -gt 0 ]
