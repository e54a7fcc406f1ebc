// SPDX-License-Identifier: GPL-2.0-only

//! Lists of notifiers, walked under SRCU.
//!
//! Two lists have the same form: KVM's own, if it has one ([`crate::provider`]), which is shared with
//! C, and ours. Both are written under `mmu_lock` held for write.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`, `include/linux/rculist.h`.

use crate::bindings;
use crate::kernel_api::Srcu;
use crate::kvm::{Gfn, Gpa, MmuWrite};
use crate::provider::RawNode;
use core::marker::PhantomData;
use core::ptr::{addr_of, addr_of_mut, NonNull};
use kernel::prelude::*;
use kernel::sync::SetOnce;
use kernel::types::Opaque;

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
    gpa: Gpa,
    new: *const u8,
    bytes: i32,
}

impl Written {
    /// Describes a write.
    ///
    /// # Safety
    ///
    /// The type invariant holds until the value is dropped.
    pub(crate) unsafe fn new(gpa: Gpa, new: *const u8, bytes: i32) -> Self {
        Self { gpa, new, bytes }
    }

    /// Where it begins.
    pub(crate) fn gpa(&self) -> Gpa {
        self.gpa
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

    /// What the list of registered nodes knows it by.
    pub(crate) fn address(&self) -> usize {
        self.0.get() as usize
    }

    fn link(&self) -> *mut bindings::hlist_node {
        // SAFETY: By the type invariant; only the address is taken.
        unsafe { addr_of_mut!((*self.0.get()).node) }
    }

    /// Tells the notifier of a guest write.
    #[inline(always)]
    fn track_write(&self, written: &Written) {
        // SAFETY: By the type invariants of `Node` and `Written`; the pointer is constant while the
        // node is registered.
        unsafe {
            let node = self.0.get();
            if let Some(f) = (*node).track_write {
                f(written.gpa, written.new, written.bytes, node);
            }
        }
    }

    /// Tells the notifier that a memslot is gone.
    #[inline(never)] // scripts/check-indirect-calls.sh knows it by name
    pub(crate) fn track_remove_region(&self, gfn: Gfn, npages: u64) {
        // SAFETY: By the type invariant.
        unsafe {
            let node = self.0.get();
            if let Some(f) = (*node).track_remove_region {
                f(gfn, npages as usize, node);
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

    /// Whether the client is in a list, of whatever VM. Clients are zeroed before their first
    /// registration, so their link can be trusted.
    pub(crate) fn is_linked(&self, _: &MmuWrite<'_>) -> bool {
        // SAFETY: By the type invariant.
        unsafe { bindings::kpt_hlist_linked(self.node().link()) }
    }

    /// Whether the client can follow a moved memslot.
    pub(crate) fn follows_moves(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (*self.0.get()).track_move_region.is_some() }
    }

    /// Tells the client that a memslot moves.
    #[inline(never)] // scripts/check-indirect-calls.sh knows it by name
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

    /// Whether there is no node. A hint without `mmu_lock`.
    #[inline(always)]
    pub(crate) fn is_empty(self) -> bool {
        // SAFETY: By the contract of `new`.
        unsafe { addr_of!((*self.head).first).read_volatile().is_null() }
    }

    /// Calls `f` for the nodes until it returns false.
    ///
    /// # Safety
    ///
    /// The caller is in a read section of the list's SRCU, or holds `mmu_lock` for write.
    #[inline(always)]
    unsafe fn walk(self, mut f: impl FnMut(&Node) -> bool) {
        // What a link points to was initialised before it was linked, and is reached through the
        // link: the dependency orders the loads, as in rcu_dereference().
        // SAFETY: By the contract of `new`.
        let mut link = unsafe { addr_of!((*self.head).first).read_volatile() };
        while let Some(ptr) = NonNull::new(link) {
            const _: () = assert!(core::mem::offset_of!(RawNode, node) == 0);
            // SAFETY: What is linked is the first member of a registered node, and the caller keeps
            // nodes from being unregistered (SRCU: from being done so).
            if !f(unsafe { Node::from_ptr(ptr.cast()) }) {
                return;
            }
            // SAFETY: As above.
            link = unsafe { addr_of!((*ptr.as_ptr()).next).read_volatile() };
        }
    }

    /// Calls `f` for every node.
    ///
    /// # Safety
    ///
    /// The caller is in a read section of the list's SRCU.
    pub(crate) unsafe fn for_each(self, mut f: impl FnMut(&Node)) {
        // SAFETY: The caller's promise.
        unsafe {
            self.walk(|node| {
                f(node);
                true
            });
        }
    }

    /// Tells every notifier of a guest write.
    ///
    /// # Safety
    ///
    /// As [`Head::for_each`].
    #[inline(never)] // scripts/check-indirect-calls.sh knows it by name
    pub(crate) unsafe fn track_write(self, written: &Written) {
        // SAFETY: The caller's promise.
        unsafe {
            self.walk(|node| {
                node.track_write(written);
                true
            });
        }
    }

    fn contains(self, node: &Node, _: &MmuWrite<'_>) -> bool {
        let mut found = false;
        // SAFETY: The token proves that `mmu_lock` is held for write.
        unsafe {
            self.walk(|n| {
                found = n.address() == node.address();
                !found
            });
        }
        found
    }

    /// Adds a node. False if it is there already.
    ///
    /// # Safety
    ///
    /// The node is in no other list, and stays valid until [`Head::remove`] and a grace period of
    /// the list's SRCU. The lock is that of the VM that the list belongs to.
    pub(crate) unsafe fn insert(self, node: &Node, mmu: &MmuWrite<'_>) -> bool {
        if self.contains(node, mmu) {
            return false;
        }
        // SAFETY: The node is valid and in no list, and writers are excluded.
        unsafe { bindings::kpt_hlist_add_head_rcu(node.link(), self.head) };
        true
    }

    /// Takes a node out. False if it is not there.
    ///
    /// # Safety
    ///
    /// The lock is that of the VM that the list belongs to.
    pub(crate) unsafe fn remove(self, node: &Node, mmu: &MmuWrite<'_>) -> bool {
        if !self.contains(node, mmu) {
            return false;
        }
        // SAFETY: The node is in the list, and writers are excluded.
        unsafe { bindings::kpt_hlist_del_rcu(node.link()) };
        true
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

#[pin_data]
struct Inner {
    #[pin]
    head: Opaque<bindings::hlist_head>,
    #[pin]
    srcu: Srcu,
}

// SAFETY: The head is read under SRCU and written under `mmu_lock`.
unsafe impl Send for Inner {}
// SAFETY: As above.
unsafe impl Sync for Inner {}

impl Inner {
    fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // The first node's link points back to the head, hence the pin.
            head <- Opaque::ffi_init(|head: *mut bindings::hlist_head| {
                // SAFETY: The memory is given to be written.
                unsafe {
                    head.write(bindings::hlist_head {
                        first: core::ptr::null_mut(),
                    });
                }
            }),
            srcu <- Srcu::new(),
        })
    }

    fn head(&self) -> Head<'_> {
        // SAFETY: Part of `self`; `NotifierList::insert` links nothing else.
        unsafe { Head::new(self.head.get()) }
    }
}

/// A list of ours. It takes no memory to speak of until it is [opened](NotifierList::open).
///
/// # Invariants
///
/// What is linked is a `T`.
pub(crate) struct NotifierList<T> {
    inner: SetOnce<Pin<KBox<Inner>>>,
    _nodes: PhantomData<fn(&T)>,
}

impl<T: Linked> NotifierList<T> {
    /// An empty list.
    pub(crate) const fn new() -> Self {
        Self {
            inner: SetOnce::new(),
            _nodes: PhantomData,
        }
    }

    fn inner(&self) -> Option<&Inner> {
        self.inner.as_ref().map(|inner| &**inner)
    }

    /// Whether something can be inserted.
    pub(crate) fn is_open(&self) -> bool {
        self.inner.as_ref().is_some()
    }

    /// Makes what the first insertion needs. One caller at a time. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn open(&self) -> Result {
        if !self.is_open() {
            let inner = KBox::pin_init(Inner::new(), GFP_KERNEL_ACCOUNT)?;
            self.inner.populate(inner);
        }
        Ok(())
    }

    /// Whether the list is empty. A hint without `mmu_lock`.
    pub(crate) fn is_empty(&self) -> bool {
        self.inner().is_none_or(|inner| inner.head().is_empty())
    }

    /// Adds a node. False if it is there already, or the list is not open.
    ///
    /// # Safety
    ///
    /// The node is in no other list. The lock is that of the VM that this one belongs to.
    pub(crate) unsafe fn insert(&self, node: &T, mmu: &MmuWrite<'_>) -> bool {
        let Some(inner) = self.inner() else {
            return false;
        };
        // SAFETY: The caller's promise; the rest is the invariant of `Node`.
        unsafe { inner.head().insert(node.node(), mmu) }
    }

    /// Takes a node out. False if it is not there.
    ///
    /// # Safety
    ///
    /// The lock is that of the VM that the list belongs to.
    pub(crate) unsafe fn remove(&self, node: &T, mmu: &MmuWrite<'_>) -> bool {
        let Some(inner) = self.inner() else {
            return false;
        };
        // SAFETY: The caller's promise.
        unsafe { inner.head().remove(node.node(), mmu) }
    }

    /// Calls `f` for every node, in a read section that may sleep.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&T)) {
        let Some(inner) = self.inner() else { return };
        let _section = inner.srcu.read_lock();
        // SAFETY: In the read section just entered. What is linked is the first member of a `T` by
        // the type invariant and the contract of `Linked`.
        unsafe {
            inner
                .head()
                .for_each(|node| f(&*core::ptr::from_ref(node).cast::<T>()));
        }
    }

    /// Tells every notifier of a guest write, in a read section that may sleep.
    pub(crate) fn track_write(&self, written: &Written) {
        let Some(inner) = self.inner() else { return };
        let _section = inner.srcu.read_lock();
        // SAFETY: In the read section just entered.
        unsafe { inner.head().track_write(written) };
    }

    /// Waits for the read sections that are open. Sleeps.
    pub(crate) fn synchronize(&self) {
        if let Some(inner) = self.inner() {
            inner.srcu.synchronize();
        }
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_notifier_list)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::with_blank_vm;

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
        list.for_each(|client| all.push(client.node().address(), GFP_KERNEL).unwrap());
        all
    }

    fn insert(list: &NotifierList<Client>, client: &Client, mmu: &MmuWrite<'_>) -> bool {
        // SAFETY: The tests put a client into one list only.
        !client.is_linked(mmu) && unsafe { list.insert(client, mmu) }
    }

    fn remove(list: &NotifierList<Client>, client: &Client, mmu: &MmuWrite<'_>) -> bool {
        // SAFETY: Nobody else knows these lists.
        unsafe { list.remove(client, mmu) }
    }

    #[test]
    fn a_list_that_is_not_open_is_empty() {
        with_clients(|list, a, _, mmu| {
            assert!(list.is_empty());
            assert!(!insert(list, a, mmu));
            assert!(!remove(list, a, mmu));
            list.for_each(|_| unreachable!());
            list.synchronize();
        });
    }

    #[test]
    fn a_client_is_in_the_list_once() {
        with_clients(|list, a, b, mmu| {
            list.open().unwrap();
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
            list.open().unwrap();
            other.open().unwrap();
            assert!(insert(list, a, mmu));
            assert!(!insert(&other, a, mmu));
            assert!(!remove(&other, a, mmu));
            assert!(remove(list, a, mmu));
            assert!(insert(&other, a, mmu));
            assert!(remove(&other, a, mmu));
        });
    }

    #[test]
    fn without_a_callback_no_move() {
        with_clients(|_, a, _, _| assert!(!a.follows_moves()));
    }
}
