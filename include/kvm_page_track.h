/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * kvm_page_track - write tracking of KVM guest pages, for other modules
 *
 * The header for C clients.  Four of these functions are upstream's: those of
 * <asm/kvm_page_track.h> that register and unregister a notifier, and
 * kvm_write_track_{add,remove}_gfn().  They are symbols of kvm.ko, and run code of
 * kvm_page_track.ko while that is loaded.  All others are symbols of
 * kvm_page_track.ko; so are these four where kvm.ko is built without
 * CONFIG_KVM_EXTERNAL_WRITE_TRACKING.  "C" below is kvm.ko's own tracker.
 *
 * Contexts.  Unless a function says otherwise it may sleep, and is called
 * without kvm->mmu_lock or kvm->slots_arch_lock.  Call a register function
 * outside kvm->srcu read sections, and the others inside or outside.
 * Unregister waits for running callbacks of that VM, and for nothing else.  A
 * callback that reads guest memory may wait for user space (userfaultfd).  So do
 * not hold a lock that user space may need, such as its mmap_lock, when you
 * unregister.
 * The caller keeps @kvm alive across the call (kvm_get_kvm()), and does not
 * register one notifier or client with two VMs at the same moment.
 *
 * Errors.  A refused call changes no count, no mapping and no registration.
 *
 *   -EINVAL      An argument is NULL.  The mode is unknown.  The gfn is in no
 *                memslot, or no longer (the count of a page goes with its memslot).
 *                A range is empty, or goes past the last gfn.  Prepare: the range
 *                spans several memslots
 *   -ENOENT      remove: no external user has added this page, or not since its
 *                memslot was deleted and made again
 *   -EOVERFLOW   add: the limit of external users of one page is reached
 *   -ENOMEM      no memory for the counters, or for what the module keeps of a VM;
 *                slot variants: the page was not prepared
 *   -EAGAIN      The memslot is being moved or deleted: try again later, but not in
 *                a callback or a kvm->srcu read section, since KVM waits for those.
 *                Or the module is being unloaded, which cannot happen while a client
 *                is registered.  (The next call of one of upstream's functions is
 *                then KVM's own, where KVM has them.)
 *                If the VM has a notifier of upstream's, KVM does not move its
 *                memslots, and kvm_write_track_{add,remove}_gfn() change the count
 *                as C does, instead of returning -EAGAIN
 *   -ESRCH       register: the caller's mm is not the VM's;
 *                kvm_page_track_register_notifier() also: @kvm is NULL
 *   -EEXIST      register: registered already, with this VM or (through
 *                kvm_page_track.ko) with another
 *   -EOPNOTSUPP  The VM's writes cannot be emulated, or its memory is private (SEV,
 *                SEV-ES, SNP, TDX, software-protected VMs): asked at every add and
 *                prepare, and when a VM gets its first notifier or a client.
 *                Or the memslot is one of a guest_memfd (add, prepare).
 *                Or KVM keeps its own records elsewhere than the module expects (the
 *                kernel log says so) and may shadow page tables of the VM
 *
 * C's kvm_write_track_{add,remove}_gfn() return 0 or -EINVAL only, ours also the
 * errors above.  An add may return -ENOMEM because we allocate the counters of a
 * memslot when its first page is added; C allocates those of all of the VM's memory
 * when the first notifier registers.
 */
#ifndef _KVM_PAGE_TRACK_H
#define _KVM_PAGE_TRACK_H

#include <linux/kvm_host.h>

#include <asm/kvm_page_track.h>

/**
 * enum kvm_page_track_mode - what is tracked
 * @KVM_PAGE_TRACK_WRITE: guest writes.  As long as its count is above zero the
 *	page is mapped read-only.  It gets no new mapping by a large page; one that is
 *	there is made read-only, and split by the next write to another of its pages.
 */
enum kvm_page_track_mode {
	KVM_PAGE_TRACK_WRITE,
};

/*
 * How often other modules together may add one page.  The u16 counter also
 * counts KVM's own shadow page tables, which need up to 2^14 of a page.
 */
#define KVM_PAGE_TRACK_MAX_USERS	(65535 - 16384)

#ifndef CONFIG_KVM_EXTERNAL_WRITE_TRACKING
/*
 * This kernel's KVM tracks nothing for other modules, and its
 * <asm/kvm_page_track.h> has only an empty struct kvm_page_track_notifier_node.
 * From here on that name stands for the struct below, and kvm_page_track.ko has the
 * functions.  Code for upstream's API builds unchanged if every file that uses the
 * name includes this header first: ccflags-y += -include .../kvm_page_track.h
 */
struct kpt_notifier_node {
	struct hlist_node node;
	void (*track_write)(gpa_t gpa, const u8 *new, int bytes,
			    struct kpt_notifier_node *node);
	void (*track_remove_region)(gfn_t gfn, unsigned long nr_pages,
				    struct kpt_notifier_node *node);
};

#define kvm_page_track_notifier_node kpt_notifier_node

/**
 * kvm_page_track_register_notifier() - upstream's way to receive a VM's events
 * @kvm: the VM; the caller's mm must be its mm
 * @n: valid until kvm_page_track_unregister_notifier() returns; its callbacks are
 *	those of &struct kvm_page_track_client, but track_remove_region comes for
 *	memslots of both address spaces.  It cannot follow a memslot that moves: as
 *	long as it is registered, moves in this VM fail.
 *
 * Return: 0, -EINVAL, -ESRCH (also if @kvm is NULL), -EEXIST, -EOPNOTSUPP, -ENOMEM,
 * -EAGAIN.
 */
int kvm_page_track_register_notifier(struct kvm *kvm,
				     struct kvm_page_track_notifier_node *n);

/**
 * kvm_page_track_unregister_notifier() - as kvm_page_track_unregister_client()
 * @kvm: the VM
 * @n: the notifier
 */
void kvm_page_track_unregister_notifier(struct kvm *kvm,
					struct kvm_page_track_notifier_node *n);

/**
 * kvm_write_track_add_gfn() - kvm_page_track_add_page(), under upstream's name
 * @kvm: the VM
 * @gfn: guest frame number, in a memslot of address space 0
 *
 * If the VM has a notifier of upstream's, this also works on a memslot that is about
 * to be moved or deleted, as in C.  Such a move fails; if the memslot is deleted the
 * count goes with it.
 *
 * Return: 0, -EINVAL, -EOVERFLOW, -ENOMEM, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_write_track_add_gfn(struct kvm *kvm, gfn_t gfn);

/**
 * kvm_write_track_remove_gfn() - kvm_page_track_remove_page(), under upstream's name
 * @kvm: the VM
 * @gfn: guest frame number
 *
 * Return: 0, -EINVAL, -ENOENT, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_write_track_remove_gfn(struct kvm *kvm, gfn_t gfn);
#endif

/**
 * struct kvm_page_track_client - a notifier that can follow a moved memslot
 * @node: the callbacks of upstream's notifier, each may be NULL.
 *	@node.track_write is called after a guest write to a tracked page was emulated
 *	(guest memory already holds the value), with the gpa, the bytes written (valid
 *	until it returns) and their number.  A write that crosses a page boundary
 *	arrives as one call per page.  Several vCPUs may be in it at once.  A write
 *	that races with the last remove of its page may go unreported.
 *	@node.track_remove_region is called once when a memslot of address space 0
 *	is deleted; its counters are gone by then.
 * @track_move_region: called when user space moves a memslot of address space 0,
 *	after its counters were carried over and before the new place becomes visible
 *	to the guest.  NULL: this client cannot follow, and moves in this VM fail.
 *
 * Nothing tells a callback which VM it is called for.  Have one client for each VM,
 * in a struct of yours that container_of() finds.
 *
 * track_write is called for a page that any module has added, not only this client's.
 * It is not called for other pages, nor for those that only KVM tracks, its shadow
 * page tables.  (Unless the write comes just when KVM begins to shadow the page.)
 *
 * Callbacks run in task context, without kvm->mmu_lock, and may sleep.  None may wait
 * for a grace period of kvm->srcu: track_write runs in a read section of it, and a
 * task in such a section may wait for the others to return.
 * track_write and track_remove_region may add and remove pages.
 * track_remove_region runs under kvm->slots_lock.  track_move_region runs under that
 * and kvm->slots_arch_lock.  In track_move_region the pages of the moving memslot can
 * be neither added nor removed (-EAGAIN at the old place, -EINVAL at the new one), and
 * a call that would have to allocate counters for another memslot returns -EAGAIN.
 *
 * No callback may take kvm->slots_lock, kvm->lock or a vCPU's mutex, nor
 * unregister a notifier or client of the same VM (it would wait for itself).  Do not
 * hold a lock that a callback takes while you unregister.  A lock that
 * track_move_region takes must not be held over kvm_page_track_add_page(),
 * _add_range(), _prepare() or kvm_write_track_{add,remove}_gfn() either: they may
 * take kvm->slots_arch_lock.
 *
 * Zero the struct before the first registration.
 */
struct kvm_page_track_client {
	struct kvm_page_track_notifier_node node;
	void (*track_move_region)(gfn_t old_gfn, gfn_t new_gfn,
				  unsigned long nr_pages,
				  struct kvm_page_track_client *client);
};

/**
 * kvm_page_track_register_client() - start receiving the events of a VM
 * @kvm: the VM; the caller's mm must be its mm
 * @client: the client, valid until kvm_page_track_unregister_client() returns
 *
 * Pins the VM and kvm_page_track.ko until the client is unregistered.  Do not register
 * its node as a notifier meanwhile.
 *
 * Context: may sleep; neither in a kvm->srcu read section nor under kvm->slots_lock, so
 * not in a callback.
 *
 * Return: 0, -EINVAL, -ESRCH, -EEXIST, -EOPNOTSUPP, -ENOMEM, -EAGAIN.
 */
int kvm_page_track_register_client(struct kvm *kvm,
				   struct kvm_page_track_client *client);

/**
 * kvm_page_track_unregister_client() - stop receiving the events of a VM
 * @kvm: the VM
 * @client: the client
 *
 * When it returns no callback of @client runs, and none will.  Pages it added
 * stay tracked until they are removed.  Waits for running callbacks, so it must
 * not be called from one.  A client that is not registered is ignored.
 */
void kvm_page_track_unregister_client(struct kvm *kvm,
				      struct kvm_page_track_client *client);

/**
 * kvm_page_track_add_page() - track writes to a guest page
 * @kvm: the VM
 * @gfn: guest frame number, in a memslot of address space 0
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * Every add needs one remove.  When the first add of a page returns, the page's
 * existing mappings are write-protected in every address space and no vCPU's
 * TLB holds a writable one.  (As in C, a memslot of address space 1, SMM, that
 * large pages back may later map the page writable again, by a large page.)
 *
 * Return: 0, -EINVAL, -EOVERFLOW, -ENOMEM, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_page_track_add_page(struct kvm *kvm, gfn_t gfn,
			    enum kvm_page_track_mode mode);

/**
 * kvm_page_track_remove_page() - undo one kvm_page_track_add_page()
 * @kvm: the VM
 * @gfn: guest frame number
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * Counts do not say whose they are: remove a page as often as you have added it, and
 * no more.  When a memslot is deleted its counts are gone (track_remove_region tells).
 * Do not remove them from a memslot that is made there later: its counts are somebody
 * else's.
 *
 * Return: 0, -EINVAL, -ENOENT, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_page_track_remove_page(struct kvm *kvm, gfn_t gfn,
			       enum kvm_page_track_mode mode);

/**
 * kvm_page_track_add_range() - kvm_page_track_add_page() of many pages
 * @kvm: the VM
 * @gfn: first guest frame number
 * @nr: number of pages, at least 1, every one in some memslot of address space 0
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * All of the pages are added, or none.  TLBs are flushed once, if a page was mapped
 * writable.  If somebody waits for kvm->mmu_lock or the processor, the lock is released
 * in between, after a bounded number of pages and a flush.  Others may then change
 * pages of the range, so that the call must be refused half-way.  What it has added is
 * removed again, but some pages were tracked for a while.
 * Pages of the range may be added and removed one by one as well.  A callback may
 * call this.
 *
 * Return: 0, -EINVAL, -EOVERFLOW, -ENOMEM, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_page_track_add_range(struct kvm *kvm, gfn_t gfn, unsigned long nr,
			     enum kvm_page_track_mode mode);

/**
 * kvm_page_track_remove_range() - kvm_page_track_remove_page() of many pages
 * @kvm: the VM
 * @gfn: first guest frame number
 * @nr: number of pages, at least 1, every one in some memslot of address space 0
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * One add of every page is undone, or none: -ENOENT if a page of the range has
 * no external user.  As with kvm_page_track_add_range(), others that change pages of
 * the range meanwhile may cause it to be refused half-way.  What it has removed is
 * added again, but some pages were not tracked for a while.
 *
 * Return: 0, -EINVAL, -ENOENT, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_page_track_remove_range(struct kvm *kvm, gfn_t gfn, unsigned long nr,
				enum kvm_page_track_mode mode);

/**
 * kvm_page_track_prepare() - allocate what the slot variants need
 * @kvm: the VM
 * @gfn: first guest frame number
 * @nr: number of pages, all in one memslot of address space 0
 *
 * It allocates the counters of the memslot.  One call, or one
 * kvm_page_track_add_page(), prepares the whole memslot until that is deleted.
 *
 * Return: 0, -EINVAL, -ENOMEM, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_page_track_prepare(struct kvm *kvm, gfn_t gfn, unsigned long nr);

/**
 * kvm_slot_page_track_add_page() - kvm_page_track_add_page() under mmu_lock
 * @kvm: the VM
 * @slot: the memslot of address space 0 that holds @gfn
 * @gfn: guest frame number, in a memslot prepared with kvm_page_track_prepare()
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * Context: kvm->mmu_lock held for write, in a kvm->srcu read section in which
 * @slot was looked up.  Does not sleep (on PREEMPT_RT as the lock's holder may).
 *
 * Return: 0, -EINVAL, -EOVERFLOW, -ENOMEM (not prepared), -EAGAIN, -EOPNOTSUPP.
 */
int kvm_slot_page_track_add_page(struct kvm *kvm, struct kvm_memory_slot *slot,
				 gfn_t gfn, enum kvm_page_track_mode mode);

/**
 * kvm_slot_page_track_remove_page() - kvm_page_track_remove_page() under mmu_lock
 * @kvm: the VM
 * @slot: the memslot of address space 0 that holds @gfn
 * @gfn: guest frame number
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * Context: as kvm_slot_page_track_add_page().
 *
 * Return: 0, -EINVAL, -ENOENT, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_slot_page_track_remove_page(struct kvm *kvm,
				    struct kvm_memory_slot *slot, gfn_t gfn,
				    enum kvm_page_track_mode mode);

#endif /* _KVM_PAGE_TRACK_H */
