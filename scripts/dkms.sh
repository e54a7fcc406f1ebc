#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# What dkms.conf has DKMS do, as root:
#
#   dkms.sh build RELEASE          build here, for an installed kernel; make the
#                                  Rust metadata first if its headers have none
#   dkms.sh symvers RELEASE ARCH   after an install or a removal: publish the
#                                  installed module's Module.symvers, or remove
#                                  what is there
#
# Module.symvers of the module installed for a kernel is
# /var/lib/kvm-page-track/RELEASE/Module.symvers; trees with Rust metadata are in
# /var/cache/kvm-page-track/dkms, as long as that kernel's headers are installed.
set -euo pipefail
export KPT_CACHE=/var/cache/kvm-page-track/dkms
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

published=/var/lib/kvm-page-track
dkms_tree=/var/lib/dkms/kvm-page-track

usage="usage: dkms.sh build RELEASE | symvers RELEASE ARCH"

# Trees of kernels that are gone, or have another version now.
prune() {
	local tree rel version
	for tree in "$KPT_CACHE"/metadata-*; do
		[ -e "$tree/include/config/kernel.release" ] || continue
		rel=$(cat "$tree/include/config/kernel.release")
		version=$(dpkg-query -W -f '${Version}' "linux-headers-$rel" 2>/dev/null || true)
		if [ "${tree##*/}" != "metadata-$rel-${version//[^A-Za-z0-9.+]/_}" ]; then
			say "removing $tree: its kernel is gone"
			rm -rf --one-file-system "$tree"
		fi
	done
}

build() {
	local rel=$1 kdir
	cd "$KPT_TOP"
	prune
	kdir=$(KPT_RELEASE=$rel scripts/setup/rust-metadata.sh --running)
	make module KDIR="$kdir" MODULE_OUT="$KPT_TOP/build/module"
	# DKMS keeps it if it is here.
	cp build/module/Module.symvers .
}

symvers() {
	local from=$dkms_tree/kernel-$1-$2/module/Module.symvers to=$published/$1
	if [ -e "$from" ]; then
		install -D -m 644 "$from" "$to/Module.symvers"
	elif [ -d "$to" ]; then
		rm -f "$to/Module.symvers"
		rmdir --ignore-fail-on-non-empty "$to"
		rmdir --ignore-fail-on-non-empty "$published"
	fi
}

case ${1:-} in
build)
	[ $# -ge 2 ] || die "$usage"
	build "$2"
	;;
symvers)
	[ $# -eq 3 ] || die "$usage"
	symvers "$2" "$3"
	;;
*) die "$usage" ;;
esac
