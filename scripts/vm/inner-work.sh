#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Work for the Linux guest of job linux-guest: a few hundred processes that hand
# each other data, an archive that is packed, unpacked and checksummed, and one
# line that depends on all of it.  Run outside the guest too, where it must
# print the same line.

cd /tmp || exit 1
rm -rf work
mkdir -p work/tree work/copy
h=start
i=0
while [ "$i" -lt 40 ]; do
	h=$(echo "$h $i" | sha256sum | cut -c1-64)
	# a tree of files of many sizes
	mkdir -p "work/tree/$((i % 7))/$((i % 3))"
	yes "$h" | head -c $((i * 1021)) >"work/tree/$((i % 7))/$((i % 3))/$i"
	i=$((i + 1))
done
tar -C work/tree -czf work/archive.tar.gz .
tar -C work/copy -xzf work/archive.tar.gz
sum=$(cd work/copy && find . -type f | sort | xargs sha256sum | sha256sum | cut -c1-64)
files=$(find work/copy -type f | wc -l)
rm -rf work
echo "work: $h $((files)) files $sum"
