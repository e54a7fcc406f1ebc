// SPDX-License-Identifier: GPL-2.0-only
/*
 * Many things at a time, for a while: calls of the API against each other,
 * against memslots and VMs that come and go, and against insmod and rmmod.  A guest writes a tracked page all the while; every write must arrive once and
 * in order, and in the end all counts must be right.
 *
 * KPT_SECONDS: how long the storms without insmod last (2).
 * KPT_CYCLES: how often the others load and unload (1).
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kpt_lib.h"

#define THREADS		4
#define STORM_GFN	(KPT_GFN + 0x1000)
#define STORM_PAGES	96ULL

static volatile bool storming;
static struct kvm_vm *vm;

static bool over(time_t since)
{
	return time(NULL) - since >= (time_t)kpt_env("KPT_SECONDS", 2);
}

static u64 cycles(void)
{
	return kpt_env("KPT_CYCLES", 1);
}

static u64 rnd(u64 *state, u64 below)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (*state >> 33) % below;
}

static pthread_t start(void *(*fn)(void *), long arg)
{
	pthread_t t;

	TEST_ASSERT(!pthread_create(&t, NULL, fn, (void *)arg), "no thread");
	return t;
}

/* ---- memory of a VM that is not the library's ---- */

static u64 storm_memory;

static int set_region(int fd, u32 id, u64 gfn, u64 npages, u32 flags)
{
	struct kvm_userspace_memory_region mr = {
		.slot = id, .flags = flags, .guest_phys_addr = gfn << 12,
		.memory_size = npages << 12, .userspace_addr = storm_memory,
	};

	return ioctl(fd, KVM_SET_USER_MEMORY_REGION, &mr) ? -errno : 0;
}

static int call_fd(int dev, u32 op, int fd, u64 gfn, u64 nr)
{
	struct kpt_call c = { .op = op, .vm_fd = fd, .gfn = gfn, .nr = nr };

	return kpt_api(dev, &c);
}

/*
 * -EAGAIN: the module is on its way out, the next try reaches C; or nobody,
 * -ENOSYS, until the module is back.
 */
static int call_again(int dev, u32 op, int fd, u64 gfn)
{
	int r, i = 0;

	do {
		r = call_fd(dev, op, fd, gfn, 1);
	} while (r == -EAGAIN && i++ < 10000 && !usleep(1000));
	return r;
}

static int reg_fd(int dev, int fd, u32 type, int id)
{
	struct kpt_register reg = { .vm_fd = fd, .type = type, .id = id };
	int r, i = 0;

	do {
		r = kpt_reg_full(dev, &reg);
	} while ((r == -EAGAIN || (r == -ENOSYS && storming)) && i++ < 30000 &&
		 !usleep(1000));
	return r;
}

static int new_vm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int fd = ioctl(kvm, KVM_CREATE_VM, 0);

	TEST_ASSERT(fd >= 0, "KVM_CREATE_VM: %s", strerror(errno));
	close(kvm);
	return fd;
}

static void storm_setup(void)
{
	storm_memory = (u64)mmap(NULL, STORM_PAGES << 12, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(storm_memory != (u64)MAP_FAILED, "no memory");
	storming = true;
}

/* ---- registering from several threads ---- */

static u64 rounds[THREADS];

static void *register_storm(void *arg)
{
	long me = (long)arg;
	u32 type = me % 3;
	u64 gfn = KPT_GFN + 2 + me;
	int id = -1, r;

	while (storming) {
		r = reg_fd(kpt_dev, vm->fd, type, id);
		TEST_ASSERT(r >= 0, "register: %d", r);
		id = r;
		TEST_ASSERT(reg_fd(kpt_dev, vm->fd, type, id) == -EEXIST, "twice");
		KPT_OK(call_fd(kpt_dev, KPT_OP_ADD_PAGE, vm->fd, gfn, 3));
		KPT_OK(call_fd(kpt_dev, KPT_OP_REMOVE_PAGE, vm->fd, gfn, 3));
		KPT_ERR(call_fd(kpt_dev, KPT_OP_REMOVE_PAGE, vm->fd, gfn, 1), ENOENT);
		KPT_OK(kpt_unreg(kpt_dev, id));
		kpt_counters(kpt_dev, id);
		rounds[me]++;
	}
	return NULL;
}

static void registering(void)
{
	time_t since = time(NULL);
	pthread_t t[THREADS];
	u64 made, sum = 0;
	long i;

	storm_setup();
	vm = kpt_writer_start(kpt_dev, KPT_NOTIFIER, 50);
	for (i = 0; i < THREADS; i++)
		t[i] = start(register_storm, i);
	while (!over(since)) {
		usleep(100000);
		TEST_ASSERT(kpt_debugfs_vm(getpid()).notifiers <= THREADS + 1, "too many");
	}
	storming = false;
	for (i = 0; i < THREADS; i++) {
		pthread_join(t[i], NULL);
		KPT_EQ(kpt_count(vm, KPT_GFN + 2 + i), 0);
		TEST_ASSERT(rounds[i] > 0, "thread %ld did nothing", i);
		sum += rounds[i];
	}
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 1);
	KPT_EQ(kpt_debugfs_vm(getpid()).notifiers, 1);
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 2);
	made = kpt_writer_stop();
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 1);
	printf("# %lu registrations, %lu writes\n", sum, made);
}

/* ---- adds and removes against memslots ---- */

static u64 slot_changes, page_calls, page_refused;

static void *slot_storm(void *arg)
{
	u64 seed = 7 + (long)arg;
	bool there = false;
	u32 flags = 0;

	while (storming) {
		if (!there) {
			flags = rnd(&seed, 2) ? KVM_MEM_LOG_DIRTY_PAGES : 0;
			KPT_OK(set_region(vm->fd, 30, STORM_GFN, STORM_PAGES, flags));
			there = true;
		} else if (!rnd(&seed, 3)) {
			KPT_OK(set_region(vm->fd, 30, STORM_GFN, 0, 0));
			there = false;
		} else {
			flags ^= KVM_MEM_LOG_DIRTY_PAGES;
			KPT_OK(set_region(vm->fd, 30, STORM_GFN, STORM_PAGES, flags));
		}
		slot_changes++;
		/* and the one that the guest writes */
		if (!rnd(&seed, 4))
			vm_mem_region_set_flags(vm, KPT_SLOT, rnd(&seed, 2) ?
						KVM_MEM_LOG_DIRTY_PAGES : 0);
		usleep(rnd(&seed, 2000));
	}
	if (!there)
		KPT_OK(set_region(vm->fd, 30, STORM_GFN, STORM_PAGES, 0));
	vm_mem_region_set_flags(vm, KPT_SLOT, 0);
	return NULL;
}

static void *page_storm(void *arg)
{
	static const u32 ops[] = {
		KPT_OP_ADD_PAGE, KPT_OP_REMOVE_PAGE, KPT_OP_SLOT_ADD,
		KPT_OP_SLOT_REMOVE, KPT_OP_WRITE_ADD, KPT_OP_WRITE_REMOVE,
		KPT_OP_PREPARE, KPT_OP_ADD_PAGE, KPT_OP_ADD_RANGE,
		KPT_OP_REMOVE_RANGE,
	};
	u64 seed = 99 + (long)arg, n, gfn;
	u32 op;
	int r;

	while (storming) {
		op = ops[rnd(&seed, ARRAY_SIZE(ops))];
		n = rnd(&seed, STORM_PAGES);
		gfn = STORM_GFN + n;
		r = call_fd(kpt_dev, op, vm->fd, gfn,
			    op == KPT_OP_PREPARE || op == KPT_OP_ADD_RANGE ?
			    STORM_PAGES - n :
			    op == KPT_OP_REMOVE_RANGE ? 1 + n % 9 : 1);
		switch (r) {
		case 0:
			break;
		case -EINVAL:
		case -EAGAIN:
			__sync_fetch_and_add(&page_refused, 1);
			break;
		case -ENOENT:
			if (op == KPT_OP_REMOVE_PAGE || op == KPT_OP_SLOT_REMOVE ||
			    op == KPT_OP_WRITE_REMOVE ||
			    op == KPT_OP_REMOVE_RANGE)
				break;
			TEST_FAIL("op %u: %d", op, r);
		case -ENOMEM:
			if (op == KPT_OP_SLOT_ADD)
				break;
			/* fallthrough */
		default:
			TEST_FAIL("op %u: %d", op, r);
		}
		__sync_fetch_and_add(&page_calls, 1);
		if (!rnd(&seed, 40))
			usleep(500);
	}
	return NULL;
}

static void memslots(void)
{
	struct kpt_page *pages = calloc(STORM_PAGES, sizeof(*pages));
	time_t since = time(NULL);
	u64 made, i, k, tracked = 0, sum = 0;
	pthread_t t[THREADS];

	storm_setup();
	vm = kpt_writer_start(kpt_dev, KPT_CLIENT, 50);
	t[0] = start(slot_storm, 0);
	for (i = 1; i < THREADS; i++)
		t[i] = start(page_storm, i);
	while (!over(since))
		usleep(100000);
	storming = false;
	for (i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);

	/* what is left is what can be removed, and no more */
	kpt_pages_fd(vm->fd, 0, STORM_GFN, STORM_PAGES, pages);
	for (i = 0; i < STORM_PAGES; i++) {
		KPT_EQ(pages[i].flags & KPT_PAGE_SLOT, KPT_PAGE_SLOT);
		sum += pages[i].count;
		tracked += !!pages[i].count;
	}
	KPT_EQ(kpt_debugfs_vm(getpid()).pages, tracked + 1);
	/* 1: KVM allows no large page where a memslot begins or ends in one */
	KPT_EQ(pages[0].lpage_2m, 1 + sum);
	for (i = 0; i < STORM_PAGES; i++) {
		for (k = pages[i].count; k; k--)
			KPT_OK(kpt_remove(vm, STORM_GFN + i));
		KPT_REFUSED(vm, STORM_GFN + i, kpt_remove(vm, STORM_GFN + i), ENOENT);
	}
	KPT_EQ(kpt_inspect(vm, 0, STORM_GFN).slot_sum, 0);
	KPT_EQ(kpt_inspect(vm, 0, STORM_GFN).lpage_2m, 1);
	KPT_EQ(kpt_debugfs_vm(getpid()).pages, 1);
	made = kpt_writer_stop();
	printf("# %lu calls, %lu refused, %lu changes of memslots, %lu writes, %lu counts left\n",
	       page_calls, page_refused, slot_changes, made, sum);
	TEST_ASSERT(page_calls > 100 && slot_changes > 3, "no storm");
}

/* ---- VMs that come and go ---- */

static u64 vms_made;

/* dev: the client with the module, or kvm.ko's own exports with either tracker. */
static void *vm_storm(void *arg)
{
	long me = (long)arg;
	int dev = kpt_dev, fd, id = -1, r, i;
	u64 seed = 1234 + me;
	u32 type = dev == kpt_stock ? KPT_NOTIFIER : me % 3;
	bool reg;

	while (storming) {
		fd = new_vm();
		/* C's adds need C's registration to have been there */
		reg = dev == kpt_stock || rnd(&seed, 4);
		if (reg) {
			r = reg_fd(dev, fd, type, id);
			if (r == -ENOSYS && !storming) {
				close(fd);
				break;
			}
			TEST_ASSERT(r >= 0, "register: %d", r);
			id = r;
		}
		KPT_OK(set_region(fd, 1, STORM_GFN, STORM_PAGES, 0));
		for (i = rnd(&seed, 20); i >= 0; i--)
			KPT_OK(call_again(dev, KPT_OP_ADD_PAGE, fd, STORM_GFN + i));
		KPT_EQ(kpt_inspect_fd(fd, 0, STORM_GFN).count, 1);
		if (rnd(&seed, 2))
			KPT_OK(call_again(dev, KPT_OP_REMOVE_PAGE, fd, STORM_GFN));
		if (rnd(&seed, 2))
			KPT_OK(set_region(fd, 1, STORM_GFN, 0, 0));
		/* the VM dies with its fd or with its notifier */
		if (rnd(&seed, 2)) {
			close(fd);
			fd = -1;
		}
		if (reg) {
			KPT_OK(kpt_unreg(dev, id));
			kpt_counters(dev, id);
		}
		if (fd >= 0)
			close(fd);
		__sync_fetch_and_add(&vms_made, 1);
		if (dev == kpt_stock)
			usleep(10000);
	}
	return NULL;
}

static void many_vms(void)
{
	time_t since = time(NULL);
	pthread_t t[3];
	u64 made;
	long i;

	storm_setup();
	vm = kpt_writer_start(kpt_dev, KPT_CLIENT_MOVE, 50);
	for (i = 0; i < 3; i++)
		t[i] = start(vm_storm, i);
	while (!over(since)) {
		kpt_debugfs_vm(getpid());
		usleep(10000);
	}
	storming = false;
	for (i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	KPT_EQ(kpt_debugfs_vm(getpid()).rows, 1);
	KPT_EQ(kpt_debugfs_vm(getpid()).pages, 1);
	KPT_EQ(kpt_debugfs_vm(getpid()).notifiers, 1);
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 2);
	made = kpt_writer_stop();
	KPT_EQ(kpt_debugfs_vm(getpid()).rows, 0);
	printf("# %lu VMs, %lu writes\n", vms_made, made);
	TEST_ASSERT(vms_made > 1, "no storm");
}

/* ---- insmod and rmmod against all of that ---- */

static u64 refused_unloads, churns;

/* A notifier and a page of one's own, again and again. */
static void *churn(void *arg)
{
	u64 gfn = KPT_GFN + 2 + (long)arg;
	int id = -1, r, i;

	while (storming) {
		r = reg_fd(kpt_stock, vm->fd, KPT_NOTIFIER, id);
		if (r == -ENOSYS && !storming)
			break;
		TEST_ASSERT(r >= 0, "register: %d", r);
		id = r;
		for (i = 0; i < 10; i++) {
			KPT_OK(call_again(kpt_stock, KPT_OP_WRITE_ADD, vm->fd, gfn));
			KPT_OK(call_again(kpt_stock, KPT_OP_WRITE_REMOVE, vm->fd, gfn));
		}
		KPT_OK(kpt_unreg(kpt_stock, id));
		kpt_counters(kpt_stock, id);
		__sync_fetch_and_add(&churns, 1);
		usleep(20000);
	}
	return NULL;
}

/* Memslots whose pages nobody tracks, and the flags of the one that is. */
static void *quiet_slot_storm(void *arg)
{
	u64 n;

	for (n = 0; storming; n++) {
		KPT_OK(set_region(vm->fd, 30, STORM_GFN, STORM_PAGES, 0));
		KPT_EQ(kpt_inspect(vm, 0, STORM_GFN).slot_sum, 0);
		vm_mem_region_set_flags(vm, KPT_SLOT, n & 1 ? 0 :
					KVM_MEM_LOG_DIRTY_PAGES);
		KPT_OK(set_region(vm->fd, 30, STORM_GFN, 0, 0));
		slot_changes += 3;
		usleep(5000);
	}
	return NULL;
}

static void unload_against(void *(*fn)(void *), int threads, const char *what)
{
	pthread_t t[THREADS];
	u64 made;
	long i;

	storm_setup();
	vm = kpt_writer_start(kpt_stock, KPT_NOTIFIER, 500);
	for (i = 0; i < threads; i++)
		t[i] = start(fn, i);
	refused_unloads = kpt_load_and_unload(cycles());
	/* a slow storm takes longer */
	for (i = 0; i < 100 && churns + slot_changes + vms_made <= cycles(); i++)
		refused_unloads += kpt_load_and_unload(1);
	storming = false;
	for (i = 0; i < threads; i++) {
		pthread_join(t[i], NULL);
		KPT_EQ(kpt_count(vm, KPT_GFN + 2 + i), 0);
	}
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, kpt_writer_stays());
	made = kpt_writer_stop();
	printf("# %lu cycles against %s: %lu unloads refused, %lu writes, %lu registrations, %lu changes of memslots, %lu VMs\n",
	       cycles(), what, refused_unloads, made, churns, slot_changes, vms_made);
	TEST_ASSERT(churns + slot_changes + vms_made > cycles(), "no storm");
}

static void unload_against_calls(void)
{
	unload_against(churn, 2, "calls");
}

static void unload_against_memslots(void)
{
	unload_against(quiet_slot_storm, 1, "memslots");
}

static void unload_against_vms(void)
{
	unload_against(vm_storm, 1, "VMs");
}

static const struct kpt_test tests[] = {
	{ "register and unregister from several threads", registering,
	  .modules = KPT_NEED_CLIENT },
	{ "adds and removes against memslots", memslots,
	  .modules = KPT_NEED_CLIENT },
	{ "VMs that come and go", many_vms, .modules = KPT_NEED_CLIENT },
	{ "unload against calls", unload_against_calls },
	{ "unload against memslots", unload_against_memslots },
	{ "unload against VMs", unload_against_vms },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_WANT_C);
}
