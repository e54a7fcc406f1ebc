#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# /init of the Linux guest inside the virtual machine (job linux-guest).  It
# works until it is told on its console that this is enough, at least once.

export PATH=/bin
# what comes in must not get between what goes out
stty -echo </dev/console
mount -t proc proc /proc
mount -t tmpfs tmpfs /tmp
echo "inner: user space, Linux $(uname -r)"
while :; do
	sh /inner-work.sh | sed 's/^/inner: /'
	# the first line may be a broken one
	# shellcheck disable=SC3045 # busybox has it
	while read -r -t 2 line; do
		[ "$line" != enough ] || break 2
	done </dev/console
done
echo "inner: end"
poweroff -f
sleep 100
