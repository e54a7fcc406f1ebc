/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kselftests of kvm-page-track share: the runner (TAP), the test
 * devices, modules, debugfs.
 */
#ifndef KPT_LIB_H
#define KPT_LIB_H

#include <errno.h>
#include <stdbool.h>

#include "kvm_util.h"
#include "processor.h"
#include "kpt_client.h"

#define KPT_MODE_WRITE	0
/* KVM_PAGE_TRACK_MAX_USERS of the kernel header */
#define KPT_MAX_USERS	(65535 - 16384)

/* Where the tests put the memory they track. */
#define KPT_GPA		0x40000000ULL
#define KPT_GVA		0xc0000000ULL
#define KPT_SLOT	10
#define KPT_GFN		(KPT_GPA >> 12)

/* kpt_main(): modules a program needs, or does not want to be there. */
#define KPT_NEED_CLIENT		1	/* kpt_client, and so kvm_page_track */
#define KPT_NEED_MODULE		2	/* kvm_page_track without kpt_client */
#define KPT_WANT_C		4	/* neither: the tracker is kvm.ko's own */
/* kpt_stock is always loaded. */

struct kpt_test {
	const char *name;
	void (*fn)(void);
	unsigned int timeout;	/* seconds (times KPT_PATIENCE), 0: 60 */
	unsigned int modules;	/* other than kpt_main()'s, if not 0 */
};

/*
 * Runs each test in a process of its own: a failed TEST_ASSERT() ends that test
 * only.  A test also fails if the kernel complained meanwhile.
 */
int kpt_main(const struct kpt_test *tests, int n, unsigned int modules);
/*
 * Is this record of the kernel's log a complaint?  A program that provokes some
 * may put its own function there, which is shown every record in turn.
 */
extern bool (*kpt_complaint)(const char *record);
bool kpt_is_complaint(const char *record);
/*
 * Whether kvm.ko tracks for other modules by itself.  If it does not, kpt_stock's
 * calls of upstream's functions are -ENOSYS while kvm_page_track is not loaded.
 */
bool kpt_kvm_tracks(void);

/* Skips the running test if it does not: there is no C tracker. */
void kpt_need_c_tracker(void);

/* Ends the running test as skipped. */
void kpt_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* A number from the environment: how long to go on, for example. */
u64 kpt_env(const char *name, u64 otherwise);

/* Writes @text to a file of the kernel's: 0 or -errno. */
int kpt_put(const char *path, const char *text);

/* Nested paging (EPT, NPT) is on. */
bool kpt_tdp(void);

/* It is, and KVM maps by the TDP MMU, with A/D bits. */
bool kpt_tdp_mmu(void);

/* Modules, by their names.  0 or -errno as of the system call. */
bool kpt_mod_loaded(const char *name);
int kpt_mod_load(const char *name);
int kpt_mod_unload(const char *name);
/* Tries again for two seconds while it is in use. */
int kpt_mod_unload_retry(const char *name);
int kpt_mod_refs(const char *name);
/*
 * Loads and unloads kvm_page_track so often.  What is in use is refused, and
 * that is all that may happen.  Returns how often it was.
 */
u64 kpt_load_and_unload(u64 cycles);
/* The same, but must succeed. */
void kpt_attach(void);
void kpt_detach(void);

/*
 * The devices.  kpt_dev is /dev/kpt_client in programs that need it, else
 * /dev/kpt_stock; kpt_stock is always /dev/kpt_stock.  Opened for each test.
 */
extern int kpt_dev;
extern int kpt_stock;
int kpt_open(const char *name);

/* All return 0 (or an id) or -errno. */
int kpt_api(int dev, struct kpt_call *c);
int kpt_call(int dev, u32 op, struct kvm_vm *vm, u64 gfn);
int kpt_call_n(int dev, u32 op, struct kvm_vm *vm, u64 gfn, u64 n, u64 *done);
int kpt_reg(int dev, struct kvm_vm *vm, u32 type, u32 flags);
int kpt_reg_full(int dev, struct kpt_register *reg);
int kpt_unreg(int dev, int id);
struct kpt_counters kpt_counters(int dev, int id);
/* Takes the recorded events; none may have been dropped. */
int kpt_events(int dev, struct kpt_event *ev, int max);
struct kpt_inspect kpt_inspect(struct kvm_vm *vm, u32 as_id, u64 gfn);
/* The same of a VM that is not the library's. */
struct kpt_inspect kpt_inspect_fd(int vm_fd, u32 as_id, u64 gfn);
/*
 * Bytes of counters of the page that kvm-intel puts at the guest's local APIC, in
 * memslots of its own (under shadow paging; else they have none).
 */
u64 kpt_apic_bytes_fd(int vm_fd);
void kpt_pages_fd(int vm_fd, u32 as_id, u64 gfn, u64 nr, struct kpt_page *pages);

/*
 * Puts a kprobe on a function of KVM (enum kpt_probe_op), there is one at a time;
 * how often it has been called since.
 */
int kpt_probe(const char *symbol, u32 op);
u64 kpt_probe_hits(void);
/* Holds a task when it enters a read section of the VM's srcu for the @nth time. */
int kpt_probe_srcu(struct kvm_vm *vm, int pid, int nth);
/* Until somebody is held by it (KPT_PROBE_HOLD, KPT_PROBE_SLEEP*). */
void kpt_probe_wait(void);

static inline int kpt_add(struct kvm_vm *vm, u64 gfn)
{
	return kpt_call(kpt_dev, KPT_OP_ADD_PAGE, vm, gfn);
}

static inline int kpt_remove(struct kvm_vm *vm, u64 gfn)
{
	return kpt_call(kpt_dev, KPT_OP_REMOVE_PAGE, vm, gfn);
}

static inline u32 kpt_count(struct kvm_vm *vm, u64 gfn)
{
	return kpt_inspect(vm, 0, gfn).count;
}

#define KPT_OK(call) do {						\
	int __r = (call);						\
	TEST_ASSERT(!__r, #call " returned %d", __r);			\
} while (0)

#define KPT_ERR(call, err) do {						\
	int __r = (call);						\
	TEST_ASSERT(__r == -(err), #call " returned %d, not %d (" #err ")", \
		    __r, -(err));					\
} while (0)

#define KPT_EQ(a, b) do {						\
	long long __a = (a), __b = (b);					\
	TEST_ASSERT(__a == __b, #a " is %lld (%#llx), not %lld (%#llx)", \
		    __a, __a, __b, __b);				\
} while (0)

/*
 * @call is refused with @err, and nothing KVM knows of @gfn, its memslots and
 * the VM differs afterwards.
 */
#define KPT_REFUSED(vm, gfn, call, err) do {				\
	struct kpt_inspect __a[2], __b[2];				\
	int __i, __r;							\
									\
	for (__i = 0; __i < 2; __i++)					\
		__a[__i] = kpt_inspect(vm, __i, gfn);			\
	__r = (call);							\
	for (__i = 0; __i < 2; __i++)					\
		__b[__i] = kpt_inspect(vm, __i, gfn);			\
	TEST_ASSERT(__r == -(err), #call " returned %d, not %d (" #err ")", \
		    __r, -(err));					\
	TEST_ASSERT(!memcmp(__a, __b, sizeof(__a)),			\
		    #call " was refused but changed the VM: count %u -> %u, " \
		    "2M %d -> %d, array %u -> %u, references %u -> %u",	\
		    __a[0].count, __b[0].count, __a[0].lpage_2m,	\
		    __b[0].lpage_2m, __a[0].has_array, __b[0].has_array, \
		    __a[0].users_count, __b[0].users_count);		\
} while (0)

/* A VM with one vCPU and @npages of test memory at KPT_GPA, mapped at KPT_GVA. */
struct kvm_vm *kpt_vm(struct kvm_vcpu **vcpu, void *guest, u64 npages,
		      enum vm_mem_backing_src_type src);
void kpt_vm_add_memory(struct kvm_vm *vm, u64 npages,
		       enum vm_mem_backing_src_type src);
/* Runs until the guest's next GUEST_SYNC(); false: GUEST_DONE(). */
bool kpt_run_sync(struct kvm_vcpu *vcpu, u64 *arg);
/* Runs, the guest must do GUEST_SYNC(expected). */
void kpt_run_to(struct kvm_vcpu *vcpu, u64 expected);
void kpt_run_done(struct kvm_vcpu *vcpu);
/*
 * A guest that writes 1, 2, 3..., one with each kpt_write(), to the page of the
 * test memory that this names; what it has written is returned.
 */
void kpt_write_guest(void);
u64 kpt_write(struct kvm_vcpu *vcpu, u64 nr);
/* The same where that page of KPT_GVA is mapped elsewhere. */
u64 kpt_write_at(struct kvm_vcpu *vcpu, u64 nr, u64 gpa);
/* Backing memory of 2 MiB pages for a test; skips if there is none. */
void kpt_need_hugepages(int n);

/*
 * A guest that writes 1, 2, 3... to a tracked page, and between two of these
 * @pace times to a page that is not, with a notifier of @type on @dev that hears
 * of it.  Whatever is done meanwhile: every write arrives once and in order.
 *
 * On kpt_stock, if kvm.ko does not track by itself, page and notifier come with
 * kpt_attach() and go before kpt_detach(); what is written in between arrives.
 */
struct kvm_vm *kpt_writer_start(int dev, u32 type, u64 pace);
/* So many have arrived. */
u64 kpt_writer_heard(void);
/* Whether the page is tracked without kvm_page_track as well. */
bool kpt_writer_stays(void);
/* The guest ends and all is compared: returns how many writes it has made. */
u64 kpt_writer_stop(void);

/* One VM's line of debugfs kvm_page_track/vms; rows: how many it has. */
struct kpt_vm_stats {
	int rows;
	u64 pages, counter_bytes, notifiers, events;
};

/* @pid: of the process that made the VM. */
struct kpt_vm_stats kpt_debugfs_vm(int pid);
/* Lines of kvm_page_track/hooks; @attached: those in use. */
int kpt_debugfs_hooks(int *attached);

#endif /* KPT_LIB_H */
