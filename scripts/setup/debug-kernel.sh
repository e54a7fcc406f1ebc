#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Make the debug kernel: the stock kernel's source, tinyconfig, and what
# scripts/setup/debug-kernel.config sets (KASAN, lockdep, kmemleak, KUnit, fault
# injection and so on).  With clang, since Rust and KASAN together want it.
# External write tracking, which only KVMGT can select, is made selectable.
#
#   debug-kernel.sh [FLAVOUR]       prints the directory of the kernel
#
# The directory has the form of setup.sh's kernels, so KPT_KERNEL_DIR may name
# it.  It is kept in KPT_CACHE, keyed by the release and the configuration.
# FLAVOUR adds scripts/setup/debug-kernel-FLAVOUR.config: kcsan looks for data races.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

fragments=("$KPT_TOP/scripts/setup/debug-kernel.config")
if [ -n "${1:-}" ] && [ "$1" != --build ]; then
	fragments+=("$KPT_TOP/scripts/setup/debug-kernel-$1.config")
	[ -e "${fragments[1]}" ] || die "no debug kernel of flavour $1"
fi

# In the root, with an empty /kernel and the stock kernel's source in /stock.
build() {
	local lost
	cd /kernel/src
	make -s mrproper
	sed -i '/^config KVM_EXTERNAL_WRITE_TRACKING/,/bool/s/bool$/bool "External write tracking"/' \
		arch/x86/kvm/Kconfig
	set -- LLVM=1 LOCALVERSION=-kpt-debug
	make -s "$@" tinyconfig
	scripts/kconfig/merge_config.sh -m .config /kernel/fragment
	make -s "$@" olddefconfig
	# An option that did not make it would be a check that does not check.
	lost=$(grep -E '^CONFIG_[A-Z0-9_]+=[^n]' /kernel/fragment | grep -vxFf .config || true)
	[ -z "$lost" ] || { echo "not set: $lost"; return 1; }
	make -j"$(nproc)" "$@" bzImage modules
	make -s "$@" INSTALL_MOD_PATH=/kernel INSTALL_MOD_STRIP=1 modules_install
	make -s "$@" kernelrelease >/kernel/release
	cp arch/x86/boot/bzImage /kernel/vmlinuz
	echo debug >/kernel/version
	# KASAN and five-level paging do not go together this early in the boot of
	# 7.3; only our unit tests, not the kernel's own.
	echo 'no5lvl kunit.filter_glob=kvm_page_track*' >/kernel/cmdline
	rm -f "/kernel/lib/modules/$(cat /kernel/release)/"{build,source}
	find . -name '*.o' -not -path './tools/*' -not -path './scripts/*' \
		-not -path './rust/*' -not -path './arch/x86/lib/*' -delete
}

if [ "${1:-}" = --build ]; then
	build
	exit 0
fi

"$KPT_TOP/scripts/setup.sh"
stock=$(readlink -f "$(kernel_link)")
# Of an option that is set twice the last counts.
fragment=$(cat "${fragments[@]}" | tac | awk -F= '/^CONFIG_/ && !seen[$1]++' | tac)
# What it is made of, whatever the scripts are called and the comments say.
key=$( (echo "$fragment"; declare -f build) | sha256sum | cut -c1-12)
dir=$KPT_CACHE/debug-$(cat "$stock/release")-$key
if [ ! -d "$dir" ]; then
	lock_cache
	tmp=$dir.tmp
	rm -rf "$tmp"
	mkdir -p "$tmp"
	trap 'rm -rf "$tmp"' EXIT
	say "debug kernel: $(basename "$dir"), once, about 25 minutes on 2 cores"
	cp -a "$stock/src" "$tmp/src"
	echo "$fragment" >"$tmp/fragment"
	KPT_KERNEL_DIR=$tmp run_logged "$KPT_CACHE/log/debug-kernel.log" "building the debug kernel" \
		"$KPT_TOP/scripts/in-root.sh" scripts/setup/debug-kernel.sh --build >&2
	mv "$tmp" "$dir"
	trap - EXIT
	unlock_cache
fi
echo "$dir"
