#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Show that a kernel that lacks what the module needs is refused by name, before
# anything is compiled: check-refusals.sh, in the toolchain root.
#
# Each refusal is a tree that differs from $KDIR in one line of its auto.conf.
# (The refusals at load are the machine "refusals" of scripts/test.sh.)
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
[ -n "${KPT_IN_ROOT:-}" ] || die "check-refusals.sh: run it with make check"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
conf=$tree/include/config/auto.conf
release=$(cat "$KDIR/include/config/kernel.release")
bad=0 n=0

# $KDIR but for its configuration, which is a copy.
mkdir -p "$tree/include/config"
find "$KDIR" -mindepth 1 -maxdepth 1 ! -name include -exec ln -s -t "$tree" {} +
find "$KDIR/include" -mindepth 1 -maxdepth 1 ! -name config -exec ln -s -t "$tree/include" {} +
find "$KDIR/include/config" -mindepth 1 -maxdepth 1 ! -name auto.conf \
	-exec ln -s -t "$tree/include/config" {} +

# build TARGET: what make of that kernel says to our Kbuild
build() {
	rm -rf "$work/out"
	mkdir -p "$work/out"
	make -C "$tree" M="$KPT_TOP" MO="$work/out" KERNELRELEASE="$release" "$1" \
		>"$work/log" 2>&1
}

# refused OPTION VALUE: a kernel with that is, and the message names it
refused() {
	local option=$1 value=$2
	n=$((n + 1))
	{
		grep -v "^$option=" "$KDIR/include/config/auto.conf"
		[ "$value" = n ] || echo "$option=$value"
	} >"$conf"
	if build modules; then
		echo "$option=$value is not refused"
	elif ! grep -q "refused: it has $option=$value and not" "$work/log"; then
		cat "$work/log"
		echo "$option=$value: the message does not name it"
	elif grep -E '^ +(CC|RUSTC|BINDGEN) ' "$work/log"; then
		echo "$option=$value is only refused after something was compiled"
	else
		sed -n 's/.*kvm_page_track: this kernel is //p' "$work/log" | head -n 1
		return
	fi
	bad=$((bad + 1))
}

# The tree as such is good: something of ours compiles with it.
cp "$KDIR/include/config/auto.conf" "$conf"
if ! build exports.i || [ ! -s "$work/out/exports.i" ]; then
	cat "$work/log"
	die "the tree does not even build with nothing changed"
fi

refused CONFIG_X86_64 n
refused CONFIG_RUST n
refused CONFIG_KVM_X86 n
refused CONFIG_KVM_X86 y
refused CONFIG_LTO_CLANG y
refused CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS n
refused CONFIG_DYNAMIC_FTRACE_WITH_JMP n
refused CONFIG_KPROBES n
refused CONFIG_HAVE_STATIC_CALL n

# Every requirement is shown.
# shellcheck disable=SC2016 # make's, not the shell's
while read -r option; do
	if ! grep -q "^refused $option " "$0"; then
		echo "nothing shows that $option is needed"
		bad=$((bad + 1))
	fi
done < <(sed -n 's/^$(call kpt-need,\([A-Z0-9_]*\),.*/\1/p' "$KPT_TOP/requirements.mk")

# Nor are headers prepared without Rust, or for another compiler.
headers=$work/headers
mkdir -p "$headers"
touch "$headers/Module.symvers"
metadata_refused() {
	n=$((n + 1))
	echo "$1" >"$headers/.config"
	if scripts/rust-metadata.sh "$release" "$headers" "$KDIR" "$work/metadata" \
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
