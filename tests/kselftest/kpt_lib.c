// SPDX-License-Identifier: GPL-2.0-only
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"
#include "kpt_lib.h"

#define MODULE		"kvm_page_track"
#define CLIENT		"kpt_client"
#define STOCK		"kpt_stock"
#define DEBUGFS		"/sys/kernel/debug"

int kpt_dev = -1;
int kpt_stock = -1;

static pid_t main_pid;
static bool had_module, had_client, had_stock;

u64 kpt_env(const char *name, u64 otherwise)
{
	const char *v = getenv(name);

	return v && *v ? strtoull(v, NULL, 0) : otherwise;
}

int kpt_put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC), r;

	if (fd < 0)
		return -errno;
	r = write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -errno;
	close(fd);
	return r;
}

/* ---- modules ---- */

static bool mod_line(const char *name, int *refs)
{
	char line[512], found[128];
	bool r = false;
	int n;
	FILE *f = fopen("/proc/modules", "r");

	TEST_ASSERT(f, "/proc/modules: %s", strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%127s %*u %d", found, &n) == 2 &&
		    !strcmp(found, name) && strstr(line, "Live")) {
			if (refs)
				*refs = n;
			r = true;
			break;
		}
	}
	fclose(f);
	return r;
}

bool kpt_mod_loaded(const char *name)
{
	return mod_line(name, NULL);
}

int kpt_mod_refs(const char *name)
{
	int refs = -1;

	mod_line(name, &refs);
	return refs;
}

int kpt_mod_load(const char *name)
{
	const char *dir = getenv("KPT_MODULES") ?: "/modules";
	char path[512];
	int fd, r;

	snprintf(path, sizeof(path), "%s/%s.ko", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = syscall(SYS_finit_module, fd, "", 0) ? -errno : 0;
	close(fd);
	return r;
}

int kpt_mod_unload(const char *name)
{
	return syscall(SYS_delete_module, name, O_NONBLOCK) ? -errno : 0;
}

/* A reader of /proc/modules and the like may hold a module for a moment. */
int kpt_mod_unload_retry(const char *name)
{
	int i, r = 0;

	for (i = 0; i < 20; i++) {
		r = kpt_mod_unload(name);
		if (r != -EAGAIN && r != -EWOULDBLOCK)
			break;
		usleep(100000);
	}
	return r;
}

static void writer_comes(void), writer_leaves(void);

u64 kpt_load_and_unload(u64 cycles)
{
	u64 i, k, refused = 0;
	int r;

	for (i = 0; i < cycles; i++) {
		kpt_attach();
		/* the storm may have to wait for the module */
		usleep(kpt_kvm_tracks() ? 20000 : 300000);
		writer_leaves();
		for (k = 0; k < 3000; k++) {
			r = kpt_mod_unload(MODULE);
			if (r != -EAGAIN && r != -EWOULDBLOCK)
				break;
			refused++;
			usleep(2000);
		}
		TEST_ASSERT(!r, "rmmod: %d", r);
		if (i % 20 == 19)
			printf("# %lu cycles\n", i + 1);
	}
	return refused;
}

void kpt_attach(void)
{
	KPT_OK(kpt_mod_load(MODULE));
	writer_comes();
}

void kpt_detach(void)
{
	writer_leaves();
	KPT_OK(kpt_mod_unload_retry(MODULE));
}

static void want(const char *name, bool wanted)
{
	int r;

	if (kpt_mod_loaded(name) == wanted)
		return;
	r = wanted ? kpt_mod_load(name) : kpt_mod_unload_retry(name);
	if (r)
		ksft_exit_fail_msg("%sload %s: %s\n", wanted ? "" : "un", name,
				   strerror(-r));
}

static void restore_modules(void)
{
	if (getpid() != main_pid)
		return;

	if (!had_client || !had_module)
		want(CLIENT, false);
	want(MODULE, had_module);
	if (had_client)
		want(CLIENT, true);
	want(STOCK, had_stock);
}

static void needed_modules(unsigned int need)
{
	want(STOCK, true);
	if (!(need & KPT_NEED_CLIENT))
		want(CLIENT, false);
	want(MODULE, !(need & KPT_WANT_C));
	if (need & KPT_NEED_CLIENT)
		want(CLIENT, true);
}

static void setup_modules(unsigned int need)
{
	main_pid = getpid();
	had_module = kpt_mod_loaded(MODULE);
	had_client = kpt_mod_loaded(CLIENT);
	had_stock = kpt_mod_loaded(STOCK);
	atexit(restore_modules);

	needed_modules(need);
}

/* ---- devices ---- */

int kpt_open(const char *name)
{
	char path[64], line[128], found[64];
	int fd, minor;
	FILE *f;

	snprintf(path, sizeof(path), "/dev/%s", name);
	if (access(path, F_OK)) {
		/* no devtmpfs */
		f = fopen("/proc/misc", "r");
		while (f && fgets(line, sizeof(line), f)) {
			if (sscanf(line, "%d %63s", &minor, found) == 2 &&
			    !strcmp(found, name))
				mknod(path, S_IFCHR | 0600, makedev(10, minor));
		}
		if (f)
			fclose(f);
	}
	fd = open(path, O_RDWR | O_CLOEXEC);
	TEST_ASSERT(fd >= 0, "open %s: %s", path, strerror(errno));
	return fd;
}

static int do_ioctl(int fd, unsigned long cmd, void *arg)
{
	return ioctl(fd, cmd, arg) < 0 ? -errno : 0;
}

int kpt_api(int dev, struct kpt_call *c)
{
	return do_ioctl(dev, KPT_CALL, c);
}

int kpt_call_n(int dev, u32 op, struct kvm_vm *vm, u64 gfn, u64 n, u64 *done)
{
	struct kpt_call c = {
		.op = op, .vm_fd = vm->fd, .gfn = gfn, .nr = n,
	};
	int r = kpt_api(dev, &c);

	if (done)
		*done = c.done;
	return r;
}

int kpt_call(int dev, u32 op, struct kvm_vm *vm, u64 gfn)
{
	return kpt_call_n(dev, op, vm, gfn, 1, NULL);
}

int kpt_reg_full(int dev, struct kpt_register *reg)
{
	int r = do_ioctl(dev, KPT_REGISTER, reg);

	return r ?: reg->id;
}

int kpt_reg(int dev, struct kvm_vm *vm, u32 type, u32 flags)
{
	struct kpt_register reg = {
		.vm_fd = vm->fd, .type = type, .flags = flags, .id = -1,
	};

	return kpt_reg_full(dev, &reg);
}

int kpt_unreg(int dev, int id)
{
	struct kpt_unregister u = { .id = id };

	return do_ioctl(dev, KPT_UNREGISTER, &u);
}

struct kpt_counters kpt_counters(int dev, int id)
{
	struct kpt_counters c = { .id = id };

	KPT_OK(do_ioctl(dev, KPT_COUNTERS, &c));
	KPT_EQ(c.late, 0);
	KPT_EQ(c.wrong, 0);
	return c;
}

int kpt_events(int dev, struct kpt_event *ev, int max)
{
	struct kpt_read rd = { .events = (u64)ev, .max = max };

	KPT_OK(do_ioctl(dev, KPT_READ, &rd));
	KPT_EQ(rd.dropped, 0);
	return rd.count;
}

struct kpt_inspect kpt_inspect(struct kvm_vm *vm, u32 as_id, u64 gfn)
{
	return kpt_inspect_fd(vm->fd, as_id, gfn);
}

struct kpt_inspect kpt_inspect_fd(int vm_fd, u32 as_id, u64 gfn)
{
	struct kpt_inspect in = { .vm_fd = vm_fd, .as_id = as_id, .gfn = gfn };

	KPT_OK(do_ioctl(kpt_stock, KPT_INSPECT, &in));
	return in;
}

u64 kpt_apic_bytes_fd(int vm_fd)
{
	struct kpt_inspect in;
	u64 bytes = 0;
	u32 as;

	for (as = 0; as < 2; as++) {
		in = kpt_inspect_fd(vm_fd, as, 0xfee00);
		if (in.has_array)
			bytes += in.npages * 2;
	}
	return bytes;
}

/* Of the probe that is there. */
static bool spins;

int kpt_probe(const char *symbol, u32 op)
{
	struct kpt_probe p = { .op = op };

	spins = op == KPT_PROBE_HOLD;
	if (symbol)
		snprintf(p.symbol, sizeof(p.symbol), "%s", symbol);
	return ioctl(kpt_stock, KPT_PROBE, &p) ? -errno : 0;
}

int kpt_probe_srcu(struct kvm_vm *vm, int pid, int nth)
{
	struct kpt_probe p = {
		.symbol = "__srcu_read_lock", .op = KPT_PROBE_SLEEP_SRCU,
		.vm_fd = vm->fd, .pid = pid, .nth = nth,
	};

	spins = false;
	return ioctl(kpt_stock, KPT_PROBE, &p) ? -errno : 0;
}

u64 kpt_probe_hits(void)
{
	struct kpt_probe p = { .op = KPT_PROBE_LOOK };

	TEST_ASSERT(!ioctl(kpt_stock, KPT_PROBE, &p), "KPT_PROBE: errno %d", errno);
	return p.hits;
}

void kpt_pages_fd(int vm_fd, u32 as_id, u64 gfn, u64 nr, struct kpt_page *pages)
{
	struct kpt_pages p = {
		.vm_fd = vm_fd, .as_id = as_id, .gfn = gfn, .nr = nr,
		.pages = (u64)pages,
	};

	KPT_OK(do_ioctl(kpt_stock, KPT_PAGES, &p));
}

/* ---- VMs ---- */

bool kpt_tdp(void)
{
	return kvm_is_tdp_enabled();
}

void kpt_probe_wait(void)
{
	struct kpt_probe p = { .op = KPT_PROBE_LOOK };
	int i;

	/* who spins has been seen, who sleeps says so */
	for (i = 0; i < 30000; i++) {
		KPT_OK(ioctl(kpt_stock, KPT_PROBE, &p));
		if (p.held || (p.hits && spins))
			break;
		usleep(1000);
	}
	TEST_ASSERT(i < 30000, "nobody is held");
}

/* A parameter of a module that may not be there. */
static bool is_on(const char *parameter)
{
	FILE *f = fopen(parameter, "r");
	bool on = !f || fgetc(f) == 'Y';

	if (f)
		fclose(f);
	return on;
}

bool kpt_tdp_mmu(void)
{
	return kpt_tdp() && is_on("/sys/module/kvm/parameters/tdp_mmu") &&
	       is_on("/sys/module/kvm_intel/parameters/eptad");
}

void kpt_vm_add_memory(struct kvm_vm *vm, u64 npages,
		       enum vm_mem_backing_src_type src)
{
	vm_userspace_mem_region_add(vm, src, KPT_GPA, KPT_SLOT, npages, 0);
	virt_map(vm, KPT_GVA, KPT_GPA, npages);
}

struct kvm_vm *kpt_vm(struct kvm_vcpu **vcpu, void *guest, u64 npages,
		      enum vm_mem_backing_src_type src)
{
	/* Room for the guest's own page tables that map the test memory. */
	struct kvm_vm *vm = __vm_create_with_one_vcpu(vcpu, npages, guest);

	kpt_vm_add_memory(vm, npages, src);
	return vm;
}

/*
 * The library's vCPUs begin with interrupts disabled.  With these, a guest that
 * only computes keeps an Intel processor of Bochs for ever, as if it did not leave
 * the guest for an interrupt of the host's.  Nothing interrupts our guests.
 */
static void enable_interrupts(struct kvm_vcpu *vcpu)
{
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	if (regs.rflags & X86_EFLAGS_IF)
		return;
	regs.rflags |= X86_EFLAGS_IF;
	vcpu_regs_set(vcpu, &regs);
}

bool kpt_run_sync(struct kvm_vcpu *vcpu, u64 *arg)
{
	struct ucall uc;

	if (host_cpu_is_intel)
		enable_interrupts(vcpu);
	for (;;) {
		vcpu_run(vcpu);
		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			/* GUEST_SYNC(stage) is ("hello", stage) */
			if (arg)
				*arg = uc.args[1];
			return true;
		case UCALL_DONE:
			return false;
		case UCALL_PRINTF:
			REPORT_GUEST_PRINTF(uc);
			continue;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			TEST_FAIL("the vCPU left with exit reason %u (%s)",
				  vcpu->run->exit_reason,
				  exit_reason_str(vcpu->run->exit_reason));
		}
	}
}

void kpt_run_to(struct kvm_vcpu *vcpu, u64 expected)
{
	u64 stage = -1;

	TEST_ASSERT(kpt_run_sync(vcpu, &stage),
		    "the guest is done, not at stage %lu", expected);
	KPT_EQ(stage, expected);
}

void kpt_run_done(struct kvm_vcpu *vcpu)
{
	u64 stage = -1;

	TEST_ASSERT(!kpt_run_sync(vcpu, &stage),
		    "the guest is at stage %lu, not done", stage);
}

static u64 page;

void kpt_write_guest(void)
{
	u64 i;

	for (i = 1;; i++) {
		*(volatile u64 *)(KPT_GVA + READ_ONCE(page) * 4096) = i;
		GUEST_SYNC(i);
	}
}

u64 kpt_write(struct kvm_vcpu *vcpu, u64 nr)
{
	return kpt_write_at(vcpu, nr, KPT_GPA + nr * 4096);
}

u64 kpt_write_at(struct kvm_vcpu *vcpu, u64 nr, u64 gpa)
{
	u64 v;

	page = nr;
	sync_global_to_guest(vcpu->vm, page);
	TEST_ASSERT(kpt_run_sync(vcpu, &v), "the guest ended");
	KPT_EQ(*(u64 *)addr_gpa2hva(vcpu->vm, gpa), v);
	return v;
}

void kpt_need_hugepages(int n)
{
	const char *path =
		"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
	int have = 0;
	FILE *f = fopen(path, "r+");

	if (!f)
		kpt_skip("no 2 MiB hugetlb pages in this kernel");
	if (fscanf(f, "%d", &have) == 1 && have < n) {
		rewind(f);
		fprintf(f, "%d\n", n);
		fflush(f);
		rewind(f);
		if (fscanf(f, "%d", &have) != 1)
			have = 0;
	}
	fclose(f);
	TEST_ASSERT(have >= n, "only %d of %d 2 MiB pages", have, n);
}

/* ---- the writer ---- */

static u64 writer_stop, writer_pace;

static void writer_guest(void)
{
	u64 i = 0, k, n;

	while (!READ_ONCE(writer_stop)) {
		i++;
		*(volatile u64 *)KPT_GVA = i;
		n = READ_ONCE(writer_pace);
		for (k = 0; k < n; k++)
			*(volatile u64 *)(KPT_GVA + 0x1000) = i;
	}
	GUEST_SYNC(i);
	GUEST_DONE();
}

/* expected: the next value, or 0 if it may be any; heard: before this visit */
static struct {
	int dev, id;
	u32 type;
	bool visits;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	pthread_t runner, drainer;
	pthread_mutex_t lock;
	bool draining;
	u64 made, expected, heard;
	struct kpt_event *ev;
} writer = { .id = -1, .lock = PTHREAD_MUTEX_INITIALIZER };

enum { WRITER_EVENTS = 2048 };

static void *writer_run(void *arg)
{
	TEST_ASSERT(kpt_run_sync(writer.vcpu, &writer.made), "the guest ended");
	kpt_run_done(writer.vcpu);
	return NULL;
}

/* Values 1, 2, 3... without gap or repetition. */
static void writer_drain(void)
{
	int i, n;
	u64 v;

	pthread_mutex_lock(&writer.lock);
	do {
		n = kpt_events(writer.dev, writer.ev, WRITER_EVENTS);
		for (i = 0; i < n; i++) {
			/* memslots are the test's business */
			if (writer.ev[i].type != KPT_EV_WRITE)
				continue;
			KPT_EQ(writer.ev[i].id, writer.id);
			KPT_EQ(writer.ev[i].gpa, KPT_GPA);
			KPT_EQ(writer.ev[i].len, 8);
			memcpy(&v, writer.ev[i].data, 8);
			if (writer.expected)
				KPT_EQ(v, writer.expected);
			writer.expected = v + 1;
		}
	} while (n == WRITER_EVENTS);
	pthread_mutex_unlock(&writer.lock);
}

static void *writer_drainer(void *arg)
{
	while (READ_ONCE(writer.draining)) {
		writer_drain();
		usleep(20000);
	}
	return NULL;
}

static void writer_registers(u64 expected)
{
	int id;

	writer.expected = expected;
	id = kpt_reg(writer.dev, writer.vm, writer.type, KPT_REG_RECORD);
	TEST_ASSERT(id >= 0, "register: %d", id);
	WRITE_ONCE(writer.id, id);
	KPT_OK(kpt_call(writer.dev, KPT_OP_ADD_PAGE, writer.vm, KPT_GFN));
}

static void writer_comes(void)
{
	if (writer.visits)
		writer_registers(0);
}

static void writer_leaves(void)
{
	if (!writer.visits || writer.id < 0)
		return;
	KPT_EQ(kpt_count(writer.vm, KPT_GFN), 1);
	KPT_OK(kpt_call(writer.dev, KPT_OP_REMOVE_PAGE, writer.vm, KPT_GFN));
	KPT_EQ(kpt_count(writer.vm, KPT_GFN), 0);
	writer_drain();
	writer.heard = kpt_writer_heard();
	KPT_OK(kpt_unreg(writer.dev, writer.id));
	writer_drain();
	WRITE_ONCE(writer.id, -1);
}

bool kpt_writer_stays(void)
{
	return !writer.visits;
}

struct kvm_vm *kpt_writer_start(int dev, u32 type, u64 pace)
{
	writer.dev = dev;
	writer.type = type;
	writer.visits = dev == kpt_stock && !kpt_kvm_tracks();
	writer.heard = 0;
	writer.ev = calloc(WRITER_EVENTS, sizeof(*writer.ev));
	writer.vm = kpt_vm(&writer.vcpu, writer_guest, 8, VM_MEM_SRC_ANONYMOUS);
	writer_stop = 0;
	writer_pace = pace;
	sync_global_to_guest(writer.vm, writer_stop);
	sync_global_to_guest(writer.vm, writer_pace);
	if (!writer.visits)
		writer_registers(1);
	writer.draining = true;
	pthread_create(&writer.drainer, NULL, writer_drainer, NULL);
	pthread_create(&writer.runner, NULL, writer_run, NULL);
	return writer.vm;
}

u64 kpt_writer_heard(void)
{
	int id = READ_ONCE(writer.id);

	return writer.heard + (id < 0 ? 0 : kpt_counters(writer.dev, id).writes);
}

u64 kpt_writer_stop(void)
{
	writer_stop = 1;
	sync_global_to_guest(writer.vm, writer_stop);
	pthread_join(writer.runner, NULL);
	WRITE_ONCE(writer.draining, false);
	pthread_join(writer.drainer, NULL);
	if (writer.visits) {
		writer_leaves();
		TEST_ASSERT(writer.heard, "no write has arrived");
	} else {
		writer_drain();
		KPT_EQ(writer.expected - 1, writer.made);
		KPT_EQ(kpt_writer_heard(), writer.made);
		KPT_EQ(kpt_count(writer.vm, KPT_GFN), 1);
		KPT_OK(kpt_call(writer.dev, KPT_OP_REMOVE_PAGE, writer.vm, KPT_GFN));
		KPT_OK(kpt_unreg(writer.dev, writer.id));
	}
	writer.visits = false;
	writer.id = -1;
	KPT_EQ(*(u64 *)addr_gpa2hva(writer.vm, KPT_GPA), writer.made);
	KPT_EQ(kpt_count(writer.vm, KPT_GFN), 0);
	kvm_vm_free(writer.vm);
	free(writer.ev);
	return writer.made;
}

/* ---- debugfs ---- */

static FILE *open_debugfs(const char *file)
{
	char path[256];
	FILE *f;

	snprintf(path, sizeof(path), DEBUGFS "/kvm_page_track/%s", file);
	f = fopen(path, "r");
	if (!f) {
		mount("debugfs", DEBUGFS, "debugfs", 0, NULL);
		f = fopen(path, "r");
	}
	TEST_ASSERT(f, "%s: %s", path, strerror(errno));
	return f;
}

struct kpt_vm_stats kpt_debugfs_vm(int pid)
{
	static const char * const names[] = {
		"pid", "pages", "counter_bytes", "notifiers", "events",
	};
	struct kpt_vm_stats st = {};
	int column[ARRAY_SIZE(names)];
	char line[512], *tok, *save;
	FILE *f = open_debugfs("vms");
	u64 v[32];
	int i, c;

	memset(column, -1, sizeof(column));
	TEST_ASSERT(fgets(line, sizeof(line), f), "vms has no header line");
	for (c = 0, tok = strtok_r(line, " \t\n", &save); tok;
	     tok = strtok_r(NULL, " \t\n", &save), c++) {
		for (i = 0; i < (int)ARRAY_SIZE(names); i++)
			if (!strcmp(tok, names[i]))
				column[i] = c;
	}
	for (i = 0; i < (int)ARRAY_SIZE(names); i++)
		TEST_ASSERT(column[i] >= 0, "vms has no column %s", names[i]);

	while (fgets(line, sizeof(line), f)) {
		memset(v, 0, sizeof(v));
		for (c = 0, tok = strtok_r(line, " \t\n", &save);
		     tok && c < (int)ARRAY_SIZE(v);
		     tok = strtok_r(NULL, " \t\n", &save), c++)
			v[c] = strtoull(tok, NULL, 0);
		if (v[column[0]] != (u64)pid)
			continue;
		st.rows++;
		st.pages += v[column[1]];
		st.counter_bytes += v[column[2]];
		st.notifiers += v[column[3]];
		st.events += v[column[4]];
	}
	fclose(f);
	return st;
}

int kpt_debugfs_hooks(int *attached)
{
	char line[512], fn[128], addr[64], state[64];
	FILE *f = open_debugfs("hooks");
	int n = 0;

	*attached = 0;
	while (fgets(line, sizeof(line), f)) {
		/* an optional header line has no address */
		if (sscanf(line, "%127s %63s %63s", fn, addr, state) != 3 ||
		    !strtoull(addr, NULL, 16))
			continue;
		n++;
		if (!strncmp(state, "attached", 8))
			++*attached;
	}
	fclose(f);
	return n;
}

/* ---- the runner ---- */

bool kpt_kvm_tracks(void)
{
	static int known = -1;

	if (known < 0) {
		int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
		int fd = ioctl(kvm, KVM_CREATE_VM, 0);

		TEST_ASSERT(fd >= 0, "KVM_CREATE_VM: %s", strerror(errno));
		known = kpt_inspect_fd(fd, 0, 0).external_tracking;
		close(fd);
		close(kvm);
	}
	return known;
}

void kpt_need_c_tracker(void)
{
	if (!kpt_kvm_tracks())
		kpt_skip("kvm.ko has no tracker for other modules to take over from");
}

void kpt_skip(const char *fmt, ...)
{
	va_list ap;

	printf("# SKIP: ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
	_exit(KSFT_SKIP);
}

static const char * const complaints[] = {
	"WARNING:", "BUG:", "BUG ", "Oops", "general protection", "Call Trace",
	"INFO: task", "rcu_preempt self-detected", "detected stalls",
	"suspicious RCU", "possible circular locking", "KASAN", "UBSAN",
	"refcount_t:", "use-after-free", "list_del corruption",
	"list_add corruption", "unable to handle", "ftrace failed",
	"keeps its shadow pages elsewhere",
};

bool kpt_is_complaint(const char *record)
{
	static bool in_race;
	size_t i;

	/*
	 * A data race between two functions of the kernel's own is not ours, unless
	 * something of ours is in a stack; nor is one of unknown origin outside KVM
	 * (scripts/vm/kernel-report.sh does the same).
	 */
	if (strstr(record, "BUG: KCSAN: data-race in ") &&
	    (strstr(record, " / ") || !strstr(record, "[kvm"))) {
		in_race = true;
		return strstr(record, "page_track");
	}
	if (strstr(record, "===================="))
		in_race = false;
	if (in_race && strstr(record, "page_track"))
		return true;
	for (i = 0; i < ARRAY_SIZE(complaints); i++)
		if (strstr(record, complaints[i]))
			return true;
	return false;
}

bool (*kpt_complaint)(const char *record) = kpt_is_complaint;

/* Did the kernel complain since the last call? */
static bool kernel_complained(int kmsg)
{
	bool found = false;
	char rec[8192];
	ssize_t n;

	while (kmsg >= 0) {
		n = read(kmsg, rec, sizeof(rec) - 1);
		if (n < 0 && errno == EPIPE)	/* overwritten: go on */
			continue;
		if (n <= 0)
			break;
		rec[n] = 0;
		if (kpt_complaint(rec)) {
			printf("# kernel: %s\n", strchr(rec, ';') ?: rec);
			found = true;
		}
	}
	return found;
}

static int run_one(const struct kpt_test *t, unsigned int need)
{
	unsigned int limit = (t->timeout ?: 60) * kpt_env("KPT_PATIENCE", 1);
	int status, i;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (!pid) {
		setpgid(0, 0);
		setvbuf(stdout, NULL, _IOLBF, 0);
		kpt_stock = kpt_open(STOCK);
		kpt_dev = need & KPT_NEED_CLIENT ? kpt_open(CLIENT) : kpt_stock;
		t->fn();
		fflush(NULL);
		_exit(KSFT_PASS);
	}
	if (pid < 0)
		return KSFT_FAIL;

	for (i = 0; i < (int)limit * 20; i++) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			goto ended;
		usleep(50000);
	}
	printf("# no end after %u s\n", limit);
	kill(-pid, SIGKILL);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return KSFT_FAIL;

ended:
	/* threads and children of the test go with it */
	kill(-pid, SIGKILL);
	if (WIFSIGNALED(status)) {
		printf("# killed by signal %d\n", WTERMSIG(status));
		return KSFT_FAIL;
	}
	return WEXITSTATUS(status) == KSFT_PASS ||
	       WEXITSTATUS(status) == KSFT_SKIP ? WEXITSTATUS(status) :
						  KSFT_FAIL;
}

int kpt_main(const struct kpt_test *tests, int n, unsigned int modules)
{
	const char *only = getenv("KPT_ONLY");
	struct timespec a, b;
	unsigned int need;
	int kmsg, i, r;
	double s;

	setvbuf(stdout, NULL, _IOLBF, 0);
	ksft_print_header();
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (kmsg >= 0)
		lseek(kmsg, 0, SEEK_END);
	setup_modules(modules);
	ksft_print_msg("nested paging: %s\n", kpt_tdp() ? "on" : "off");
	ksft_set_plan(n);

	for (i = 0; i < n; i++) {
		if (only && !strstr(tests[i].name, only)) {
			ksft_test_result_skip("%s (not asked for)\n",
					      tests[i].name);
			continue;
		}
		/* a test that failed may have left them otherwise */
		need = tests[i].modules ?: modules;
		needed_modules(need);
		clock_gettime(CLOCK_MONOTONIC, &a);
		r = run_one(&tests[i], need);
		clock_gettime(CLOCK_MONOTONIC, &b);
		s = b.tv_sec - a.tv_sec + (b.tv_nsec - a.tv_nsec) / 1e9;
		if (kernel_complained(kmsg))
			r = KSFT_FAIL;
		printf("# %s: %.1f s\n", tests[i].name, s);
		ksft_test_result_report(r, "%s\n", tests[i].name);
	}

	/* loads and unloads: their complaints count as well */
	restore_modules();
	main_pid = 0;
	if (kernel_complained(kmsg))
		ksft_exit_fail_msg("the kernel complained while modules were restored\n");
	ksft_finished();
}
