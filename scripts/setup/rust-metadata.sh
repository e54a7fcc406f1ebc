#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Make a kernel tree that Rust modules for a stock Debian kernel can be built
# against: rust-metadata.sh RELEASE HEADERS SOURCE OUT
#
#   RELEASE  of the kernel, as uname -r prints it
#   HEADERS  its headers: /usr/src/linux-headers-RELEASE
#   SOURCE   its source: linux-source-X.Y.tar.xz, or the unpacked directory
#   OUT      directory to make; not there yet
#
# Debian's headers carry no Rust metadata.  It is made from the kernel's source
# with the kernel's configuration and compiler; the result names its symbols as
# the stock kernel does, which is checked at the end.  Takes about 90 seconds.
#
# "rust-metadata.sh --running" does it for the running kernel of a Debian machine
# (or an installed one, KPT_RELEASE) and prints the name of the tree: in
# KPT_CACHE, kept, and without what is not needed to build modules; or the
# kernel's headers, should they have the metadata.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

# Upstream's part of a release: 7.3.4+deb13-amd64 -> 7.3.4
upstream_of() {
	sed -E 's/^([0-9.]*[0-9]).*/\1/' <<<"$1"
}

# The tools that it takes; the kernel's Rust crates only fit the very compiler
# that they were built with.
check_tools() {
	local rel=$1 headers=$2 tool want have
	for tool in make gcc rustc bindgen flex bison bc xz pahole; do
		command -v "$tool" >/dev/null || die "$tool is not installed"
	done
	want=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="rustc \([^ ]*\).*/\1/p' "$headers/.config")
	have=$(rustc --version | cut -d' ' -f2)
	[ "$want" = "$have" ] || die "kernel $rel was built with rustc $want, this is rustc $have"
}

package_version() {
	# shellcheck disable=SC2016 # dpkg's, not the shell's
	dpkg-query -W -f '${db:Status-Abbrev} ${Version}' "$1" 2>/dev/null |
		sed -n 's/^.[^cn]. //p'
}

running() {
	local rel=${KPT_RELEASE:-$(uname -r)} up headers version have out src
	headers=/lib/modules/$rel/build
	up=$(upstream_of "$rel" | cut -d. -f1,2)
	src=/usr/src/linux-source-$up.tar.xz
	[ -e "$headers/.config" ] ||
		die "no headers of kernel $rel: apt install linux-headers-$rel"
	grep -q '^CONFIG_RUST=y' "$headers/.config" ||
		die "kernel $rel is built without CONFIG_RUST; trixie-backports has one with it"
	check_tools "$rel" "$headers"
	if [ -e "$headers/rust/libkernel.rmeta" ]; then
		echo "$headers"
		return
	fi

	version=$(package_version "linux-headers-$rel")
	[ -n "$version" ] || die "the headers of kernel $rel are not from the package linux-headers-$rel"
	out=$KPT_CACHE/metadata-$rel-${version//[^A-Za-z0-9.+]/_}
	if [ ! -d "$out" ]; then
		have=$(package_version "linux-source-$up")
		if [ -z "$have" ] || [ ! -e "$src" ]; then
			die "no source of kernel $rel: apt install linux-source-$up=$version"
		elif [ "$have" != "$version" ]; then
			die "linux-source-$up is version $have, kernel $rel is $version: apt install linux-source-$up=$version"
		fi
		lock_cache_for "$(basename "$out")"
		[ -d "$out" ] || KPT_TRIM=1 "$0" "$rel" "$headers" "$src" "$out"
		unlock_cache
	fi
	echo "$out"
}

# What modules are built against is a sixth of the tree.
trim() {
	find . -mindepth 1 -maxdepth 1 -type d ! -name include ! -name scripts ! -name arch \
		! -name rust ! -name tools -exec rm -rf {} +
	find arch -mindepth 1 -maxdepth 1 -type d ! -name x86 -exec rm -rf {} +
	find tools -mindepth 1 -maxdepth 1 ! -name objtool ! -name bpf -exec rm -rf {} +
	find arch tools rust \( -name '*.[oc]' -o -name '*.a' \) -delete
}

prepare() {
	local rel=$1 headers=$2 tree=$3 local_version
	cp "$headers/.config" "$tree/.config"
	# Keys of Debian's that we have not got; modules stay unsigned.
	sed -i -e 's/^CONFIG_MODULE_SIG_KEY=.*/CONFIG_MODULE_SIG_KEY=""/' \
		-e 's/^CONFIG_SYSTEM_TRUSTED_KEYS=.*/CONFIG_SYSTEM_TRUSTED_KEYS=""/' \
		"$tree/.config"
	local_version=${rel#"$(upstream_of "$rel")"}
	set -- LOCALVERSION="$local_version" KERNELRELEASE="$rel"
	make -C "$tree" "$@" olddefconfig
	make -C "$tree" -j"$(nproc)" "$@" prepare modules_prepare
	cp "$headers/Module.symvers" "$tree/Module.symvers"
	if [ -n "${KPT_TRIM:-}" ]; then
		(cd "$tree" && trim)
	fi
}

if [ "${1:-}" = --running ]; then
	running
	exit 0
fi

[ $# -eq 4 ] || die "usage: rust-metadata.sh RELEASE HEADERS SOURCE OUT | --running"
rel=$1 headers=$2 source=$3 out=$4
if [ ! -e "$headers/.config" ] || [ ! -e "$headers/Module.symvers" ]; then
	die "$headers is no kernel headers directory"
fi
grep -q '^CONFIG_RUST=y' "$headers/.config" ||
	die "kernel $rel is built without CONFIG_RUST: no module in Rust can be built for it"
[ -e "$source" ] || die "no kernel source $source"
check_tools "$rel" "$headers"

tmp=$out.tmp
rm -rf "$tmp"
mkdir -p "$tmp"
trap 'rm -rf "$tmp"' EXIT
log=$(dirname "$out")/log/rust-metadata.log

unpack() {
	if [ -d "$source" ]; then
		cp -a "$source/." "$tmp"
	else
		tar -C "$tmp" --strip-components=1 -xf "$source"
	fi
}
run_logged "$log" "unpacking the kernel source" unpack
run_logged "$log" "making Rust metadata for $rel (about 90 s)" \
	prepare "$rel" "$headers" "$tmp"

grep -q '^CONFIG_RUST=y' "$tmp/.config" ||
	die "the kernel's configuration lost CONFIG_RUST (rustc, bindgen or rust-src missing?)"
[ "$(cat "$tmp/include/config/kernel.release")" = "$rel" ] ||
	die "the prepared tree is not of release $rel"
awk 'NR == FNR { have[$2] = 1; next }
	match($0, /\(.*\)/) { n++; if (!(substr($0, RSTART + 1, RLENGTH - 2) in have)) bad++ }
	END { exit !(n > 100 && !bad) }' \
	"$headers/Module.symvers" "$tmp/rust/exports_kernel_generated.h" ||
	die "Rust symbols differ from the stock kernel's: not the same compiler or source"

mv "$tmp" "$out"
trap - EXIT
