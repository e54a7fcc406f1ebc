# SPDX-License-Identifier: GPL-2.0-only
#
# kvm-page-track: build, test, demo.  "make help" lists the targets.
#
# The module is built for one of these kernels, the first that applies:
#   KDIR=...             a kernel tree named by the user (with Rust metadata)
#   the running kernel   if it is a Debian one with CONFIG_RUST, its headers are
#                        installed and rustc is here
#   the stock kernel     that scripts/setup.sh fetches, in the toolchain root

TOP := $(CURDIR)
OUT := $(TOP)/build
MODULE_OUT := $(OUT)/module
JOBS ?= $(shell nproc)
SHELL := /bin/bash

.PHONY: test-long debug-kernel test-debug test-upstream mutants matrix matrix-build
.PHONY: bench bench-build bench-docs bench-check
.PHONY: all module tests-build demo-build test demo check shell setup update \
	deb test-deb initramfs clean distclean help

all: module

# The running kernel (or another installed one, KPT_RELEASE), if modules for it
# can be built here; not if a kernel of the toolchain root is asked for.
running := $(or $(KPT_RELEASE),$(shell uname -r))
asked := $(KPT_FLAVOUR)$(KPT_SUITE)$(KPT_KERNEL_SUITE)
lacks := $(if $(KDIR)$(asked),,$(shell { \
	grep -qs '^CONFIG_RUST=y' /lib/modules/$(running)/build/.config || \
		echo 'headers with CONFIG_RUST'; \
	for tool in rustc bindgen; do command -v $$tool >/dev/null || echo $$tool; done; \
	} | paste -sd, | sed 's/,/, /g'))
native := $(if $(KDIR),yes,$(if $(asked)$(lacks),,yes))

ifneq ($(native),)
# ---------------------------------------------------------------------------
# Here, with the compiler of this system.

ifeq ($(KDIR),)
# Debian's headers have no Rust metadata: a tree that has is made in KPT_CACHE.
find-kdir = $$(KPT_RELEASE=$(running) scripts/setup/rust-metadata.sh --running)
else
find-kdir = $(KDIR)
endif

# One build at a time in a clone.
lock := mkdir -p $(OUT) && exec 7>$(OUT)/.lock && flock 7

# $(call fresh,DIR,STAMP): what was built in DIR for another kernel goes
fresh = mkdir -p $(1) && \
	if [ -e $(1)/.release ] && [ "$$(cat $(1)/.release)" != "$(2)" ]; then \
		find $(1) -mindepth 1 -delete; \
	fi && echo "$(2)" >$(1)/.release

module:
	@$(lock) && kdir=$(find-kdir) && [ -n "$$kdir" ] && \
	rel=$$(cat "$$kdir/include/config/kernel.release") && \
	$(call fresh,$(MODULE_OUT),$$rel $$kdir) && \
	$(MAKE) -C "$$kdir" -j$(JOBS) M=$(TOP) MO=$(abspath $(MODULE_OUT)) \
		$$(grep -qs ^CONFIG_CC_IS_CLANG=y "$$kdir/.config" && echo LLVM=1) \
		KERNELRELEASE="$$rel" $(if $(CLIPPY),CLIPPY=1) modules
	@echo "built $(MODULE_OUT:$(TOP)/%=%)/kvm_page_track.ko"

# Test modules and kselftests; only in the toolchain root.
tests-build:
	@$(lock) && rel=$$(cat $(KDIR)/include/config/kernel.release) && \
	$(call fresh,$(OUT)/tests,$$rel $(KDIR)) && \
	$(MAKE) -C tests -j$(JOBS) KDIR=$(KDIR) O=$(OUT)/tests \
		KPT_SYMVERS=$(MODULE_OUT)/Module.symvers KERNELRELEASE="$$rel"

# The program of make demo; after tests-build.
demo-build: tests-build
	@$(lock) && $(MAKE) -C demo KDIR=$(KDIR) O=$(OUT)/tests

# The program of make bench; after tests-build.
bench-build: tests-build
	@$(lock) && $(MAKE) -C tests/bench KDIR=$(KDIR) O=$(OUT)/tests

else
# ---------------------------------------------------------------------------
# In the toolchain root.

ifneq ($(KPT_RELEASE),)
module:
	@echo 'kpt: ERROR: cannot build for $(KPT_RELEASE) here: $(if $(lacks),there are no $(lacks),a suite or flavour asks for another)' >&2; \
	echo 'kpt: (docs/install.md, "By hand")' >&2; \
	false
else
module: setup
	@$(if $(lacks),echo 'kpt: for the running kernel $(running) there are no $(lacks);')
	@echo 'kpt: building for the kernel of the toolchain root:'
	@scripts/in-root.sh make --no-print-directory module
endif

endif

setup:
	@scripts/setup.sh

update:
	@scripts/setup.sh --update

# Tests always run on the stock kernel of the toolchain root, in QEMU.
ifeq ($(KPT_IN_ROOT),)
test: setup
	@scripts/test/test.sh

# The fuzzer of the API, attach and detach, and the storms, for long.
long := nested-fuzz shadow-fuzz nested-cycles shadow-cycles nested-storms shadow-storms
test-long: setup
	@VM="$(or $(VM),$(long) linux-guest-nested)" scripts/test/test.sh

# The same tests on a kernel that complains about everything, with the long
# fuzzer, and with every allocation failing in turn; FLAVOUR=kcsan watches for
# data races instead of bad memory accesses, in the programs that race.
debug-vms := nested shadow nested-fuzz shadow-fuzz nested-faults shadow-faults
debug-vms-kcsan := nested-smp shadow-smp
debug-kernel: setup
	@scripts/setup/debug-kernel.sh $(FLAVOUR)

test-debug: setup
	@dir=$$(scripts/setup/debug-kernel.sh $(FLAVOUR)) && \
	KPT_KERNEL_DIR=$$dir VM="$(or $(VM),$(debug-vms$(FLAVOUR:%=-%)))" scripts/test/test.sh

# Upstream's own KVM selftests, without the module, with it, and while it comes
# and goes.
test-upstream: setup
	@scripts/test/upstream.sh

# The tests on every kernel that is supported.
matrix:
	@scripts/test/matrix.sh

# Module, tests and bench built for every kernel of the matrix.
matrix-build:
	@scripts/test/matrix.sh --build

# Breaks the module in every way of tests/mutants.list and sees who notices.
mutants: setup
	@scripts/test/mutants.sh

# What the C tracker and the module cost, side by side; the same into docs; and
# whether the bench would notice.
bench: setup
	@scripts/bench/bench.sh

bench-docs:
	@scripts/bench/bench-docs.sh

bench-check: setup
	@scripts/bench/bench-check.sh

demo: setup
	@scripts/vm/demo.sh

check: setup
	@scripts/in-root.sh scripts/check/check.sh

initramfs: setup
	@scripts/in-root.sh make --no-print-directory module demo-build
	@scripts/vm/initramfs.sh

deb: setup
	@scripts/package/deb.sh

# The package installed, used, upgraded and removed in a Debian.
test-deb: setup
	@scripts/package/test.sh

shell: initramfs
	@scripts/vm/vm.sh shell --job shell --limit 36000 --npt $(or $(NPT),1)
endif

clean:
	rm -rf $(OUT)

distclean: clean
	@scripts/setup/clean-cache.sh

help:
	@echo 'make            build build/module/kvm_page_track.ko, for the running kernel if'
	@echo '                it is a Debian kernel with Rust, else for the stock kernel of'
	@echo '                the toolchain root (which is made first: about 5 minutes, once)'
	@echo 'make demo       what the module does, shown on a stock kernel in QEMU'
	@echo 'make test       all tests in QEMU, nested and shadow paging'
	@echo '                T=pattern: only programs that match;'
	@echo '                VM="machine ...", of those that scripts/test/test.sh names'
	@echo "make test-upstream  upstream's KVM selftests without the module, with it, and"
	@echo '                while it comes and goes (half an hour); SUBSET="glob ...",'
	@echo '                WAYS="attached storm", VM=nested|shadow, LIMIT=60 (a program, s)'
	@echo 'make test-long  100,000 random calls, hundreds of attaches and detaches, storms'
	@echo 'make test-debug make test on a debug kernel, which is built first (25 minutes):'
	@echo '                KASAN, lockdep, kmemleak, unit tests, and with every allocation'
	@echo '                failing in turn; FLAVOUR=kcsan: data races'
	@echo 'make matrix     the kselftests on every supported kernel (an hour and more); a table'
	@echo '                MATRIX="amd64 cloud-amd64 rt-amd64 sid": only these; VM="...", T='
	@echo 'make matrix-build  only build everything for every supported kernel; MATRIX='
	@echo 'make mutants    breaks the module on purpose: do the tests notice?'
	@echo 'make bench      what the C tracker and the module cost, in instructions and'
	@echo '                bytes, side by side: ends with the 15 rows that users feel, and'
	@echo '                whether all are within budget; build/bench/rows.md has every row'
	@echo '                PART="reader pages ranges notifiers memslots writes tables'
	@echo '                attach memory linux": only these (linux, a compile job in a Linux'
	@echo '                guest, only when named; PAIRS=5); ROUNDS=3; VM=nested|shadow'
	@echo 'make bench-docs   puts what the last make bench wrote into docs/performance*'
	@echo 'make bench-check  slows the module down on purpose: does the bench show it?'
	@echo 'make deb        the DKMS package, build/deb/kvm-page-track-dkms_VERSION_all.deb'
	@echo 'make test-deb   install it in a Debian, use it there in QEMU, upgrade, remove it'
	@echo 'make check      rustfmt, clippy, checkpatch, shellcheck, indirect calls'
	@echo 'make shell      a shell in the virtual machine, everything loaded by hand; NPT=0'
	@echo 'make setup      make or complete the toolchain root and the stock kernel'
	@echo 'make update     the same, and look for a newer kernel'
	@echo 'make clean      remove build/'
	@echo 'make distclean  remove build/ and the caches in KPT_CACHE'
	@echo
	@echo 'KPT_CACHE=dir   the one directory outside the clone (default'
	@echo '                /var/cache/kvm-page-track)'
	@echo 'KDIR=dir        build against this kernel tree'
	@echo 'KPT_RELEASE=rel build for this installed kernel instead of the running one'
	@echo 'KPT_FLAVOUR=f   the stock kernel: amd64 (default), cloud-amd64 or rt-amd64'
	@echo 'KPT_SUITE=s     Debian of the toolchain root: trixie (default) or sid'
	@echo 'KPT_KERNEL_SUITE=s  where the stock kernel is from (default trixie-backports, or'
	@echo '                sid with KPT_SUITE=sid); with one of these three make builds for'
	@echo '                the stock kernel even where it could for the running one'
	@echo 'KPT_MIRROR=uri  Debian mirror (default: that of the apt of this system)'
	@echo 'JOBS=n          compile so many files at a time (default: one a processor)'
	@echo 'tests/README.md has those of the tests.'
