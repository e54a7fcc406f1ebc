// SPDX-License-Identifier: GPL-2.0-only

//! Lists of notifiers.
//!
//! Two lists have the same form: KVM's own, if it has one ([`crate::provider`]), which is shared with
//! C, and ours. Both are written under `mmu_lock` held for write, and read in a [`ListSection`], which
//! who unregisters waits for: for callbacks, and for nothing else.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`, `include/linux/rculist.h`.

use crate::kvm::{Gfn, Gpa, Kvm, Memslot, MmuWrite};
use crate::provider::{self, Notifiers, RawNode};
use crate::{bindings, srcu, vm};
use core::marker::PhantomData;
use core::ptr::{addr_of, addr_of_mut, NonNull};
use kernel::ffi::c_int;
use kernel::types::{NotThreadSafe, Opaque};

/// Upstream's notifier (`struct kvm_page_track_notifier_node`), owned by another module.
///
/// # Invariants
///
/// Valid, and its callbacks are callable, from before it is registered until after it is
/// unregistered: the contract of the C API.
#[repr(transparent)]
pub(crate) struct Node(Opaque<RawNode>);

/// A notifier that can follow a moved memslot (`struct kvm_page_track_client`).
///
/// # Invariants
///
/// As [`Node`].
#[repr(transparent)]
pub(crate) struct Client(Opaque<bindings::kvm_page_track_client>);

/// The bytes a guest write left in memory, as the emulator hands them on.
///
/// # Invariants
///
/// `new` points to `bytes` readable bytes for the time of the call that delivers them.
#[derive(Clone, Copy)]
pub(crate) struct Written {
    new: *const u8,
    bytes: i32,
}

impl Written {
    /// Describes a write.
    ///
    /// # Safety
    ///
    /// The type invariant holds until the value is dropped.
    #[inline(always)]
    pub(crate) unsafe fn new(new: *const u8, bytes: i32) -> Self {
        Self { new, bytes }
    }
}

impl Node {
    /// Makes a view of a node.
    ///
    /// # Safety
    ///
    /// The type invariant holds as long as `'a`.
    pub(crate) unsafe fn from_ptr<'a>(ptr: NonNull<RawNode>) -> &'a Self {
        // SAFETY: Transparent; the rest is the caller's promise.
        unsafe { ptr.cast().as_ref() }
    }

    fn address(&self) -> usize {
        self.0.get() as usize
    }

    /// Whether the node may be in a list, of whatever VM.
    ///
    /// One that was zeroed, or taken out of a list, is in none. Upstream asks nobody to zero a node:
    /// anything else may be rubbish, and has to be looked for.
    pub(crate) fn may_be_linked(&self, _: &MmuWrite<'_>) -> bool {
        // SAFETY: By the type invariant.
        unsafe { !bindings::kpt_node_is_free(self.link()) }
    }

    fn link(&self) -> *mut bindings::hlist_node {
        // SAFETY: By the type invariant; only the address is taken.
        unsafe { addr_of_mut!((*self.0.get()).node) }
    }

    /// Tells the notifier of a guest write.
    #[inline(always)]
    fn track_write(&self, gpa: Gpa, written: Written) {
        // SAFETY: By the type invariants of `Node` and `Written`; the pointer is constant while the
        // node is registered.
        unsafe {
            let node = self.0.get();
            match (*node).track_write {
                Some(f) => f(gpa, written.new, written.bytes, node),
                // Nothing; but a branch of its own, so that the walk goes on behind the call.
                None => core::arch::asm!("", options(nomem, nostack, preserves_flags)),
            }
        }
    }

    /// Tells the notifier that a memslot is gone.
    #[inline(always)]
    fn track_remove_region(&self, gfn: Gfn, npages: u64) {
        // SAFETY: By the type invariant.
        unsafe {
            let node = self.0.get();
            match (*node).track_remove_region {
                Some(f) => f(gfn, npages as usize, node),
                // As in `track_write`.
                None => core::arch::asm!("", options(nomem, nostack, preserves_flags)),
            }
        }
    }
}

impl Client {
    /// Makes a view of a client.
    ///
    /// # Safety
    ///
    /// The type invariant holds as long as `'a`.
    pub(crate) unsafe fn from_ptr<'a>(ptr: NonNull<bindings::kvm_page_track_client>) -> &'a Self {
        // SAFETY: Transparent; the rest is the caller's promise.
        unsafe { ptr.cast().as_ref() }
    }

    /// The node in it.
    pub(crate) fn node(&self) -> &Node {
        // SAFETY: By the type invariant; the node is part of the client.
        unsafe { Node::from_ptr(NonNull::new_unchecked(addr_of_mut!((*self.0.get()).node))) }
    }

    /// Whether the client is in a list, of whatever VM: clients are zeroed before their first
    /// registration.
    pub(crate) fn is_linked(&self, mmu: &MmuWrite<'_>) -> bool {
        self.node().may_be_linked(mmu)
    }

    /// Whether the client can follow a moved memslot.
    pub(crate) fn follows_moves(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (*self.0.get()).track_move_region.is_some() }
    }

    /// Tells the client that a memslot moves.
    #[inline(never)] // scripts/check/indirect-calls.sh knows it by name
    pub(crate) fn track_move_region(&self, from: Gfn, to: Gfn, npages: u64) {
        // SAFETY: By the type invariant.
        unsafe {
            let client = self.0.get();
            if let Some(f) = (*client).track_move_region {
                f(from, to, npages as usize, client);
            }
        }
    }
}

/// The head of a list of nodes, ours or KVM's.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    head: *mut bindings::hlist_head,
    _list: PhantomData<&'a bindings::hlist_head>,
}

impl<'a> Head<'a> {
    /// Makes a view of a head.
    ///
    /// # Safety
    ///
    /// `head` is valid as long as `'a`, and all that is linked there is the first member of a
    /// registered node ([`Node`]).
    #[inline(always)]
    pub(crate) unsafe fn new(head: *mut bindings::hlist_head) -> Self {
        Self {
            head,
            _list: PhantomData,
        }
    }

    /// What is in the list now. A hint: nothing keeps it.
    #[inline(always)]
    pub(crate) fn first(self) -> First {
        // SAFETY: By the contract of `new`.
        First(unsafe { addr_of!((*self.head).first).read_volatile() })
    }

    /// Whether a node is in the list.
    ///
    /// # Safety
    ///
    /// The lock is that of the VM that the list belongs to.
    pub(crate) unsafe fn contains(self, node: &Node, _: &MmuWrite<'_>) -> bool {
        let mut found = false;
        // SAFETY: The token proves that `mmu_lock` is held for write: nobody is unregistered.
        let nodes = unsafe { Nodes::<Node>::new(self.first()) };
        nodes.walk(|n| {
            found = n.address() == node.address();
            !found
        });
        found
    }

    /// Adds a node.
    ///
    /// # Safety
    ///
    /// The node is in no list, and stays valid until [`Head::remove`] and then the end of the read
    /// sections in which the list is read. The lock is that of the VM that the list belongs to.
    #[inline(always)]
    pub(crate) unsafe fn insert(self, node: &Node, _: &MmuWrite<'_>) {
        // SAFETY: The node is valid and in no list, and writers are excluded; the first node is valid,
        // being in the list. Readers see a node whose callbacks, which the caller in C has set, and whose
        // link onwards are set: volatile stores keep their order, and come after what was stored before
        // the call; and stores keep theirs on x86, the only architecture of this module.
        unsafe {
            let (link, place) = (node.link(), addr_of_mut!((*self.head).first));
            let next = place.read_volatile();
            addr_of_mut!((*link).next).write_volatile(next);
            addr_of_mut!((*link).pprev).write_volatile(place);
            place.write_volatile(link);
            if !next.is_null() {
                addr_of_mut!((*next).pprev).write_volatile(addr_of_mut!((*link).next));
            }
        }
    }

    /// Takes a node out. False if it is not there.
    ///
    /// # Safety
    ///
    /// The lock is that of the VM that the list belongs to.
    pub(crate) unsafe fn remove(self, node: &Node, mmu: &MmuWrite<'_>) -> bool {
        // SAFETY: The caller's promise.
        if !unsafe { self.contains(node, mmu) } {
            return false;
        }
        // SAFETY: The node is in the list, and writers are excluded.
        unsafe { bindings::kpt_hlist_del_rcu(node.link()) };
        true
    }
}

/// The first node of a list, as it was when it was looked at.
#[derive(Clone, Copy)]
pub(crate) struct First(*mut bindings::hlist_node);

impl First {
    /// That of a list that is not there.
    pub(crate) const fn none() -> Self {
        Self(core::ptr::null_mut())
    }

    /// Whether there was none.
    #[inline(always)]
    pub(crate) fn is_none(self) -> bool {
        self.0.is_null()
    }
}

/// Nodes that may be looked at and called: none that was there is gone before `'a` ends.
///
/// # Invariants
///
/// What is linked is a `T`, and stays valid as long as `'a`.
pub(crate) struct Nodes<'a, T> {
    first: First,
    _nodes: PhantomData<&'a T>,
}

impl<T: Linked> Nodes<'_, T> {
    /// Nodes from `first` on.
    ///
    /// # Safety
    ///
    /// `first` is from a list of `T`s, and was read, as long as `'a` lasts, in a read section that
    /// whoever unregisters from the list waits for, or under its `mmu_lock` held for write.
    #[inline(always)]
    pub(crate) unsafe fn new(first: First) -> Self {
        // INVARIANT: The caller's promise. A node that leaves keeps its link onwards.
        Self {
            first,
            _nodes: PhantomData,
        }
    }

    /// Whether there is none.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Calls `f` for the nodes until it returns false.
    #[inline(always)]
    fn walk(&self, mut f: impl FnMut(&T) -> bool) {
        // What a link points to was initialised before it was linked, and is reached through the
        // link: the dependency orders the loads, as in rcu_dereference().
        let mut link = self.first.0;
        while let Some(ptr) = NonNull::new(link) {
            const _: () = assert!(core::mem::offset_of!(RawNode, node) == 0);
            // SAFETY: By the type invariant; what is linked is the first member of a node, and that
            // the first member of a `T` by the contract of `Linked`.
            if !f(unsafe { ptr.cast::<T>().as_ref() }) {
                return;
            }
            // SAFETY: As above.
            link = unsafe { addr_of!((*ptr.as_ptr()).next).read_volatile() };
        }
    }

    /// Calls `f` for every node.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&T)) {
        self.walk(|node| {
            f(node);
            true
        });
    }

    /// Tells every node that a memslot is gone.
    #[inline(always)]
    pub(crate) fn track_remove_region(&self, slot: &Memslot) {
        self.walk(|node| {
            node.node()
                .track_remove_region(slot.base_gfn(), slot.npages());
            true
        });
    }

    /// Tells every node of a guest write.
    #[inline(always)]
    pub(crate) fn track_write(&self, gpa: Gpa, written: Written) {
        self.walk(|node| {
            node.node().track_write(gpa, written);
            true
        });
    }
}

/// A read section of the lists of a VM. It may sleep.
pub(crate) struct ListSection<'k> {
    kvm: &'k Kvm,
    srcu: NonNull<bindings::srcu_struct>,
    idx: c_int,
    _not_send: NotThreadSafe,
}

impl<'k> ListSection<'k> {
    /// Enters it. Nothing if nobody can be registered with the VM.
    pub(crate) fn enter(kvm: &'k Kvm) -> Option<Self> {
        let srcu = provider::list_srcu(kvm)?;
        Some(Self {
            kvm,
            srcu,
            // SAFETY: Set up, and not cleaned up before the VM dies, or before the module goes and everybody
            // has left it (design, section 5, rule 2).
            idx: unsafe { srcu::read_lock(srcu.as_ptr()) },
            _not_send: NotThreadSafe,
        })
    }

    /// Waits for the sections of a VM that are open now. Sleeps; not to be called in one.
    pub(crate) fn synchronize(kvm: &Kvm) {
        if let Some(srcu) = provider::list_srcu(kvm) {
            // SAFETY: As in `enter`.
            unsafe { bindings::synchronize_srcu(srcu.as_ptr()) };
        }
    }

    /// Upstream's notifiers, to be called.
    pub(crate) fn notifiers(&self) -> Nodes<'_, Node> {
        // SAFETY: In the section, as long as `self`.
        unsafe { Notifiers::of(self.kvm).nodes() }
    }

    /// The clients, to be called.
    pub(crate) fn clients(&self) -> Nodes<'_, Client> {
        let first = vm::find(self.kvm).map_or(First::none(), vm::Vm::first_client);
        // SAFETY: Read in the section just now, which `notifier::unregister_client` waits for (design,
        // section 5, rule 3).
        unsafe { Nodes::new(first) }
    }
}

impl Drop for ListSection<'_> {
    fn drop(&mut self) {
        // SAFETY: `idx` is from the matching `read_lock`, in the same task: the type is not `Send`.
        unsafe { srcu::read_unlock(self.srcu.as_ptr(), self.idx) };
    }
}

/// What is linked into lists: [`Node`] itself, and what has one as its first member.
///
/// # Safety
///
/// `node` returns the first member.
pub(crate) unsafe trait Linked {
    /// The node in it.
    fn node(&self) -> &Node;
}

// SAFETY: It is the node.
unsafe impl Linked for Node {
    fn node(&self) -> &Node {
        self
    }
}

// SAFETY: As asserted.
unsafe impl Linked for Client {
    fn node(&self) -> &Node {
        const _: () = assert!(core::mem::offset_of!(bindings::kvm_page_track_client, node) == 0);
        self.node()
    }
}

/// A list of ours.
///
/// # Invariants
///
/// What is linked is a `T`. It does not move while something is: the first node points back to it.
pub(crate) struct NotifierList<T> {
    head: Opaque<bindings::hlist_head>,
    _nodes: PhantomData<fn(&T)>,
}

// SAFETY: Nodes may be called by any task; the head is written under `mmu_lock`.
unsafe impl<T> Send for NotifierList<T> {}
// SAFETY: As above, and read as a whole.
unsafe impl<T> Sync for NotifierList<T> {}

impl<T: Linked> NotifierList<T> {
    /// An empty list.
    pub(crate) const fn new() -> Self {
        Self {
            head: Opaque::new(bindings::hlist_head {
                first: core::ptr::null_mut(),
            }),
            _nodes: PhantomData,
        }
    }

    /// The head, for what [`Head`] can do.
    #[inline(always)]
    pub(crate) fn head(&self) -> Head<'_> {
        // SAFETY: Part of `self`; nothing else is linked (the contract of `NotifierList::insert`).
        unsafe { Head::new(self.head.get()) }
    }

    /// What is in the list now. A hint: nothing keeps it.
    #[inline(always)]
    pub(crate) fn first(&self) -> First {
        self.head().first()
    }

    /// Makes the list empty, whatever is in it.
    ///
    /// # Safety
    ///
    /// Nobody else uses the list.
    pub(crate) unsafe fn forget(&self) {
        // SAFETY: The caller's promise.
        unsafe { (*self.head.get()).first = core::ptr::null_mut() };
    }

    /// Adds a node.
    ///
    /// # Safety
    ///
    /// As [`Head::insert`], and the list does not move before the node is removed.
    #[inline(always)]
    pub(crate) unsafe fn insert(&self, node: &T, mmu: &MmuWrite<'_>) {
        // SAFETY: The caller's promise; the rest is the invariant of `Node`.
        unsafe { self.head().insert(node.node(), mmu) }
    }

    /// Takes a node out. False if it is not there.
    ///
    /// # Safety
    ///
    /// As [`Head::remove`].
    pub(crate) unsafe fn remove(&self, node: &T, mmu: &MmuWrite<'_>) -> bool {
        // SAFETY: The caller's promise.
        unsafe { self.head().remove(node.node(), mmu) }
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_notifier_list)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::with_blank_vm;
    use kernel::prelude::*;

    /// Two clients, all zeroes, that outlive the test's list.
    fn with_clients(f: impl FnOnce(&NotifierList<Client>, &Client, &Client, &MmuWrite<'_>)) {
        let list = NotifierList::new();
        let clients =
            KBox::<[bindings::kvm_page_track_client; 2]>::new_uninit(GFP_KERNEL | __GFP_ZERO)
                .unwrap();
        let first = NonNull::from(&*clients).cast::<bindings::kvm_page_track_client>();
        // SAFETY: The memory is zeroed, and outlives the call.
        let (a, b) = unsafe { (Client::from_ptr(first), Client::from_ptr(first.add(1))) };
        with_blank_vm(|_, mmu| f(&list, a, b, mmu));
    }

    fn addresses(list: &NotifierList<Client>) -> KVec<usize> {
        let mut all = KVec::new();
        // SAFETY: Nobody else knows these lists.
        let nodes = unsafe { Nodes::<Client>::new(list.first()) };
        nodes.for_each(|client| all.push(client.node().address(), GFP_KERNEL).unwrap());
        all
    }

    fn insert(list: &NotifierList<Client>, client: &Client, mmu: &MmuWrite<'_>) -> bool {
        if client.is_linked(mmu) {
            return false;
        }
        // SAFETY: It is in no list, and nobody else knows this one.
        unsafe { list.insert(client, mmu) };
        true
    }

    fn remove(list: &NotifierList<Client>, client: &Client, mmu: &MmuWrite<'_>) -> bool {
        // SAFETY: Nobody else knows these lists.
        unsafe { list.remove(client, mmu) }
    }

    #[test]
    fn a_new_list_is_empty() {
        with_clients(|list, a, _, mmu| {
            assert!(list.first().is_none());
            assert_eq!(addresses(list).len(), 0);
            assert!(!remove(list, a, mmu));
        });
    }

    #[test]
    fn who_leaves_is_passed_by_who_walks() {
        with_clients(|list, a, b, mmu| {
            assert!(insert(list, a, mmu));
            assert!(insert(list, b, mmu));
            // SAFETY: Nobody else knows these lists.
            let nodes = unsafe { Nodes::<Client>::new(list.first()) };
            let mut n = 0;
            nodes.for_each(|client| {
                assert!(remove(list, client, mmu));
                n += 1;
            });
            assert_eq!(n, 2);
            assert!(list.first().is_none());
        });
    }

    #[test]
    fn a_client_is_in_the_list_once() {
        with_clients(|list, a, b, mmu| {
            assert!(insert(list, a, mmu));
            assert!(!insert(list, a, mmu));
            assert!(insert(list, b, mmu));
            assert_eq!(addresses(list).len(), 2);
            assert!(remove(list, a, mmu));
            assert!(!remove(list, a, mmu));
            assert_eq!(addresses(list).len(), 1);
            assert_eq!(addresses(list)[0], b.node().address());
            assert!(insert(list, a, mmu));
            assert_eq!(addresses(list).len(), 2);
        });
    }

    #[test]
    fn a_client_is_in_one_list() {
        with_clients(|list, a, _, mmu| {
            let other = NotifierList::new();
            assert!(insert(list, a, mmu));
            assert!(!insert(&other, a, mmu));
            assert!(!remove(&other, a, mmu));
            assert!(remove(list, a, mmu));
            assert!(insert(&other, a, mmu));
            assert!(remove(&other, a, mmu));
        });
    }

    #[test]
    fn what_is_in_no_list_does_not_look_linked() {
        with_clients(|list, a, _, mmu| {
            assert!(!a.is_linked(mmu));
            assert!(insert(list, a, mmu));
            assert!(a.is_linked(mmu));
            // What is left there is LIST_POISON2.
            assert!(remove(list, a, mmu));
            assert!(!a.is_linked(mmu));
            for (byte, linked) in [(0x00, false), (0x5a, true), (0x6b, true), (0xff, true)] {
                // SAFETY: The client is in no list.
                unsafe { a.node().link().write_bytes(byte, 1) };
                assert_eq!(a.is_linked(mmu), linked);
            }
        });
    }

    #[test]
    fn without_a_callback_no_move() {
        with_clients(|_, a, _, _| assert!(!a.follows_moves()));
    }
}
