#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Remove what the scripts made in KPT_CACHE, and nothing else.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"

[ -d "$KPT_CACHE" ] || exit 0
lock_cache_for all
for f in "$KPT_CACHE"/{toolchain-*,kernel-*,deb-*,debug-[0-9]*,metadata-*,matplotlib*,log,empty,sources-*.tmp,lock.d}; do
	[ -e "$f" ] || [ -L "$f" ] || continue
	say "removing $f"
	rm -rf --one-file-system "$f"
done
