#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Make ready what building and testing need, on a Debian host, as root:
#
#   $KPT_CACHE/toolchain-*  a Debian root with compilers, QEMU and so on
#   $KPT_CACHE/kernel-*     a stock Debian kernel: vmlinuz, modules, and the
#                           kernel tree to build modules against
#
# What is there already is used again.  Each is made under another name and
# renamed when finished.
#
#   setup.sh            make what is missing
#   setup.sh --update   also look for a newer kernel in the archive
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

update=
case ${1:-} in
"") ;;
--update) update=1 ;;
*) die "usage: setup.sh [--update]" ;;
esac

root=$(root_dir)
link=$(kernel_link)
logs=$KPT_CACHE/log

if [ -d "$root" ] && [ -d "$link/src" ] && [ -z "$update" ]; then
	exit 0
fi

[ "$(id -u)" -eq 0 ] || die "setup.sh: must be root (mmdebstrap, mounts)"
[ "$(uname -m)" = x86_64 ] || die "setup.sh: this is for x86_64 machines"
command -v apt-get >/dev/null || die "setup.sh: the host must be Debian (bookworm or later)"

host_update() {
	[ -z "${host_updated:-}" ] || return 0
	run_logged "$logs/host-apt.log" "updating the host's package lists" \
		apt-get update
	host_updated=1
}

host_install() {
	host_update
	run_logged "$logs/host-apt.log" "installing on the host: $*" \
		env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends "$@"
}

# The Debian mirror that the host itself uses.
# shellcheck disable=SC2016
find_mirror() {
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
		'Origin: Debian' 'Label: Debian' | head -n 1
}

mirror() {
	local uri=${KPT_MIRROR:-}
	if [ -z "$uri" ]; then
		uri=$(find_mirror)
		if [ -z "$uri" ]; then
			host_update
			uri=$(find_mirror)
		fi
	fi
	[ -n "$uri" ] || die "the host's apt knows no Debian mirror; set KPT_MIRROR"
	echo "$uri"
}

make_root() {
	local missing=() uri tmp=$root.tmp s sources=() options=() check
	command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
	[ -e "$KPT_KEYRING" ] || missing+=(debian-archive-keyring)
	[ ${#missing[@]} -eq 0 ] || host_install "${missing[@]}"

	uri=$(mirror)
	if [ "$KPT_SUITE" = sid ]; then
		sources=(sid)
	else
		sources=("$KPT_SUITE" "$KPT_SUITE-updates" "$KPT_SUITE-backports")
	fi
	# Lists past their date (of a mirror that lags, or a snapshot) are for the
	# host to allow; they are signed all the same.
	check=$(apt-config dump --format '%v%n' Acquire::Check-Valid-Until)
	if [ "$check" = false ]; then
		say "as on this host, package lists may be past their date"
		options+=(--aptopt='Acquire::Check-Valid-Until "false"')
	fi
	rm -rf "$tmp"
	for s in "${sources[@]}"; do
		echo "deb [signed-by=$KPT_KEYRING] $uri $s main"
	done >"$KPT_CACHE/sources-$KPT_SUITE.tmp"
	run_logged "$logs/toolchain-$KPT_SUITE.log" "making the toolchain root, Debian $KPT_SUITE (about 1 min)" \
		mmdebstrap --mode=root --variant=minbase --format=directory \
		--keyring="$KPT_KEYRING" --include="$(root_packages)" "${options[@]}" \
		"$KPT_SUITE" "$tmp" "$KPT_CACHE/sources-$KPT_SUITE.tmp" || { rm -rf "$tmp" "$KPT_CACHE/sources-$KPT_SUITE.tmp"; exit 1; }
	rm -f "$KPT_CACHE/sources-$KPT_SUITE.tmp"
	mkdir -p "$tmp/src" "$tmp/kernel"
	mv "$tmp" "$root"
}

# In the root: print the newest release of the flavour in the kernel's suite.
# shellcheck disable=SC2016
newest_release='
	v=$(apt-cache madison "linux-headers-$1" | awk -F"|" -v s=" $2/" \
		"index(\$3, s) { gsub(/ /, \"\", \$2); print \$2; exit }")
	[ -n "$v" ] || exit 1
	apt-cache show "linux-headers-$1=$v" |
		grep -oE "linux-headers-[0-9][^ ,]*-$1" | head -n 1 | sed "s/^linux-headers-//"
'

# In the root: fetch a kernel into /kernel and unpack it there.
# shellcheck disable=SC2016
fetch_kernel='
	set -e
	rel=$1
	up=$(echo "$rel" | cut -d. -f1,2)
	ver=$(apt-cache show "linux-headers-$rel" | sed -n "s/^Version: //p" | head -n 1)
	common=$(apt-cache show "linux-headers-$rel=$ver" |
		grep -oE "linux-headers-[^ ,]*-common[^ ,]*" | head -n 1)
	list="linux-headers-$rel=$ver $common=$ver linux-source-$up=$ver"
	for p in linux-binary linux-modules linux-base; do
		apt-cache show "$p-$rel" >/dev/null 2>&1 && list="$list $p-$rel"
	done
	case $list in
	*linux-binary*) ;;
	*) list="$list linux-image-$rel" ;;
	esac
	mkdir -p /kernel/debs
	cd /kernel/debs
	chown _apt . 2>/dev/null || true
	apt-get -o Acquire::Retries=3 download $list
	for d in *.deb; do
		dpkg-deb -x "$d" /kernel/x
	done
	rm -rf /kernel/debs
	cd /kernel
	mv "x/usr/src/linux-headers-$rel" headers
	mv "x/usr/src/linux-source-$up.tar.xz" source.tar.xz
	mkdir -p lib/modules
	if [ -d "x/usr/lib/modules/$rel/kernel" ]; then
		mv "x/usr/lib/modules/$rel" lib/modules/
	else
		mv "x/lib/modules/$rel" lib/modules/
	fi
	rm -f "lib/modules/$rel/build" "lib/modules/$rel/source"
	if [ -e "lib/modules/$rel/vmlinuz" ]; then
		mv "lib/modules/$rel/vmlinuz" vmlinuz
	else
		mv "x/boot/vmlinuz-$rel" vmlinuz
	fi
	rm -rf x
	depmod -b /kernel "$rel"
	echo "$rel" >release
	echo "$ver" >version
'

make_kernel() {
	local rel dir
	KPT_KERNEL_DIR=$KPT_CACHE/empty
	mkdir -p "$KPT_KERNEL_DIR"
	export KPT_KERNEL_DIR
	lock_cache_for "$(basename "$root")"
	run_logged "$logs/root-apt.log" "updating the root's package lists" \
		"$KPT_TOP/scripts/in-root.sh" apt-get update
	unlock_cache
	rel=$("$KPT_TOP/scripts/in-root.sh" sh -c "$newest_release" sh \
		"$KPT_FLAVOUR" "$KPT_KERNEL_SUITE") || true
	[ -n "$rel" ] || die "no linux-headers-$KPT_FLAVOUR in $KPT_KERNEL_SUITE"
	dir=$KPT_CACHE/kernel-$rel
	tmp=$dir.tmp

	if [ ! -d "$dir" ]; then
		lock_cache_for "$(basename "$dir")"
	fi
	if [ ! -d "$dir" ]; then
		say "kernel: Linux $rel from $KPT_KERNEL_SUITE"
		rm -rf "$tmp"
		mkdir -p "$tmp"
		trap 'rm -rf "${tmp:-}"' EXIT
		KPT_KERNEL_DIR=$tmp
		run_logged "$logs/kernel-fetch-$rel.log" "fetching the kernel packages (about 300 MB)" \
			"$KPT_TOP/scripts/in-root.sh" sh -c "$fetch_kernel" sh "$rel"
		"$KPT_TOP/scripts/in-root.sh" scripts/setup/rust-metadata.sh "$rel" \
			/kernel/headers /kernel/source.tar.xz /kernel/src
		rm -f "$tmp/source.tar.xz"
		mv "$tmp" "$dir"
		trap - EXIT
	fi
	KPT_KERNEL_DIR=$dir
	unlock_cache
	ln -sfn "$(basename "$dir")" "$link.tmp.$$"
	mv -T "$link.tmp.$$" "$link"
}

# Whether the kernel was prepared with the compiler of the root: a root that is
# made anew may have a newer one.
fits() {
	[ "$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="\(.*\)"$/\1/p' "$link/src/.config")" = \
		"$("$KPT_TOP/scripts/in-root.sh" rustc --version)" ]
}

if [ ! -d "$root" ]; then
	lock_cache_for "$(basename "$root")"
	[ -d "$root" ] || make_root
	unlock_cache
	[ ! -d "$link/src" ] || fits || update=1
fi
if [ ! -d "$link/src" ] || [ -n "$update" ]; then
	make_kernel
	fits || die "$(basename "$(readlink -f "$link")") was prepared with another rustc than that of $(basename "$root")"
fi
say "ready: toolchain $(basename "$root"), $(basename "$(readlink -f "$link")")"
