#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Copies of build/module/kvm_page_track.ko that want functions which no kvm.ko
# has, as if a kernel had renamed them: refusals.sh DIR makes DIR/FUNCTION.ko,
# one for a function that is replaced and one for a function that is called.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

[ $# -eq 1 ] || die "usage: refusals.sh DIR"
module=$KPT_TOP/build/module/kvm_page_track.ko
rm -rf "$1"
mkdir -p "$1"

# Names as they are in the module's tables: of the same length, so that nothing
# else of the file changes.
renamed() {
	local n
	n=$(FROM=$1 TO=$2 perl -0777 -ne '
		$n = s/kvm:\Q$ENV{FROM}\E\0/kvm:$ENV{TO}\0/g;
		print STDERR $n;
		print' "$module" 2>&1 >"$3/$2.ko")
	[ "$n" = 1 ] || die "$1 is $n times in $module, not once"
}
renamed kvm_page_track_create_memslot kvm_page_track_create_memsloT "$1"
renamed kvm_mmu_slot_gfn_write_protect kvm_mmu_slot_gfn_write_protecT "$1"
