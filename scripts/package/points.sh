# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What test.sh and guest.sh share: test points in TAP.  To be sourced; $log is a
# file for what a command prints.
# shellcheck disable=SC2034,SC2154

n=0 bad=0

# point TEXT CMD...
point() {
	local text=$1
	shift
	n=$((n + 1))
	if "$@" >"$log" 2>&1; then
		echo "ok $n $text"
	else
		bad=1
		tail -n 40 "$log" | sed 's/^/# /'
		echo "not ok $n $text"
	fi
}

refused() {
	! "$@"
}

begin() {
	n=0
	echo "# kpt-begin: $1"
}

end() {
	echo "1..$n"
	echo "# kpt-end: $1 rc=0"
}
