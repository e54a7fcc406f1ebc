#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make check, in the toolchain root: style and safety of the sources.
# Runs every check, even after one has failed; the last line sums up.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
[ -n "${KPT_IN_ROOT:-}" ] || die "check.sh: run it with make check"

cd "$KPT_TOP"
passed=0 failed=0
shopt -s globstar

check() {
	local name=$1 log
	shift
	log=$(mktemp)
	if "$@" >"$log" 2>&1; then
		echo "ok    $name"
		passed=$((passed + 1))
	else
		cat "$log"
		echo "FAIL  $name"
		failed=$((failed + 1))
	fi
}

# sources PATTERN [FOLDER...]: our files of that name, but for those in the folders
sources() {
	local pattern=$1 skip=(-path ./build) d
	for d in "${@:2}"; do
		skip+=(-o -path "./$d")
	done
	find . \( "${skip[@]}" -o -name .git \) -prune -o \
		-name "$pattern" ! -name '*.mod.c' -printf '%P\n' | sort
}

# With the kernel's own configuration.
rustfmt_check() {
	local files
	mapfile -t files < <(sources '*.rs')
	rustfmt --check --color never --edition 2021 \
		--config-path "$KDIR/.rustfmt.toml" "${files[@]}"
}

# The module in a directory of its own; build_module NAME [MAKE-ARGUMENT...]
build_module() {
	local out=build/check/$1 log=build/check/$1.log
	shift
	rm -rf "$out"
	mkdir -p "$out"
	if ! make --no-print-directory module MODULE_OUT="$KPT_TOP/$out" "$@" \
		>"$log" 2>&1; then
		cat "$log"
		return 1
	fi
	# rustc's, clippy's, the C compiler's, objtool's and modpost's
	if grep -iE '(^|[^a-z])warning:' "$log"; then
		cat "$log"
		return 1
	fi
}

clippy_check() {
	build_module clippy CLIPPY=1 || return 1
	grep -q 'CLIPPY' build/check/clippy.log || { echo "clippy did not run"; return 1; }
}

# checkpatch.pl of this very kernel.  Not for code outside the kernel's tree:
# MAINTAINERS, SPDX comment style, KERNEL_VERSION() checks.
checkpatch() {
	local ignore=FILE_PATH_CHANGES,SPDX_LICENSE_TAG,LINUX_VERSION_CODE
	perl "$KDIR/scripts/checkpatch.pl" --no-tree --terse --quiet \
		--no-summary --show-types --ignore "$ignore${1:+,$1}" "${@:2}"
}

# The module, its header and the sample.
mapfile -t kernel_c < <(sources '*.[ch]' tests demo)
test_c=(tests/modules/*.[ch])
user_c=(tests/kselftest/*.[ch] tests/bench/*.[ch] demo/*.[ch])

# The functions that exports.c exports are Rust.
kernel_c_check() {
	checkpatch EXPORT_SYMBOL --strict -f "${kernel_c[@]}"
}

# They share a header with user space (no BIT macro), hand out errnos that no
# function of the API returns (ENOSYS), and name one type differently in each
# module.
test_c_check() {
	checkpatch BIT_MACRO,ENOSYS,NEW_TYPEDEFS,MACRO_ARG_REUSE --strict -f "${test_c[@]}"
}

# User space: no kernel macros for attributes, memory shared with a guest is
# volatile.
user_c_check() {
	checkpatch ENOSYS,VOLATILE,PREFER_DEFINED_ATTRIBUTE_MACRO,EMBEDDED_FUNCTION_NAME,COMPLEX_MACRO \
		-f "${user_c[@]}"
}

# The layers are what internals.md says; and it is seen if they are not.
layers_check() {
	local copy=build/check/layers
	scripts/check/layers.py || return 1
	rm -rf "$copy"
	mkdir -p "$copy"
	cp --parents ./*.rs {abi,base,dev,kvm,memslot,mmu_hooks,tracker}/*.rs "$copy"
	echo 'use crate::tracker;' >>"$copy/memslot/upward.rs"
	if (cd "$copy" && "$KPT_TOP/scripts/check/layers.py"); then
		echo "an arrow upward is not seen"
		return 1
	fi
}

check "rustfmt" rustfmt_check
check "layers" layers_check
check "module builds without a warning" build_module module
check "clippy" clippy_check
check "checkpatch: kernel code" kernel_c_check
check "checkpatch: test modules" test_c_check
check "checkpatch: programs" user_c_check
# The example builds against the module, and README shows its very lines.
example_check() {
	local out=$KPT_TOP/build/check/samples rel log
	rel=$(cat "$KDIR/include/config/kernel.release")
	rm -rf "$out"
	mkdir -p "$out"
	log=$out/log
	make -C "$KDIR" M="$KPT_TOP/samples" MO="$out" KERNELRELEASE="$rel" \
		KBUILD_EXTRA_SYMBOLS="$KPT_TOP/build/check/module/Module.symvers" \
		modules >"$log" 2>&1 || { cat "$log"; return 1; }
	if grep -i 'warning:' "$log"; then
		return 1
	fi
	# shellcheck disable=SC2016 # a fence, not a command
	sed -n '/^```c$/,/^```$/{/^```/!p}' README.md >"$out/readme.c"
	[ "$(wc -l <"$out/readme.c")" -ge 20 ] || { echo "README shows no example"; return 1; }
	grep -vxF -f samples/kpt_example.c "$out/readme.c" | grep . && return 1
	return 0
}

# It judges every machine: a report at the head of a long log must not be lost,
# nor one of ours among the kernel's own races.
report_check() {
	local log=$KPT_TOP/build/check/report bad
	for bad in 'WARNING: x' 'BUG: KCSAN: data-race in a [kvm]' \
		$'BUG: KCSAN: data-race in a [kvm] / b [kvm]\n c [kvm_page_track]'; do
		{
			printf '[ 1.0] %s\n========================\n' "$bad"
			seq 100000 | sed 's/^/[ 2.0] good /'
		} >"$log"
		if scripts/vm/kernel-report.sh "$log" >/dev/null; then
			echo "not found: $bad"
			return 1
		fi
	done
	{
		echo '[ 1.0] BUG: KCSAN: data-race in a [kvm] / b [kvm]'
		echo '[ 1.0] ======================='
		seq 100000
	} >"$log"
	scripts/vm/kernel-report.sh "$log"
}

# A computer that stood still excuses a lockup, and nothing else.
stall_check() (
	log=$KPT_TOP/build/check name=stall console=$log/stall.console
	job=none limit=1 out=$log/stall.out
	# shellcheck source=scripts/vm/machine.sh
	. scripts/vm/machine.sh
	lockup='[ 9.0] watchdog: BUG: soft lockup - CPU#0 stuck for 24s! [swapper/0:0]
[ 9.1] Modules linked in: kvm
[ 9.2] Code: 48 83'
	echo '# kpt-job: done rc=1' >"$out"
	judged() {
		printf '%s\n' "$1" >"$console"
		machine_judge 0
		[ "$status" -eq "$2" ] || { echo "$status instead of $2: $1 $text"; exit 1; }
	}
	rm -f "$log/stall.stalled"
	judged "$lockup" 2
	judged '' 1
	echo '90 s: the computer stood still for 24 s' >"$log/stall.stalled"
	judged "$lockup" 3
	judged '' 3
	judged "$lockup"$'\n[ 9.3] WARNING: x\n[ 9.4] Call Trace:' 2
	judged "$(printf '%s\n' "$lockup"; seq 100; echo '[ 9.9] Call Trace:')" 2
	echo '# kpt-job: done rc=0' >"$out"
	judged '' 0
)

# DKMS passes over exactly the kernels that requirements.mk refuses.
dkms_check() {
	local option value bad=0 work=build/check/dkms config
	mkdir -p "$work"
	# DKMS's own question
	passed_over() (
		# shellcheck disable=SC2034 # dkms.conf reads them
		kernel_config=$config kernelver=6.0 arch=x86_64 BUILD_EXCLUSIVE_KERNEL=''
		# shellcheck source=dkms.conf
		. ./dkms.conf
		[[ -z $BUILD_EXCLUSIVE_KERNEL || 6.0 =~ $BUILD_EXCLUSIVE_KERNEL ]] || return 0
		for option in $BUILD_EXCLUSIVE_CONFIG; do
			case $option in
			!*) ! grep -q "^${option#!}=[ym]" "$config" || return 0 ;;
			*) grep -q "^$option=[ym]" "$config" || return 0 ;;
			esac
		done
		return 1
	)
	config=$KDIR/.config
	passed_over && { echo "DKMS passes over this kernel"; return 1; }
	config=$work/config
	# X86_64 is BUILD_EXCLUSIVE_ARCH
	# shellcheck disable=SC2016 # make's, not the shell's
	sed -n 's/^$(call kpt-need,//p' base/requirements.mk >"$work/needs"
	while IFS=, read -r option value _; do
		for other in y m n; do
			if [ "$other" = "$value" ] || [ "$option" = CONFIG_X86_64 ]; then
				continue
			fi
			# a boolean is never m
			[ "$other" != m ] || [ "$value" = m ] || continue
			grep -v "^$option=" "$KDIR/.config" >"$config"
			[ "$other" = n ] || echo "$option=$other" >>"$config"
			passed_over || { echo "DKMS does not pass over $option=$other"; bad=1; }
		done
	done <"$work/needs"
	return $bad
}

# A script that is named somewhere is there.
names_check() {
	local name bad=0
	while read -r name; do
		[ -e "$name" ] || { grep -rnF --exclude-dir={build,.git} "$name" .; bad=1; }
	done < <(grep -rhoE --exclude-dir={build,.git} \
		'\<scripts/[a-z/-]+\.(sh|py|awk|list|config)\>' . | sort -u)
	return $bad
}

check "README's example is the sample, and builds" example_check
check "DKMS passes over what the module refuses" dkms_check
check "reports are found in a kernel's log" report_check
check "a computer that stood still excuses a lockup only" stall_check
check "kernels that lack something are refused by name" scripts/check/build-refusals.sh
check "scripts that are named are there" names_check
check "shellcheck" shellcheck -x scripts/**/*.sh scripts/vm/jobs/* .ci/run dkms.conf \
	packaging/{postinst,prerm,postrm}
check "no indirect calls to KVM" \
	scripts/check/indirect-calls.sh build/check/module/kvm_page_track.ko

echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
