#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Make the package: build/deb/kvm-page-track-dkms_VERSION_all.deb, in the
# toolchain root.  Prints its name.
#
#   /usr/src/kvm-page-track-VERSION  what DKMS builds, with the client header in
#                                    include/ and an example in samples/
#   /usr/src/kvm-page-track          a link to it: the path for client modules
#
# VERSION is dkms.conf's; "deb.sh VERSION" makes the package under another one.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

cd "$KPT_TOP"
list=build/deb/files
# What the module needs, of what git knows: no stray file is packed.  Git is asked
# here, for the root may have none, and also if the clone is another user's.
if [ -z "${KPT_IN_ROOT:-}" ]; then
	files() {
		git -c safe.directory="$KPT_TOP" ls-files -z "$@"
	}
	mkdir -p build/deb
	{
		files --error-unmatch -- Kbuild Makefile LICENSE dkms.conf \
			scripts/{lib,dkms,setup/rust-metadata}.sh &&
			files -- ':(glob)*.rs' ':(glob)*.[chS]' ':(glob)*.mk' abi base dev \
				include kvm memslot mmu_hooks notifier samples tracker
	} >"$list" || die "deb.sh: git does not tell what to pack; is $KPT_TOP a clone?"
	exec scripts/in-root.sh scripts/package/deb.sh "$@"
fi

version=${1:-$(sed -n 's/^PACKAGE_VERSION="\(.*\)"$/\1/p' dkms.conf)}
[[ $version =~ ^[0-9][A-Za-z0-9.+~]*$ ]] || die "deb.sh: '$version' is no version"

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
umask 022
chmod 755 "$tree"
src=$tree/usr/src/kvm-page-track-$version
doc=$tree/usr/share/doc/kvm-page-track-dkms

mkdir -p "$src" "$doc" "$tree/DEBIAN"
xargs -0 cp --parents -t "$src" <"$list"
sed "s/^PACKAGE_VERSION=.*/PACKAGE_VERSION=\"$version\"/" dkms.conf >"$src/dkms.conf"
ln -s "kvm-page-track-$version" "$tree/usr/src/kvm-page-track"
cp -r README.md docs packaging/copyright "$doc"
gzip -9n "$doc"/README.md "$doc"/docs/*.md

size=$(du -sk --apparent-size "$tree/usr" | cut -f1)
for f in control postinst prerm postrm; do
	sed -e "s/@VERSION@/$version/" -e "s/@SIZE@/$size/" "packaging/$f" >"$tree/DEBIAN/$f"
done
(cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
find "$tree" -type d -exec chmod 755 {} +
find "$tree" -type f -exec chmod 644 {} +
find "$src/scripts" -name '*.sh' -exec chmod 755 {} +
chmod 755 "$tree"/DEBIAN/{postinst,prerm,postrm}

deb=build/deb/kvm-page-track-dkms_${version}_all.deb
dpkg-deb --root-owner-group -Zxz --build "$tree" "$deb" >/dev/null
echo "$deb"
