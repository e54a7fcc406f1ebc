#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# In the virtual machine's Debian (scripts/vm/jobs/deb): the installed package at
# work.
#
#   KPT_VERSION  of the module that must be found
#   KPT_REMOVE   not empty: remove the package while the module is loaded
#
# shellcheck disable=SC2317 # functions are called through point
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive
log=/tmp/log
rel=$(uname -r)
# shellcheck source=scripts/package/points.sh
. "$(dirname "$0")/points.sh"

version_is() {
	cat /sys/module/kvm_page_track/version
	[ "$(cat /sys/module/kvm_page_track/version)" = "$1" ]
}

dmesg_says() {
	dmesg | grep kvm_page_track
	dmesg | grep -q "kvm_page_track: $1"
}

# One a line, after a heading.
hooks() {
	cat /sys/kernel/debug/kvm_page_track/hooks
	[ "$(grep -c kvm_ /sys/kernel/debug/kvm_page_track/hooks)" -ge 8 ]
}

begin use
point "modprobe kvm_page_track" modprobe kvm_page_track
point "it is version $KPT_VERSION" version_is "$KPT_VERSION"
point "dmesg says attached" dmesg_says 'attached to kvm.ko: [0-9]* functions replaced'
point "debugfs lists the hooks" hooks
point "rmmod" rmmod kvm_page_track
point "dmesg says detached" dmesg_says 'detached from kvm.ko'
point "modprobe of a client loads the module too" modprobe kpt_example
point "it is version $KPT_VERSION, again" version_is "$KPT_VERSION"
point "the module is in use" refused rmmod kvm_page_track
point "modprobe -r of the client" modprobe -r kpt_example
point "DKMS knows the module" sh -c "dkms status kvm-page-track -k $rel | grep installed"
end use

if [ -n "${KPT_REMOVE:-}" ]; then
	begin remove
	point "modprobe kvm_page_track" modprobe kvm_page_track
	point "dpkg --remove with the module loaded" dpkg --remove kvm-page-track-dkms
	point "the module is still at work" hooks
	point "rmmod" rmmod kvm_page_track
	point "dmesg says detached" dmesg_says 'detached from kvm.ko'
	point "modprobe finds no module" refused modprobe kvm_page_track
	point "nor does a client" refused modprobe kpt_example
	point "the module is not loaded" refused test -e /sys/module/kvm_page_track
	end remove
fi
exit "$bad"
