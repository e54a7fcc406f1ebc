# SPDX-License-Identifier: GPL-2.0-only
#
# What a kernel must be configured with for this module to work beside it.  One
# that is not is refused here, before anything is compiled, by the name of what
# it lacks (shown by scripts/check/build-refusals.sh; docs/kernels.md).

define kpt-refusal
kvm_page_track: this kernel is refused: it has $(1)=$(3) and not $(1)=$(2). \
$(4) (docs/kernels.md)
endef

# $(call kpt-need,OPTION,VALUE,WHY)
kpt-need = $(if $(filter $(2),$(or $($(1)),n)),,\
	$(error $(call kpt-refusal,$(1),$(2),$(or $($(1)),n),$(3))))

# make clean knows no configuration.
ifeq ($(filter %/Makefile.clean,$(MAKEFILE_LIST)),)
$(call kpt-need,CONFIG_X86_64,y,Write tracking of guest pages is a part of KVM on x86)
$(call kpt-need,CONFIG_RUST,y,The module is written in Rust)
$(call kpt-need,CONFIG_KVM_X86,m,It replaces functions of kvm.ko)
$(call kpt-need,CONFIG_LTO_CLANG,n,Optimized at link time kvm.ko has no functions of page_track.c to replace)
$(call kpt-need,CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS,y,They are replaced by direct jumps of ftrace)
$(call kpt-need,CONFIG_DYNAMIC_FTRACE_WITH_JMP,y,They are replaced by direct jumps of ftrace)
$(call kpt-need,CONFIG_KPROBES,y,It finds functions that are not exported by a kprobe)
$(call kpt-need,CONFIG_HAVE_STATIC_CALL_INLINE,y,It may call these functions directly only)
endif
