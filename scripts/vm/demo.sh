#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make demo: build, then show on a stock kernel in QEMU what the module does.
# NPT=0 shows it with shadow paging.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

cd "$KPT_TOP"
mkdir -p build/log
scripts/setup.sh
grep -qs '^CONFIG_KVM_EXTERNAL_WRITE_TRACKING=y' "$(kernel_link)/src/.config" ||
	die "the demo shows a guest that changes from KVM's tracker to the module; this kernel's KVM has none (make test shows what the module does there)"
say "building the module and the demo ..."
if ! scripts/in-root.sh make --no-print-directory module demo-build \
	>build/log/demo-build.log 2>&1; then
	tail -n 30 build/log/demo-build.log
	die "the build failed; the whole log is build/log/demo-build.log"
fi
scripts/vm/initramfs.sh
say "booting a stock Debian kernel in QEMU (about 10 s) ..."

rc=0
scripts/vm/vm.sh demo --job demo --npt "${NPT:-1}" --limit 600 </dev/null |
	sed -u -e '/^# kpt-guest:/d' -e '/^# kpt-job:/d' \
		-e '/^# kpt-vm: demo start/d' -e '/^Random seed/d' \
		-e 's/^# kpt-vm: demo end=0 .*/The kernel log is clean./' \
		-e 's/^# kpt-vm: demo end=[0-9]* /The demo failed: /' || rc=$?
say "the kernel's own log is build/log/demo.console"
exit "$rc"
