#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# /init of the Linux guest inside the virtual machine (job linux-guest).

export PATH=/bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /tmp
echo "inner: user space, Linux $(uname -r)"
sh /inner-work.sh | sed 's/^/inner: /'
echo "inner: end"
poweroff -f
sleep 100
