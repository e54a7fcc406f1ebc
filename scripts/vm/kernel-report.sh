#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Search a kernel's log for reports of trouble: kernel-report.sh LOG
#
# Prints the first it finds with the lines that follow, and fails.  What counts
# is in kernel-report.list; "--patterns" prints that list without comments.
#
# A data race of KCSAN between two functions of the kernel's own, in neither of
# whose stacks there is anything of ours, is the kernel's own.  So is one of
# unknown origin outside KVM; in KVM it is not: Rust is not instrumented, so our
# stores are of that kind.
set -euo pipefail

patterns() {
	grep -v -e '^#' -e '^$' "$(dirname "$0")/kernel-report.list"
}

[ $# -eq 1 ] || { echo "usage: kernel-report.sh LOG | --patterns" >&2; exit 2; }
if [ "$1" = --patterns ]; then
	patterns
	exit 0
fi
# shellcheck disable=SC2016 # for awk
theirs='
/BUG: KCSAN: data-race in / && (/ \/ / || !/\[kvm/) { title = $0; ours = /page_track/; next }
/page_track/ { ours = 1 }
title != "" && /====================/ { if (ours) print title; title = "" }
{ print }
'
# No "grep -m": who writes to it would die of a closed pipe, and count as failed.
if found=$(tr -d '\r' <"$1" | awk "$theirs" | grep -E -A 30 -f <(patterns)); then
	head -n 31 <<<"$found" || true
	exit 1
fi
exit 0
