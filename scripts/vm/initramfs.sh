#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Make build/initramfs.cpio.gz, all the virtual machine has of its own:
# busybox, the stock kernel's modules that are needed, our modules in /modules,
# the test programs in /tests, other programs in /bin, jobs in /jobs; and
# build/inner.cpio.gz for the Linux guest inside it.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -n "${KPT_IN_ROOT:-}" ] || exec "$KPT_TOP/scripts/in-root.sh" scripts/vm/initramfs.sh "$@"

# Stock modules; what they depend on comes with them.  Some kernels lack Intel's
# (the debug kernel), and the network of the jobs with a share (that and the cloud
# kernels) or overlayfs.
modules=(kvm kvm-amd)
optional=(kvm-intel 9p 9pnet_virtio overlay)

rel=$(cat /kernel/release)
out=$KPT_TOP/build/initramfs.cpio.gz
tree=$(mktemp -d)

mkdir -p "$KPT_TOP/build" "$tree"/{bin,sbin,usr/bin,usr/sbin,modules,tests,jobs} \
	"$tree/lib/modules/$rel"

cp "$(command -v busybox)" "$tree/bin/busybox"
busybox --list | while read -r applet; do
	[ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
done
install -m 755 "$KPT_TOP/scripts/vm/guest-init.sh" "$tree/init"
install -m 755 "$KPT_TOP"/scripts/vm/jobs/* "$tree/jobs/"
cp "$KPT_TOP/scripts/vm/inner-work.sh" "$tree/"

for m in "${modules[@]}" "${optional[@]}"; do
	modprobe -d /kernel -S "$rel" --show-depends "$m" 2>/dev/null ||
		[[ " ${optional[*]} " == *" $m "* ]] || [ "$(cat /kernel/version)" = debug ] ||
		die "no module $m in kernel $rel"
done | awk '$1 == "insmod" { print $2 }' | sort -u | while read -r file; do
	to=$tree/${file#/kernel/}
	mkdir -p "$(dirname "$to")"
	case $file in
	*.xz) xz -dc "$file" >"${to%.xz}" ;;
	*.zst) zstd -qdc "$file" >"${to%.zst}" ;;
	*) cp "$file" "$to" ;;
	esac
done
cp /kernel/lib/modules/"$rel"/modules.{order,builtin,builtin.modinfo} "$tree/lib/modules/$rel/"
depmod -b "$tree" "$rel"

shopt -s nullglob
for ko in "$KPT_TOP"/build/module/*.ko "$KPT_TOP"/build/tests/modules/*.ko; do
	strip -g -o "$tree/modules/$(basename "$ko")" "$ko"
done
mkdir "$tree/modules/wrong_shift"
for ko in "$KPT_TOP"/build/tests/wrong_shift/out/*.ko; do
	strip -g -o "$tree/modules/wrong_shift/$(basename "$ko")" "$ko"
done
# ELF programs only: objects and dependency files lie beside them
programs() {
	local to=$1 f
	shift
	for f in "$@"; do
		case $f in
		*.o | *.d | *.a) continue ;;
		esac
		if [ ! -f "$f" ] || [ ! -x "$f" ]; then
			continue
		fi
		strip -o "$to/$(basename "$f")" "$f"
	done
}
programs "$tree/tests" "$KPT_TOP"/build/tests/kselftest/*
# What only the debug kernel can run (KUnit, fault injection).
[ "$(cat /kernel/version)" = debug ] || rm -f "$tree"/tests/{kunit,fault_injection}
programs "$tree/bin" "$KPT_TOP"/build/demo/*

"$KPT_TOP/scripts/vm/kernel-report.sh" --patterns >"$tree/kernel-report.list"

pack() {
	local new
	new=$(mktemp "$2.XXXXXX")
	(cd "$1" && find . | cpio --quiet -o -H newc -R 0:0) | gzip -1 >"$new"
	chmod 644 "$new"
	mv "$new" "$2"
}
pack "$tree" "$out"

# The guest of job linux-guest: the same busybox and nothing else.
inner=$(mktemp -d)
mkdir -p "$inner"/{proc,dev,tmp}
cp -a "$tree/bin" "$inner/bin"
rm -f "$inner"/bin/kpt*
cp "$KPT_TOP/scripts/vm/inner-work.sh" "$inner/"
install -m 755 "$KPT_TOP/scripts/vm/inner-init.sh" "$inner/init"
pack "$inner" "$KPT_TOP/build/inner.cpio.gz"

rm -rf "$tree" "$inner"
