// SPDX-License-Identifier: GPL-2.0-only
/*
 * Adding and removing pages while memslots change under the caller: flags-only
 * changes, moves, deletion.  No count is lost, no write of a tracked page goes
 * unheard.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kpt_lib.h"

#define SLOTS		48
#define SLOT_PAGES	4
#define SLOT_GPA(i)	(KPT_GPA + (i) * 0x100000ULL)
#define SLOT_GVA(i)	(KPT_GVA + (i) * 0x10000ULL)

static u64 stop;

/* Writes 1, 2, 3... to the first page of all the memslots in turn. */
static void guest_code(void)
{
	u64 i, k;

	for (i = 1; !READ_ONCE(stop); i++)
		for (k = 0; k < SLOTS; k++)
			*(volatile u64 *)SLOT_GVA(k) = i;
	GUEST_DONE();
}

static struct kvm_vcpu *vcpu;
static struct kvm_vm *vm;

static void *run(void *arg)
{
	kpt_run_done(vcpu);
	return NULL;
}

static volatile int toggled_slot;
static volatile bool toggling;
static volatile u64 toggles;

static void *toggle(void *arg)
{
	while (toggling) {
		vm_mem_region_set_flags(vm, KPT_SLOT + toggled_slot,
					toggles++ & 1 ? 0 : KVM_MEM_LOG_DIRTY_PAGES);
	}
	return NULL;
}

struct heard {
	u64 value;
	u32 slot;
};

/* Not static: static memory of this program is the guest's as well. */
static struct kpt_event *ev;
static struct heard *heard;
static int nr_heard;

enum { MAX_EV = 2048, MAX_HEARD = 200000 };

static void drain(void)
{
	int i, n;

	do {
		n = kpt_events(kpt_dev, ev, MAX_EV);
		for (i = 0; i < n; i++) {
			TEST_ASSERT(nr_heard < MAX_HEARD, "too many");
			KPT_EQ(ev[i].len, 8);
			KPT_EQ((ev[i].gpa - KPT_GPA) & 0xfffff, 0);
			heard[nr_heard].slot = (ev[i].gpa - KPT_GPA) / 0x100000;
			memcpy(&heard[nr_heard].value, ev[i].data, 8);
			nr_heard++;
		}
	} while (n == MAX_EV);
}

/*
 * The first add in a memslot gives it its counters, while its flags change all
 * the time and a vCPU, with an older copy of the memslot in hand, writes.
 */
static void first_add_under_flag_changes(void)
{
	static u64 from[SLOTS], to[SLOTS];
	pthread_t runner, toggler;
	volatile u64 *mem;
	/* longer on slow kernels */
	u64 inside = 0, v, pause = kpt_env("KPT_SECONDS", 2) * 500;
	int i, k, id;

	vm = __vm_create_with_one_vcpu(&vcpu, 64, guest_code);
	for (i = 0; i < SLOTS; i++) {
		vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, SLOT_GPA(i),
					    KPT_SLOT + i, SLOT_PAGES, 0);
		virt_map(vm, SLOT_GVA(i), SLOT_GPA(i), SLOT_PAGES);
	}
	ev = calloc(MAX_EV, sizeof(*ev));
	heard = calloc(MAX_HEARD, sizeof(*heard));
	id = kpt_reg(kpt_dev, vm, KPT_CLIENT, KPT_REG_RECORD);
	TEST_ASSERT(id >= 0, "register: %d", id);
	pthread_create(&runner, NULL, run, NULL);
	toggling = true;
	pthread_create(&toggler, NULL, toggle, NULL);

	for (i = 0; i < SLOTS; i++) {
		toggled_slot = i;
		usleep(3 * pause);
		mem = addr_gpa2hva(vm, SLOT_GPA(i));
		KPT_OK(kpt_add(vm, SLOT_GPA(i) >> 12));
		from[i] = *mem;
		usleep(12 * pause);
		/* on a slow computer the guest may hardly have been there */
		for (k = 0; k < 5000 && *mem < from[i] + 3; k++)
			usleep(1000);
		v = *mem;
		to[i] = v > from[i] ? v - 1 : v;
		KPT_OK(kpt_remove(vm, SLOT_GPA(i) >> 12));
		drain();
	}
	toggling = false;
	pthread_join(toggler, NULL);
	stop = 1;
	sync_global_to_guest(vm, stop);
	pthread_join(runner, NULL);
	drain();

	for (i = 0; i < SLOTS; i++) {
		u64 want = from[i] + 1;

		for (k = 0; k < nr_heard; k++) {
			if (heard[k].slot != (u32)i || heard[k].value <= from[i] ||
			    heard[k].value > to[i])
				continue;
			TEST_ASSERT(heard[k].value == want,
				    "memslot %d: %lu after %lu", i,
				    heard[k].value, want - 1);
			want++;
			inside++;
		}
		TEST_ASSERT(want == to[i] + 1, "memslot %d (%lu, %lu]: %lu is missing",
			    i, from[i], to[i], want);
		KPT_EQ(kpt_inspect(vm, 0, SLOT_GPA(i) >> 12).slot_sum, 0);
	}
	printf("# %lu writes surely made while tracked, %lu flag changes\n",
	       inside, toggles);
	TEST_ASSERT(inside > SLOTS && toggles > SLOTS, "nothing was tested");
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

/*
 * With interrupts enabled, KVM would halt the vCPU until the page is there, and
 * not wait in the fault with its memslot.
 */
static void guest_writes_once(void)
{
	u64 i;

	for (i = 0; i < SLOTS; i++) {
		asm volatile("cli");
		*(volatile u64 *)SLOT_GVA(i) = 0x700 + i;
		GUEST_SYNC(i);
	}
}

static void *run_to_sync(void *arg)
{
	kpt_run_to(vcpu, (u64)arg);
	return NULL;
}

static volatile bool changed;

static void *change_flags(void *arg)
{
	vm_mem_region_set_flags(vm, KPT_SLOT + (u64)arg, KVM_MEM_LOG_DIRTY_PAGES);
	changed = true;
	return NULL;
}

/*
 * The same race, held open: the vCPU has looked its memslot up and waits for
 * the host's page (userfaultfd), the flags change and give the memslot a new
 * copy, the page is added there.  The vCPU goes on with its old copy, which has
 * no counters, and still must not map the page writable.
 */
static void add_while_a_fault_waits(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC), id;
	struct uffdio_register area = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	static const u8 page[4096] __aligned(4096);
	struct uffdio_copy copy = { .src = (u64)page, .len = 4096 };
	pthread_t runner, changer;
	struct kpt_event one[4];
	struct uffd_msg msg;
	struct pollfd pfd;
	u64 *mem, i, v, k;

	if (uffd < 0)
		kpt_skip("no userfaultfd");
	KPT_OK(ioctl(uffd, UFFDIO_API, &api));
	vm = __vm_create_with_one_vcpu(&vcpu, 64, guest_writes_once);
	id = kpt_reg(kpt_dev, vm, KPT_CLIENT, KPT_REG_RECORD);
	TEST_ASSERT(id >= 0, "register: %d", id);
	for (i = 0; i < 4; i++) {
		vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, SLOT_GPA(i),
					    KPT_SLOT + i, SLOT_PAGES, 0);
		virt_map(vm, SLOT_GVA(i), SLOT_GPA(i), SLOT_PAGES);
		mem = addr_gpa2hva(vm, SLOT_GPA(i));
		area.range.start = (u64)mem;
		area.range.len = SLOT_PAGES * 4096;
		KPT_OK(ioctl(uffd, UFFDIO_REGISTER, &area));

		pthread_create(&runner, NULL, run_to_sync, (void *)i);
		pfd = (struct pollfd) { .fd = uffd, .events = POLLIN };
		KPT_EQ(poll(&pfd, 1, 10000), 1);
		KPT_EQ(read(uffd, &msg, sizeof(msg)), sizeof(msg));
		KPT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
		KPT_EQ(msg.arg.pagefault.address & ~0xfffULL, (u64)mem);

		/* waits for the vCPU, but has published the new copy by then */
		changed = false;
		pthread_create(&changer, NULL, change_flags, (void *)i);
		for (k = 0; k < 1000; k++) {
			if (kpt_inspect(vm, 0, SLOT_GPA(i) >> 12).slot_flags)
				break;
			usleep(1000);
		}
		KPT_EQ(kpt_inspect(vm, 0, SLOT_GPA(i) >> 12).slot_flags,
		       KVM_MEM_LOG_DIRTY_PAGES);
		TEST_ASSERT(!changed, "the change did not wait: no race");
		KPT_OK(kpt_add(vm, SLOT_GPA(i) >> 12));
		KPT_EQ(kpt_count(vm, SLOT_GPA(i) >> 12), 1);
		usleep(100000);
		TEST_ASSERT(!changed, "the change did not wait: no race");

		/* not the shared zero page: breaking that up would restart the fault */
		copy.dst = (u64)mem;
		KPT_OK(ioctl(uffd, UFFDIO_COPY, &copy));
		pthread_join(runner, NULL);
		pthread_join(changer, NULL);
		KPT_EQ(*mem, 0x700 + i);
		KPT_EQ(kpt_events(kpt_dev, one, 4), 1);
		KPT_EQ(one[0].gpa, SLOT_GPA(i));
		memcpy(&v, one[0].data, 8);
		KPT_EQ(v, 0x700 + i);
		KPT_OK(kpt_remove(vm, SLOT_GPA(i) >> 12));
	}
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
	close(uffd);
}

static volatile bool busy;
static long net[2], ok, refused, again;

/* Adds to and removes from both places; @net is what must be left. */
static void *add_and_remove(void *arg)
{
	long n = 0, me = (long)arg;
	int i, r;

	for (i = 0; busy; i++) {
		u64 gfn = (KPT_GPA >> 12) + 1 + (i & 1 ? 0x100 : 0);

		r = kpt_call(kpt_dev, n > 20 || (i % 5 == 4 && n) ?
				      KPT_OP_REMOVE_PAGE : KPT_OP_ADD_PAGE, vm, gfn);
		if (!r) {
			n += n > 20 || (i % 5 == 4 && n) ? -1 : 1;
			__sync_fetch_and_add(&ok, 1);
		} else if (r == -EAGAIN) {
			__sync_fetch_and_add(&again, 1);
		} else if (r == -EINVAL) {
			__sync_fetch_and_add(&refused, 1);
		} else {
			TEST_FAIL("add or remove: %d", r);
		}
	}
	net[me] = n;
	return NULL;
}

static void counts_under_moves(void)
{
	struct userspace_mem_region *region;
	pthread_t t[2];
	u64 gpa;
	long i;
	int id;

	vm = kpt_vm(&vcpu, guest_code, SLOT_PAGES, VM_MEM_SRC_ANONYMOUS);
	region = memslot2region(vm, KPT_SLOT);
	id = kpt_reg(kpt_dev, vm, KPT_CLIENT_MOVE, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	busy = true;
	for (i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, add_and_remove, (void *)i);
	for (i = 1; i <= 300; i++) {
		gpa = KPT_GPA + (i & 1 ? 0x100000 : 0);
		vm_set_user_memory_region(vm, KPT_SLOT, 0, gpa,
					  region->region.memory_size,
					  region->host_mem);
		usleep(500);
	}
	busy = false;
	for (i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	printf("# %ld calls done, %ld at the wrong place, %ld during a move\n", ok,
	       refused, again);
	TEST_ASSERT(ok > 100 && refused > 10, "nothing was tested");
	KPT_EQ(kpt_counters(kpt_dev, id).moves, 300);
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), net[0] + net[1]);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, net[0] + net[1]);
	for (i = net[0] + net[1]; i > 0; i--)
		KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	KPT_REFUSED(vm, KPT_GFN + 1, kpt_remove(vm, KPT_GFN + 1), ENOENT);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static volatile u64 calls;

static void *add_only(void *arg)
{
	int r;

	while (busy) {
		r = kpt_add(vm, KPT_GFN + 1);
		TEST_ASSERT(!r || r == -EAGAIN || r == -EINVAL, "add: %d", r);
		calls++;
		r = kpt_remove(vm, KPT_GFN + 1);
		TEST_ASSERT(!r || r == -EAGAIN || r == -EINVAL || r == -ENOENT,
			    "remove: %d", r);
		r = kpt_call_n(kpt_dev, KPT_OP_PREPARE, vm, KPT_GFN, SLOT_PAGES,
			       NULL);
		TEST_ASSERT(!r || r == -EAGAIN || r == -EINVAL, "prepare: %d", r);
	}
	return NULL;
}

/* A memslot that comes and goes: what is counted goes with it, all of it. */
static void counts_under_deletion(void)
{
	struct userspace_mem_region *region;
	struct kpt_inspect in;
	pthread_t t[2];
	int i, id;

	vm = kpt_vm(&vcpu, guest_code, SLOT_PAGES, VM_MEM_SRC_ANONYMOUS);
	region = memslot2region(vm, KPT_SLOT);
	id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	busy = true;
	for (i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, add_only, NULL);
	for (i = 0; i < 200; i++) {
		vm_set_user_memory_region(vm, KPT_SLOT, 0, KPT_GPA, 0, NULL);
		vm_set_user_memory_region(vm, KPT_SLOT, 0, KPT_GPA,
					  region->region.memory_size,
					  region->host_mem);
		usleep(300);
	}
	busy = false;
	for (i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	TEST_ASSERT(calls > 200, "nothing was tested");
	KPT_EQ(kpt_counters(kpt_dev, id).removes, 200);

	/* at most one add of each thread was overtaken; ours balance with KVM's */
	in = kpt_inspect(vm, 0, KPT_GFN + 1);
	TEST_ASSERT(in.count <= 2, "%u counts are left", in.count);
	KPT_EQ(in.slot_sum, in.count);
	KPT_EQ(in.lpage_2m, kpt_inspect(vm, 0, KPT_GFN).lpage_2m);
	for (i = in.count; i > 0; i--)
		KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	KPT_REFUSED(vm, KPT_GFN + 1, kpt_remove(vm, KPT_GFN + 1), ENOENT);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void *moves(void *arg)
{
	pin_self_to_cpu(1);
	vm_mem_region_move(vm, KPT_SLOT, KPT_GPA + 0x100000);
	return NULL;
}

static void *deletes(void *arg)
{
	pin_self_to_cpu(1);
	vm_mem_region_delete(vm, KPT_SLOT);
	return NULL;
}

/*
 * KVM has made the memslot INVALID and is about to move it, or to delete it: it is
 * held there.  What is counted now would not go with it.
 */
static void on_its_way(void *(*goes)(void *))
{
	struct kvm_vcpu *unused;
	pthread_t t;
	int id;

	vm = kpt_vm(&unused, guest_code, SLOT_PAGES, VM_MEM_SRC_ANONYMOUS);
	id = kpt_reg(kpt_dev, vm, KPT_CLIENT_MOVE, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	KPT_OK(kpt_add(vm, KPT_GFN + 1));

	KPT_OK(kpt_probe("kvm_arch_prepare_memory_region", KPT_PROBE_HOLD));
	pthread_create(&t, NULL, goes, NULL);
	kpt_probe_wait();
	KPT_REFUSED(vm, KPT_GFN + 1, kpt_add(vm, KPT_GFN + 1), EAGAIN);
	KPT_REFUSED(vm, KPT_GFN + 1, kpt_remove(vm, KPT_GFN + 1), EAGAIN);
	KPT_REFUSED(vm, KPT_GFN, kpt_call_n(kpt_dev, KPT_OP_ADD_RANGE, vm, KPT_GFN,
					    SLOT_PAGES, NULL), EAGAIN);
	KPT_REFUSED(vm, KPT_GFN, kpt_call_n(kpt_dev, KPT_OP_REMOVE_RANGE, vm,
					    KPT_GFN + 1, 1, NULL), EAGAIN);
	KPT_OK(kpt_probe(NULL, KPT_PROBE_OFF));
	pthread_join(t, NULL);
	if (goes == moves) {
		KPT_EQ(kpt_count(vm, KPT_GFN + 0x101), 1);
		KPT_OK(kpt_remove(vm, KPT_GFN + 0x101));
	}
	KPT_REFUSED(vm, KPT_GFN + 1, kpt_remove(vm, KPT_GFN + 1), EINVAL);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void memslots_on_their_way(void)
{
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		kpt_skip("somebody has to be held on another processor");
	pin_self_to_cpu(0);
	on_its_way(moves);
	on_its_way(deletes);
}

static const struct kpt_test tests[] = {
	{ "the first add in a memslot whose flags change",
	  first_add_under_flag_changes },
	{ "a page is added while a fault waits with an old memslot",
	  add_while_a_fault_waits },
	{ "counts while the memslot moves", counts_under_moves },
	{ "counts while the memslot is deleted and made", counts_under_deletion },
	{ "a memslot that is being moved or deleted: -EAGAIN",
	  memslots_on_their_way },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_NEED_CLIENT);
}
