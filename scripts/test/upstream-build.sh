#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build upstream's KVM selftests, from the source of the stock kernel, with
# upstream's Makefile: static programs in /kernel/kvm-selftests of the root,
# their names in .list there.  Made once for a kernel; the source tree stays as
# it is.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -n "${KPT_IN_ROOT:-}" ] || exec "$KPT_TOP/scripts/in-root.sh" scripts/test/upstream-build.sh "$@"

to=/kernel/kvm-selftests
key=$(sha256sum <"$0")
exec 9>/kernel/.kvm-selftests.lock
flock 9
if [ -e "$to/.list" ] && [ "$(cat "$to/.key")" = "$key" ]; then
	exit 0
fi

work=$to.tmp
rm -rf "$work" "$to"
mkdir -p "$work"/{headers,objects,programs}
kvm_make() {
	LDFLAGS=-static make -s -C "$KDIR/tools/testing/selftests/kvm" ARCH=x86 \
		OUTPUT="$work/objects" COLLECTION=kvm INSTALL_PATH="$work/programs" \
		KHDR_INCLUDES="-isystem $work/headers/usr/include" "$@"
}
build() {
	make -s -C "$KDIR" O="$work/headers" headers
	kvm_make -j"${JOBS:-$(nproc)}" all
	kvm_make install
}
run_logged "$KPT_TOP/build/log/upstream-build.log" \
	"building upstream's KVM selftests (once for a kernel, about 1 min)" build
kvm_make emit_tests | sed -n 's/^kvm://p' | sort >"$work/programs/.list"
rm -f "$work"/programs/{config,settings}
for f in "$work"/programs/*; do
	case $f in
	*.sh) ;;
	*) strip "$f" ;;
	esac
done
echo "$key" >"$work/programs/.key"
mv "$work/programs" "$to"
rm -rf "$work"
