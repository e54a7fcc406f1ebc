#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Work for the Linux guest of job linux-guest: forks a few hundred processes
# that hand each other data, touches memory, and prints one line that depends on
# all of it.  Run outside the guest too, where it must print the same line.

h=start
i=0
while [ "$i" -lt 100 ]; do
	h=$(echo "$h $i" | sha256sum | cut -c1-64)
	i=$((i + 1))
done
# a file of 4 MiB that is written, copied and read
i=0
while [ "$i" -lt 16 ]; do
	yes "$h $i" | head -c 262144
	i=$((i + 1))
done >/tmp/work.a
cp /tmp/work.a /tmp/work.b
sum=$(cat /tmp/work.a /tmp/work.b | sha256sum | cut -c1-64)
rm -f /tmp/work.a /tmp/work.b
echo "work: $h $sum"
