#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Run a command in the toolchain root: in-root.sh CMD [ARG...]
#
# The command sees the clone at /src (its working directory) and the kernel at
# /kernel, has KDIR set to the prepared kernel tree, and lives in mount and
# process namespaces of its own: nothing of it stays when it ends.
#
# KPT_ROOT_DIR and KPT_KERNEL_DIR name another root and kernel (setup.sh).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || die "usage: in-root.sh CMD [ARG...]"
[ "$(id -u)" -eq 0 ] || die "in-root.sh: must be root (mounts, chroot)"

root=${KPT_ROOT_DIR:-$(root_dir)}
kernel=${KPT_KERNEL_DIR:-$(readlink -f "$(kernel_link)" || true)}
[ -d "$root" ] || die "no toolchain root; run scripts/setup.sh"
[ -d "$kernel" ] || die "no kernel; run scripts/setup.sh"

env=(
	PATH=/usr/sbin:/usr/bin:/sbin:/bin
	HOME=/root LANG=C.UTF-8 "TERM=${TERM:-dumb}"
	KPT_IN_ROOT=1 KDIR=/kernel/src
	"KPT_KERNEL=$(basename "$kernel")"
)
for v in T VM V CI JOBS; do
	[ -z "${!v:-}" ] || env+=("$v=${!v}")
done
for v in "${!KPT_GUEST_@}"; do
	env+=("$v=${!v}")
done

# The inner shell stays as process 1, so that the command has ordinary signals.
# shellcheck disable=SC2016
exec unshare --mount --propagation private --pid --fork --kill-child \
	bash -c '
	set -e
	root=$1 kernel=$2 top=$3
	shift 3
	mount --rbind "$top" "$root/src"
	mount --bind "$kernel" "$root/kernel"
	mount -t proc proc "$root/proc"
	mount --rbind /dev "$root/dev"
	mount -t tmpfs tmpfs "$root/tmp"
	if [ -e /etc/resolv.conf ]; then
		touch "$root/etc/resolv.conf"
		mount --bind "$(readlink -f /etc/resolv.conf)" "$root/etc/resolv.conf"
	fi
	set +e
	chroot "$root" env -i -C /src "$@"
	exit $?
	' in-root "$root" "$kernel" "$KPT_TOP" "${env[@]}" "$@"
