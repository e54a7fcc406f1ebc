/* SPDX-License-Identifier: GPL-2.0-only */
/* What bindgen turns into bindings.rs: headers of the kernel, and ours. */
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/srcu.h>

#include <kvm_page_track.h>

#include "base.h"
#include "../dev/debugfs.h"
#include "../kvm/kvm.h"

/* Constants that bindgen cannot see as macros. */
static const unsigned int KPT_ADDRESS_SPACES = KVM_MAX_NR_ADDRESS_SPACES;
static const unsigned int KPT_SLOT_INVALID = KVM_MEMSLOT_INVALID;
static const unsigned int KPT_SLOT_GUEST_MEMFD = KVM_MEM_GUEST_MEMFD;
static const unsigned int KPT_UPDATE_IN_PROGRESS_BIT =
	__builtin_ctzll(KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS);
static const unsigned long KPT_FTRACE_PERMANENT = FTRACE_OPS_FL_PERMANENT;
static const unsigned int KPT_KPROBE_DISABLED = KPROBE_FLAG_DISABLED;
