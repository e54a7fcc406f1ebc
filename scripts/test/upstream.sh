#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make test-upstream: upstream's KVM selftests on the stock kernel in QEMU, in
# three ways: none (without our module), attached (with it), storm (while it is
# inserted and removed without pause); with nested and with shadow paging.
#
# The verdict is a comparison, one point a program and paging mode: a program
# that passes without the module must pass in the other ways.  One that does not
# pass in such a way runs once more, without the module and that way: passing
# then it is "flaky"; failing again is a failure, unless it has now failed
# without the module as well.  A complaint of the kernel is a failure at once.  A
# program that does not pass without the module is skipped, with the reason
# that its run gave.  Every machine is a point too.
#
#   SUBSET="GLOB ..."  programs; default all
#   WAYS="..."         ways, none is always among them; default "attached storm"
#   VM=nested|shadow   only this paging mode
#   LIMIT=SECS         of a program without the module, default 60; with it
#                      four times that
#
# upstream.sh --mode MODE --list FILE --sum FILE: one mode, with the programs
# and arguments of FILE, for make test.  The last line without this is
# "N passed, N failed, N skipped".
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -z "${KPT_IN_ROOT:-}" ] || die "upstream.sh: run it on the host"

cd "$KPT_TOP"
log=build/log
limit=${LIMIT:-60}
ways=()
for way in ${WAYS:-attached storm}; do
	case $way in
	none) ;;
	attached | storm) ways+=("$way") ;;
	*) die "upstream.sh: no way $way" ;;
	esac
done
mkdir -p "$log"

# The machine that runs ends with us.
machine=
trap '[ -z "$machine" ] || kill -KILL "$machine" 2>/dev/null || true' EXIT
trap 'exit 1' INT TERM

# run_way MODE WAY TAG FILE: run the programs of FILE; results in
# $log/upstream-MODE-WAY[TAG].res (upstream.awk).  A machine that ends early is
# started again behind the program that it ended in.  Prints nothing but
# progress; what is wrong with the machine itself goes to *.machine.
run_way() {
	local mode=$1 way=$2 tag=$3 list=$4 name npt=1 most=$limit boot=0 again='' stalled=''
	local base=$log/upstream-$1-$2$3 todo status text prog reports module result reader
	local -A died=()
	[ "$mode" = nested ] || npt=0
	[ "$way" = none ] || most=$((4 * limit))
	todo=$base.todo
	cp "$list" "$todo"
	printf 'way=%s\nlimit=%s\n' "$way" "$most" >"$base.conf"
	: >"$base.res"
	: >"$base.machine"
	while [ -s "$todo" ]; do
		boot=$((boot + 1))
		name=upstream-$mode-$way$tag$again
		: >"$log/$name.out"
		rm -f "$base.fifo"
		mkfifo "$base.fifo"
		cp "$base.res" "$base.res.before"
		awk -v vm="$mode $way$tag" -v res="$base.res" -f scripts/test/upstream.awk \
			<"$base.fifo" &
		reader=$!
		scripts/vm/vm.sh "$name" --job upstream --npt "$npt" --share --once \
			--limit $((($(wc -l <"$todo") + 2) * (most + 10))) \
			--file kpt-upstream/conf "$base.conf" \
			--file kpt-upstream/list "$todo" </dev/null 2>"$base.err" >"$base.fifo" &
		machine=$!
		# a program has its limit; a machine that says nothing for long
		# after that will not come back
		while kill -0 "$machine" 2>/dev/null; do
			sleep 1
			if [ $(($(date +%s) - $(stat -c %Y "$log/$name.out"))) -gt $((most + 120)) ]; then
				say "$name says nothing any more, ending it"
				kill -KILL "$machine" || true
				break
			fi
		done
		wait "$machine" "$reader" 2>/dev/null || true
		machine=
		rm -f "$base.fifo"
		again=.$((boot + 1))
		{
			read -r status
			read -r text
			read -r prog
			read -r reports
			read -r module || true
		} <"$base.res.end"
		# what a machine says that stood still counts for nothing, once
		if [ "$status" -eq 3 ] && [ -z "$stalled" ] && [ -e "$log/$name.stalled" ]; then
			stalled=1
			say "$name: $text; running it once more"
			mv "$base.res.before" "$base.res"
			continue
		fi
		[ -z "$module" ] || [ "$status" -ne 1 ] || echo "$module" >>"$base.machine"

		cut -f 1 "$base.res" | grep -vxF -f - "$list" >"$todo" || true
		if [ -z "$prog" ]; then
			if [ -s "$todo" ] || [ "$status" -gt 2 ] ||
				{ [ "$status" -eq 2 ] && [ "$reports" -eq 0 ]; }; then
				echo "$text" >>"$base.machine"
				return
			fi
		elif [ "$status" -eq 3 ] && [ -z "${died[$prog]:-}" ]; then
			died[$prog]=1
		else
			case $status in
			2) result=report ;;
			3) result=emulator ;;
			*) result=hang ;;
			esac
			printf '%s\t%s\t-\t%s\n' "$prog" "$result" "$text" >>"$base.res"
			grep -vxF -e "$prog" "$todo" >"$todo.new" || true
			mv "$todo.new" "$todo"
		fi
	done
}

# field FILE PROGRAM N: a field of a result
field() {
	[ ! -e "$1" ] || awk -F '\t' -v p="$2" -v n="$3" '$1 == p { print $n }' "$1"
}

# cell FILE PROGRAM: a result with its seconds, for the table
cell() {
	local r s
	r=$(field "$1" "$2" 2)
	s=$(field "$1" "$2" 3)
	echo "${r:--}${s:+ $s}"
}

# run_mode MODE FILE SUM: all ways of one mode, the comparison, the table.
run_mode() {
	local mode=$1 list=$2 sum=$3 base=$log/upstream-$1 way prog bare why verdict row r
	local passed=0 failed=0 skipped=0 suspects
	rm -f "$sum" "$base.table"
	run_way "$mode" none '' "$list"
	for way in "${ways[@]}"; do
		# what passed, and what failed by itself
		awk -F '\t' '$2 == "pass" || $2 == "fail" { print $1 }' "$base-none.res" \
			>"$base-$way.list"
		run_way "$mode" "$way" '' "$base-$way.list"
		suspects=$base-$way.suspects
		awk -F '\t' 'NR == FNR { bare[$1] = $2; next }
			bare[$1] == "pass" && $2 != "pass" && $2 != "report" { print $1 }' \
			"$base-none.res" "$base-$way.res" >"$suspects"
		rm -f "$base"-{none,"$way"}-again-"$way".res
		if [ -s "$suspects" ]; then
			run_way "$mode" none "-again-$way" "$suspects"
			run_way "$mode" "$way" "-again-$way" "$suspects"
		fi
	done

	: >"$base.bad"
	{
		printf '%-44s' "$mode paging"
		for way in none "${ways[@]}"; do
			printf ' %-12s' "$way"
		done
		echo " verdict"
		while read -r prog; do
			row=$(printf '%-44s %-12s' "$prog" "$(cell "$base-none.res" "$prog")")
			bare=$(field "$base-none.res" "$prog" 2)
			verdict=passed
			why=
			if [ "$bare" != pass ]; then
				verdict=skipped
				why="without the module: $(field "$base-none.res" "$prog" 4)"
			fi
			for way in "${ways[@]}"; do
				row+=$(printf ' %-12s' "$(cell "$base-$way.res" "$prog")")
				r=$(field "$base-$way.res" "$prog" 2)
				case $bare:$r in
				*:report)
					verdict=failed
					why="$way: $(field "$base-$way.res" "$prog" 4)"
					;;
				pass:pass) ;;
				pass:*)
					if [ "$(field "$base-none-again-$way.res" "$prog" 2)" != pass ]; then
						[ "$verdict" = failed ] || verdict=skipped
						why="${why:+$why; }flaky without the module: $(field "$base-none-again-$way.res" "$prog" 4)"
					elif [ "$(field "$base-$way-again-$way.res" "$prog" 2)" = pass ]; then
						why="${why:+$why; }flaky in $way, passed when run again: $(field "$base-$way.res" "$prog" 4)"
					else
						verdict=failed
						why="${why:+$why; }$way: $(field "$base-$way.res" "$prog" 4), again: $(field "$base-$way-again-$way.res" "$prog" 4)"
					fi
					;;
				esac
			done
			case $verdict in
			passed) passed=$((passed + 1)) ;;
			failed)
				failed=$((failed + 1))
				echo "FAIL  [upstream-$mode] $prog # $why" >>"$base.bad"
				;;
			skipped)
				skipped=$((skipped + 1))
				echo "skip  [upstream-$mode] $prog # $why" >>"$base.bad"
				;;
			esac
			echo "$row $verdict${why:+ # $why}"
		done <"$list"
		for r in "$base"-*.machine; do
			why=$(paste -sd, "$r")
			way=${r#"$base"-}
			way=${way%.machine}
			if [ -n "$why" ]; then
				failed=$((failed + 1))
				echo "FAIL  [upstream-$mode] machine $way: $why" | tee -a "$base.bad"
			else
				passed=$((passed + 1))
				echo "ok    [upstream-$mode] machine $way"
			fi
		done
		echo "$passed $failed $skipped" >"$sum.new"
	} >"$base.table"
	cat "$base.bad" >>"$sum.new"
	mv "$sum.new" "$sum"
}

mode='' list='' sum=''
while [ $# -gt 0 ]; do
	case $1 in
	--mode) mode=$2; shift 2 ;;
	--list) list=$2; shift 2 ;;
	--sum) sum=$2; shift 2 ;;
	*) die "upstream.sh: unknown option $1" ;;
	esac
done
if [ -n "$mode" ]; then
	rm -f "$log/upstream-$mode"-*.machine
	cp "$list" "$log/upstream-$mode.list"
	run_mode "$mode" "$log/upstream-$mode.list" "$sum"
	exit 0
fi

start=$SECONDS
exec 8>build/.upstream-lock
flock -n 8 || die "another make test-upstream is running in this clone"
scripts/setup.sh
if ! scripts/in-root.sh make --no-print-directory module tests-build >"$log/build.log" 2>&1 ||
	! scripts/vm/initramfs.sh || ! scripts/test/upstream-build.sh; then
	tail -n 20 "$log/build.log" >&2
	build_failed
fi

# Every program as it is, and those of tests/upstream-short with arguments.
programs=${KPT_KERNEL_DIR:-$(readlink -f "$(kernel_link)")}/kvm-selftests/.list
{
	cat "$programs"
	sed -e '/^#/d' tests/upstream-short | grep ' ' || true
} | while read -r prog args; do
	read -ra globs <<<"${SUBSET:-*}"
	for g in "${globs[@]}"; do
		# shellcheck disable=SC2053
		if [[ $prog == $g ]]; then
			echo "$prog${args:+ $args}"
			break
		fi
	done
done >"$log/upstream.list"
[ -s "$log/upstream.list" ] || die "no program matches SUBSET=$SUBSET"
read -ra modes <<<"${VM:-nested shadow}"
say "$(wc -l <"$log/upstream.list") programs, ${modes[*]} paging, ways none ${ways[*]}"

trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
for mode in "${modes[@]}"; do
	scripts/test/upstream.sh --mode "$mode" --list "$log/upstream.list" \
		--sum "$log/upstream-$mode.sum" &
done
wait
trap - EXIT

passed=0 failed=0 skipped=0
for mode in "${modes[@]}"; do
	echo
	if [ -e "$log/upstream-$mode.sum" ]; then
		cat "$log/upstream-$mode.table"
		read -r p f s <"$log/upstream-$mode.sum"
		passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	else
		echo "FAIL  [upstream-$mode] no result"
		failed=$((failed + 1))
	fi
done
echo
say "took $((SECONDS - start)) s; logs are in $log/upstream-*"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
