#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Make build/bench/inner.cpio, the Linux guest of "make bench PART=linux": busybox,
# the compiler of the toolchain root, and some C files of the kernel's selftest
# library, preprocessed.  Not compressed: the guest would unpack it slowly.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -n "${KPT_IN_ROOT:-}" ] || exec "$KPT_TOP/scripts/in-root.sh" scripts/bench/bench-inner.sh "$@"

tree=$(mktemp -d)
sources=$KDIR/tools/testing/selftests/kvm/lib
mkdir -p "$tree"/{bin,proc,dev,tmp,src,usr/bin}

cp "$(command -v busybox)" "$tree/bin/busybox"
busybox --list | while read -r applet; do
	[ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
done
install -m 755 "$KPT_TOP/scripts/bench/bench-inner-init.sh" "$tree/init"

# A program and the libraries it is linked with, where they are here.
with_libraries() {
	local file
	for file in "$1" $(ldd "$1" | grep -o '/[^ ]*'); do
		mkdir -p "$tree$(dirname "$file")"
		cp -L "$file" "$tree$file"
	done
}
ln -s usr/lib "$tree/lib"
ln -s usr/lib64 "$tree/lib64"
mkdir -p "$tree"/usr/{lib,lib64}
cc1=$(gcc -print-prog-name=cc1)
with_libraries "$(realpath "$(command -v gcc)")"
with_libraries "$(realpath "$(command -v as)")"
mkdir -p "$tree$(dirname "$cc1")"
with_libraries "$(realpath "$cc1")"
[ -e "$tree$cc1" ] || cp -L "$cc1" "$tree$cc1"
ln -sf "$(basename "$(realpath "$(command -v gcc)")")" "$tree/usr/bin/gcc"
ln -sf "$(basename "$(realpath "$(command -v as)")")" "$tree/usr/bin/as"

# Not the large ones: many short runs of the compiler, as in a build.
for file in "$sources"/*.c; do
	gcc -E -P -O2 -D_GNU_SOURCE= -DCONFIG_64BIT -U_FORTIFY_SOURCE \
		-I"$KDIR"/tools/include -I"$KDIR"/tools/arch/x86/include \
		-I"$KPT_TOP"/build/tests/headers/usr/include \
		-I"$KDIR"/tools/testing/selftests/kvm/include{,/x86} \
		-I"$KDIR"/tools/testing/selftests{,/rseq,/cgroup/lib/include} \
		"$file" -o "$tree/src/$(basename "$file" .c).i" 2>/dev/null ||
		rm -f "$tree/src/$(basename "$file" .c).i"
done
find "$tree/src" -name '*.i' -size +200k -delete
[ "$(find "$tree/src" -name '*.i' | wc -l)" -ge 5 ] || die "bench-inner.sh: too few sources"

mkdir -p "$KPT_TOP/build/bench"
(cd "$tree" && find . | cpio --quiet -o -H newc -R 0:0) >"$KPT_TOP/build/bench/inner.cpio"
rm -rf "$tree"
