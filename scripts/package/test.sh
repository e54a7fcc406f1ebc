#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make test-deb: install, use, upgrade, remove the package (scripts/package/deb.sh).
#
# In a Debian of its own, in KPT_CACHE: the stock kernel and its headers, headers
# of its cloud flavour and of trixie's kernel without Rust, linux-source, what
# the package depends on, and nothing else.  It is used through an overlay.
# Packages are installed and modules built there natively, in a chroot; the
# module is used, and the package removed, in virtual machines that boot the
# kernel with that Debian as a 9p share (scripts/vm/jobs/deb).
#
#   deb              in the chroot
#   deb-installed    the machine after the installation
#   deb-upgraded     the machine after the upgrade; and removal
#
# The last line is "N passed, N failed, N skipped".
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -z "${KPT_IN_ROOT:-}" ] || die "package/test.sh: run it on the host"
[ "$(id -u)" -eq 0 ] || die "package/test.sh: must be root (mounts, chroot)"
[ "$KPT_SUITE $KPT_FLAVOUR" = "trixie amd64" ] || die "package/test.sh: only for trixie, flavour amd64"
# Mounts of our own; the virtual machines see them.
[ -n "${KPT_DEB_TEST:-}" ] ||
	KPT_DEB_TEST=1 exec unshare --mount --propagation private "$0" "$@"

cd "$KPT_TOP"
start=$SECONDS
machines=(deb deb-installed deb-upgraded)
mkdir -p build/log
exec 8>build/.test-lock
flock -n 8 || die "another make test is running in this clone"

scripts/setup.sh
kernel=$(readlink -f "$(kernel_link)")
rel=$(cat "$kernel/release")
up=$(cut -d. -f1,2 <<<"$rel")
kernel_version=$(cat "$kernel/version")
cloud=${rel%-amd64}-cloud-amd64
# Those of its kernels that the module is for.
kernels=("$rel")
grep -q '^BUILD_EXCLUSIVE_CONFIG=.*CONFIG_KVM_EXTERNAL_WRITE_TRACKING' dkms.conf ||
	kernels+=("$cloud")
package=kvm-page-track-dkms
version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"$/\1/p' dkms.conf)
next=$version+next
work=$KPT_TOP/build/deb-test
root=$work/root

# ---------------------------------------------------------------------------
# The Debian.

# What the package depends on, and kernels.
packages() {
	sed -n 's/^Depends: //p' packaging/control | sed -e 's/([^)]*)//g' -e 's/ //g'
	echo "linux-image-$rel=$kernel_version,linux-headers-$rel=$kernel_version"
	echo "linux-headers-$cloud=$kernel_version,linux-source-$up=$kernel_version"
	echo "linux-base/$KPT_KERNEL_SUITE,linux-headers-amd64/$KPT_SUITE,tiny-initramfs"
}

base=$KPT_CACHE/deb-root-$KPT_SUITE-$( (echo 1; packages) | sha256sum | cut -c1-12)

make_base() {
	local sources=$KPT_CACHE/deb-sources.tmp
	command -v mmdebstrap >/dev/null || die "mmdebstrap is not installed"
	lock_cache
	rm -rf "$base.tmp"
	cat "$(root_dir)"/etc/apt/sources.list.d/*.list >"$sources"
	run_logged "$KPT_CACHE/log/deb-root.log" "making a Debian with kernel $rel (about 3 min)" \
		mmdebstrap --mode=root --variant=minbase --format=directory \
		--dpkgopt=force-unsafe-io --keyring="$KPT_KEYRING" --include="$(packages | paste -sd,)" \
		"$KPT_SUITE" "$base.tmp" "$sources" || { rm -rf "$base.tmp"; exit 1; }
	rm -f "$sources"
	mv "$base.tmp" "$base"
	unlock_cache
}

# A command in it, which sees nothing of the clone.
# shellcheck disable=SC2016
in_deb() {
	unshare --mount --propagation private --pid --fork --kill-child bash -c '
	set -e
	root=$1
	shift
	mount -t proc proc "$root/proc"
	mount --rbind /dev "$root/dev"
	mount -t tmpfs tmpfs "$root/tmp"
	exec chroot "$root" env -i -C / PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
	' in-deb "$root" "$@" </dev/null
}

# ---------------------------------------------------------------------------
# Test points.

log=$work/log
# shellcheck source=scripts/package/points.sh
. scripts/package/points.sh

# refused_saying TEXT CMD...: it fails, and TEXT is in what it prints
refused_saying() {
	local text=$1 rc=0 out
	shift
	out=$("$@" 2>&1) || rc=$?
	printf '%s\n' "$out"
	[ "$rc" -ne 0 ] && grep -qF -e "$text" <<<"$out"
}

modules=$root/lib/modules/$rel
symvers=$root/var/lib/kvm-page-track/$rel/Module.symvers
cache=$root/var/cache/kvm-page-track/dkms

field() {
	in_deb modinfo -k "$rel" -F "$1" kvm_page_track
}

field_is() {
	field "$1"
	[ "$(field "$1")" = "$2" ]
}

installed() {
	local k
	in_deb dkms status kvm-page-track
	for k in "${kernels[@]}"; do
		in_deb dkms status kvm-page-track/"$1" -k "$k" | grep -q ': installed$' || return 1
	done
}

# Only kernels that the module is for.
not_for_others() {
	in_deb dkms status kvm-page-track
	[ "$(in_deb dkms status kvm-page-track | wc -l)" -eq "${#kernels[@]}" ] &&
		grep 'does not apply to.* 6\..*CONFIG_RUST' "$1"
}

published() {
	grep -w kvm_page_track_register_client "$symvers"
	[ "$(wc -l <"$symvers")" -ge 9 ]
}

# As README says it.
client() {
	mkdir -p "$root/root/client"
	cp samples/*.[ch] "$root/root/client"
	cat >"$root/root/client/Kbuild" <<-'EOF'
		obj-m := kpt_example.o
		ccflags-y := -I/usr/src/kvm-page-track/include
	EOF
	in_deb make -C "/lib/modules/$rel/build" M=/root/client \
		KBUILD_EXTRA_SYMBOLS="/var/lib/kvm-page-track/$rel/Module.symvers" modules &&
		in_deb install -D -t "/lib/modules/$rel/extra" /root/client/kpt_example.ko &&
		in_deb depmod "$rel" &&
		[ "$(in_deb modinfo -k "$rel" -F depends kpt_example)" = kvm_page_track ]
}

# No module, nothing of it in what depmod made, no Module.symvers.
module_gone() {
	! find "$modules/" -name 'kvm_page_track*' | grep . &&
		! grep -E 'kvm_page_track\.ko| kvm_page_track$' "$modules"/modules.{dep,symbols} &&
		[ ! -e "$symvers" ] && [ ! -e "$modules/updates" ]
}

# Every file, but for what is not ours to remove: DKMS's key, logs.
files() {
	find "$root" -xdev -printf '%P\n' |
		grep -vE '^(var/(lib/dpkg|log|cache/ldconfig)|root|tmp|run|proc|dev|var/lib/dkms/(mok.*|dkms_dbversion))(/|$)' |
		sort
}

nothing_left() {
	files | diff "$work/files" -
}

source_version() {
	sed -i "/^Package: linux-source-$up\$/,/^\$/s/^Version: .*/Version: $1/" \
		"$root/var/lib/dpkg/status"
}

# ---------------------------------------------------------------------------

first_half() {
	local mb tar=$root/usr/src/linux-source-$up.tar.xz
	echo "# kpt-vm: deb start"
	cp "build/deb/${package}_$version"_all.deb "$root/root/first.deb"
	cp "build/deb/${package}_$next"_all.deb "$root/root/next.deb"

	begin refusals
	mv "$tar" "$tar.away"
	point "no kernel source: named" refused_saying \
		"apt install linux-source-$up=$kernel_version" in_deb dpkg -i /root/first.deb
	mv "$tar.away" "$tar"
	source_version 1.2-3
	point "kernel source of another version: named" refused_saying \
		"linux-source-$up is version 1.2-3, kernel $rel is $kernel_version" \
		in_deb dpkg --configure "$package"
	source_version "$kernel_version"
	printf '#!/bin/sh\necho "rustc 1.99.0 (stub)"\n' >"$root/usr/local/bin/rustc"
	chmod 755 "$root/usr/local/bin/rustc"
	point "rustc of another version: named" refused_saying \
		"this is rustc 1.99.0" in_deb dpkg --configure "$package"
	rm "$root/usr/local/bin/rustc"
	mv "$root/usr/bin/bindgen" "$root/usr/bin/bindgen.away"
	point "no bindgen: named" refused_saying \
		"bindgen is not installed" in_deb dpkg --configure "$package"
	mv "$root/usr/bin/bindgen.away" "$root/usr/bin/bindgen"
	point "a kernel without Rust: named" refused_saying \
		"is built without CONFIG_RUST" \
		in_deb /usr/src/kvm-page-track/scripts/dkms.sh build "$other"
	point "nothing was installed" module_gone
	end refusals

	begin install
	point "dpkg --configure builds the module" in_deb dpkg --configure "$package"
	cp "$log" "$work/install.log"
	point "DKMS has installed it" installed "$version"
	point "and passes other kernels over" not_for_others "$work/install.log"
	point "modinfo: version $version" field_is version "$version"
	point "modinfo: signed with DKMS's key" field_is signer "DKMS module signing key"
	point "Module.symvers is published" published
	point "the header is where clients look" \
		test -e "$root/usr/src/kvm-page-track/include/kvm_page_track.h"
	point "a client builds with both, as README says" client
	tree=$(echo "$cache/metadata-$rel"-*)
	mb=$(du -sm "$tree" | cut -f1)
	point "the tree with Rust metadata takes $mb MB, below 500" test "$mb" -lt 500
	end install
}

second_half() {
	local before
	before=$(stat -c %i "$tree")

	begin upgrade
	point "dpkg -i of version $next" in_deb dpkg -i /root/next.deb
	point "DKMS has installed it" installed "$next"
	point "DKMS has nothing else" sh -c "! ls '$root/var/lib/dkms/kvm-page-track' | grep -x '$version'"
	point "the old source is gone" test ! -e "$root/usr/src/kvm-page-track-$version"
	point "modinfo: version $next" field_is version "$next"
	point "Module.symvers is published" published
	point "the Rust metadata was used again" test "$(stat -c %i "$tree")" = "$before"
	end upgrade

	begin kernel-upgrade
	point "dkms unbuild: no module for this kernel" \
		in_deb dkms unbuild kvm-page-track/"$next" -k "$rel"
	point "nothing is left of it" module_gone
	mkdir -p "$cache/metadata-1.2.3-4/include/config"
	echo 1.2.3 >"$cache/metadata-1.2.3-4/include/config/kernel.release"
	point "the hook of linux-headers builds the module" \
		in_deb run-parts --exit-on-error --arg="$rel" /etc/kernel/header_postinst.d
	point "DKMS has installed it" installed "$next"
	point "Module.symvers is published" published
	point "metadata of kernels that are gone are gone" \
		test ! -e "$cache/metadata-1.2.3-4"
	point "the hook passes a kernel over that the module is not for" \
		in_deb run-parts --exit-on-error --arg="$other" /etc/kernel/header_postinst.d
	end kernel-upgrade
}

third_half() {
	rm -rf "$modules/extra"
	begin remove
	point "dpkg --remove" in_deb dpkg --remove "$package"
	point "the module is gone, and from what depmod made" module_gone
	point "the metadata stays until purge" test -e "$tree"
	point "dpkg -i installs it again" in_deb dpkg -i /root/first.deb
	point "DKMS has installed it" installed "$version"
	point "dpkg --purge" in_deb dpkg --purge "$package"
	point "the module is gone, and from what depmod made" module_gone
	point "modprobe finds no module" refused in_deb modprobe -n -S "$rel" kvm_page_track
	point "not a file is left" nothing_left
	end remove
	echo "# kpt-vm: deb end=0 good"
}

# vm NAME VERSION [WORDS]: a machine with this Debian
vm() {
	rm -f "build/log/$1.sum"
	scripts/vm/vm.sh "$1" --job deb --limit "${KPT_LIMIT:-1800}" \
		--file deb/guest.sh scripts/package/guest.sh \
		--file deb/points.sh scripts/package/points.sh \
		--append "kpt.env.VERSION=$2 ${3:-}" --qemu -virtfs --qemu \
		"local,path=/src/build/deb-test/root,mount_tag=deb,security_model=none,readonly=on,multidevs=remap" \
		</dev/null | awk -v vm="$1" -v sum="build/log/$1.sum" -f scripts/test/tap.awk || true
}

[ -d "$base" ] || make_base
for m in "${machines[@]}"; do
	rm -f "build/log/$m.sum"
done
if ! scripts/package/deb.sh >/dev/null || ! scripts/package/deb.sh "$next" >/dev/null ||
	! scripts/vm/initramfs.sh; then
	build_failed
fi

rm -rf --one-file-system "$work"
mkdir -p "$root" "$work"/{upper,overlay}
mount -t overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/overlay" overlay "$root"
files >"$work/files"
# trixie's own kernel
other=$(cd "$root/lib/modules" && ls -d 6.*)

say "running ${machines[*]}"
exec 3>&1
{
	first_half
	vm deb-installed "$version" >&3
	second_half
	vm deb-upgraded "$next" kpt.env.REMOVE=1 >&3
	third_half
} | tee build/log/deb.out | awk -v vm=deb -v sum=build/log/deb.sum -f scripts/test/tap.awk || true
umount "$root"
rm -rf --one-file-system "$work"
summary
