// SPDX-License-Identifier: GPL-2.0-only
/*
 * What kvm_page_track.ko does, shown to a person: a guest is tracked by KVM's
 * own tracker, the module takes over while it runs, delivers its writes to
 * another module, costs nothing on other pages, and hands the guest back.
 *
 * Runs in the virtual machine of "make demo" (scripts/vm/jobs/demo).  Everything
 * that is printed was measured or read in that run; what must hold is checked,
 * and the exit status says whether it did.
 */
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <fcntl.h>

#include "kpt_lib.h"

#define NPAGES		8
#define UNTRACKED	4	/* this page of the guest is never tracked */
#define BATCHES		7
#define BATCH		200
#define CYCLES		5

enum command {
	CMD_STORM,	/* write page 0 until told to stop */
	CMD_STORES,	/* one store of each kind to pages 1 to 3 */
	CMD_TIME,	/* time writes to box.page */
};

/* Shared with the guest, in its memory. */
static struct {
	u64 command;
	u64 page;
	u64 stop;
	u64 writes;	/* to page 0, by all storms */
	u64 ticks;	/* per write, best batch, times 16 */
} box;

static u8 source[3] = { 'k', 'v', 'm' };

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static int kmsg = -1;
static int client = -1;
static int stock_id = -1;	/* the notifier registered with KVM itself */
static u64 storm_events, storm_writes;	/* when the storm began */
static bool failed;

/* ---- the guest ---- */

static void guest_stores(void)
{
	u8 *p1 = (u8 *)KPT_GVA + 4096;
	void *from = source, *to = p1 + 0x100;
	u64 n = sizeof(source), v = 0x5152535455565758;

	asm volatile("movb $0x41, %0" : "=m"(*(u8 *)(p1 + 0x10)));
	asm volatile("movw %1, %0" : "=m"(*(u16 *)(p1 + 0x20)) : "r"((u16)0x4242));
	asm volatile("movl %1, %0" : "=m"(*(u32 *)(p1 + 0x30)) : "r"(0xcafef00d));
	asm volatile("movq %1, %0" : "=m"(*(u64 *)(p1 + 0x40)) : "r"(0x1122334455667788));
	asm volatile("lock addl $5, %0" : "+m"(*(u32 *)(p1 + 0x30)));
	asm volatile("xchgq %1, %0" : "+m"(*(u64 *)(p1 + 0x48)), "+r"(v));
	asm volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(n) : : "memory");
	/* four bytes on page 2, four on page 3 */
	asm volatile("movq %1, %0" : "=m"(*(u64 *)(p1 + 0x1ffc)) : "r"(0xdddddddd22222222));
}

static void guest_time(u64 page)
{
	u64 *p = (u64 *)(KPT_GVA + page * 4096);
	u64 best = -1, t;
	int i, j;

	for (i = 0; i < BATCHES; i++) {
		t = rdtsc();
		for (j = 0; j < BATCH; j++)
			WRITE_ONCE(p[8 + j], j);
		t = rdtsc() - t;
		if (t < best)
			best = t;
	}
	box.ticks = best * 16 / BATCH;
}

static void guest_main(void)
{
	u64 *p0 = (u64 *)KPT_GVA;

	for (;;) {
		switch (READ_ONCE(box.command)) {
		case CMD_STORM:
			while (!READ_ONCE(box.stop)) {
				WRITE_ONCE(*p0, box.writes + 1);
				WRITE_ONCE(box.writes, box.writes + 1);
			}
			break;
		case CMD_STORES:
			guest_stores();
			break;
		case CMD_TIME:
			guest_time(box.page);
			break;
		}
		GUEST_SYNC(READ_ONCE(box.command));
	}
}

/* ---- the host ---- */

#define shared(field) (*(typeof(box.field) *)addr_gva2hva(vm, (u64)&box.field))

static void head(const char *text)
{
	static int n;

	printf("\n%d. %s\n", ++n, text);
}

static void __attribute__((format(printf, 1, 2))) say(const char *fmt, ...)
{
	va_list ap;

	printf("   ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
}

static void __attribute__((format(printf, 2, 3))) check(bool good, const char *fmt, ...)
{
	va_list ap;

	printf("   [%s] ", good ? " ok " : "FAIL");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	if (!good)
		failed = true;
}

/* Prints what the module wrote to the kernel's log since the last call. */
static void show_log(void)
{
	char rec[8192], *text;
	ssize_t n;

	for (;;) {
		n = read(kmsg, rec, sizeof(rec) - 1);
		if (n < 0 && errno == EPIPE)
			continue;
		if (n <= 0)
			break;
		rec[n] = 0;
		text = strchr(rec, ';');
		if (!text || strncmp(text + 1, "kvm_page_track: ", 16))
			continue;
		text[strcspn(text, "\n")] = 0;
		if (strstr(text, "taint"))
			continue;
		say("dmesg: %s", text + 1);
	}
}

/* A table of debugfs, in columns. */
static void show_table(const char *path)
{
	char line[256], word[5][64];
	FILE *f = fopen(path, "r");
	int n;

	if (!f) {
		check(false, "%s: %s", path, strerror(errno));
		return;
	}
	while (fgets(line, sizeof(line), f)) {
		memset(word, 0, sizeof(word));
		n = sscanf(line, "%63s %63s %63s %63s %63s", word[0], word[1],
			   word[2], word[3], word[4]);
		if (n == 3)
			say("  %-36s %s %s", word[0], word[1], word[2]);
		else
			say("  %8s %8s %14s %10s %8s", word[0], word[1],
			    word[2], word[3], word[4]);
	}
	fclose(f);
}

static void command(u64 cmd, u64 page)
{
	shared(command) = cmd;
	shared(page) = page;
	kpt_run_to(vcpu, cmd);
}

static void *storm_thread(void *arg)
{
	command(CMD_STORM, 0);
	return NULL;
}

static pthread_t storm_start(void)
{
	pthread_t t;

	shared(stop) = 0;
	storm_writes = shared(writes);
	storm_events = kpt_counters(kpt_stock, stock_id).writes;
	TEST_ASSERT(!pthread_create(&t, NULL, storm_thread, NULL), "no thread");
	usleep(300000);
	return t;
}

static void storm_stop(pthread_t t)
{
	usleep(300000);
	shared(stop) = 1;
	pthread_join(t, NULL);
}

/* Every write of the last storm was an event of the notifier known to KVM. */
static void check_page0(void)
{
	u64 *p0 = addr_gpa2hva(vm, KPT_GPA);
	u64 events = kpt_counters(kpt_stock, stock_id).writes - storm_events;
	u64 writes = shared(writes) - storm_writes;

	check(events == writes && *p0 == shared(writes),
	      "%lu writes by the guest, %lu events: none lost, memory is right",
	      writes, events);
}

static double time_page(u64 page)
{
	int khz = __vcpu_ioctl(vcpu, KVM_GET_TSC_KHZ, NULL);

	TEST_ASSERT(khz > 0, "no TSC frequency");
	command(CMD_TIME, page);
	return shared(ticks) / 16.0 * 1e6 / khz;
}

static void show_events(void)
{
	static const char * const what[] = {
		"movb $0x41", "movw", "movl", "movq", "lock addl $5", "xchgq",
	};
	struct kpt_event ev[64];
	int i, j, n = kpt_events(client, ev, ARRAY_SIZE(ev));
	bool right = true;
	u64 v;

	say("  %-12s %3s  %-18s  %s", "gpa", "len", "value", "instruction");
	for (i = 0; i < n; i++) {
		const u8 *mem = addr_gpa2hva(vm, ev[i].gpa);
		const char *name = i < (int)ARRAY_SIZE(what) ? what[i] : "rep movsb";

		if (ev[i].gpa >= KPT_GPA + 0x2000)
			name = ev[i].gpa >= KPT_GPA + 0x3000 ?
			       "  and the other half" : "movq across two pages";
		v = 0;
		for (j = 0; j < (int)ev[i].len && j < 8; j++)
			v |= (u64)ev[i].data[j] << (8 * j);
		say("  0x%08lx   %3lu  0x%-16lx  %s", (u64)ev[i].gpa,
		    (u64)ev[i].len, v, name);
		/* 0x30 is written again by the lock addl */
		if (ev[i].gpa != KPT_GPA + 0x1030 || i == 4)
			right &= !memcmp(mem, ev[i].data, ev[i].len);
	}
	check(n >= 9 && right, "%d events; guest memory holds what they say", n);
}

int main(void)
{
	struct kpt_vm_stats st;
	double plain, c_cost, rust_cost, after, beside;
	struct utsname uts;
	pthread_t storm;
	int id, i, hooks, r;
	u64 before;

	setvbuf(stdout, NULL, _IOLBF, 0);
	uname(&uts);
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	lseek(kmsg, 0, SEEK_END);

	printf("\nkvm-page-track: KVM's page tracking in Rust, beside a stock kvm.ko\n");
	head("A stock kernel with a guest, tracked by KVM's own tracker (C)");
	say("Linux %s, unmodified; kvm-amd, %s paging", uts.release,
	    kpt_tdp() ? "nested" : "shadow");
	r = kpt_mod_load("kpt_stock");
	TEST_ASSERT(!r, "insmod kpt_stock.ko: %s", strerror(-r));
	kpt_stock = kpt_open("kpt_stock");
	vm = kpt_vm(&vcpu, guest_main, NPAGES, VM_MEM_SRC_ANONYMOUS);
	plain = time_page(0);
	stock_id = kpt_reg(kpt_stock, vm, KPT_NOTIFIER, 0);
	TEST_ASSERT(stock_id >= 0, "register with KVM: %s", strerror(-stock_id));
	KPT_OK(kpt_call(kpt_stock, KPT_OP_WRITE_ADD, vm, KPT_GFN));
	storm = storm_start();
	say("another module (kpt_stock.ko) tracks the guest page at 0x%llx with", KPT_GPA);
	say("upstream's API; the guest writes to it without pause");
	usleep(300000);
	say("%lu writes so far", shared(writes));

	head("insmod kvm_page_track.ko, while that guest runs");
	before = shared(writes);
	kpt_attach();
	show_log();
	usleep(300000);
	say("the guest went on writing: %lu writes more", shared(writes) - before);
	say("what was attached (debugfs kvm_page_track/hooks):");
	show_table("/sys/kernel/debug/kvm_page_track/hooks");
	r = kpt_debugfs_hooks(&hooks);
	check(r > 0 && r == hooks, "%d of %d functions attached", hooks, r);
	storm_stop(storm);
	check_page0();

	head("A client module tracks three more pages with the exported API");
	r = kpt_mod_load("kpt_client");
	TEST_ASSERT(!r, "insmod kpt_client.ko: %s", strerror(-r));
	client = kpt_open("kpt_client");
	id = kpt_reg(client, vm, KPT_CLIENT, KPT_REG_RECORD);
	TEST_ASSERT(id >= 0, "register: %s", strerror(-id));
	for (i = 1; i <= 3; i++)
		KPT_OK(kpt_call(client, KPT_OP_ADD_PAGE, vm, KPT_GFN + i));
	say("kvm_page_track_register_client(), then kvm_page_track_add_page()");
	say("for gfn 0x%llx to 0x%llx; now the guest writes to them:",
	    KPT_GFN + 1, KPT_GFN + 3);
	command(CMD_STORES, 0);
	show_events();

	head("What a write costs the guest (emulated CPU: compare the lines");
	printf("   with each other, not with real hardware)\n");
	KPT_OK(kpt_unreg(client, id));
	beside = time_page(UNTRACKED);
	KPT_OK(kpt_call(kpt_stock, KPT_OP_WRITE_ADD, vm, KPT_GFN + 5));
	rust_cost = time_page(5);
	KPT_OK(kpt_call(kpt_stock, KPT_OP_WRITE_REMOVE, vm, KPT_GFN + 5));
	after = time_page(5);
	say("  nothing of the guest tracked           %10.0f ns", plain);
	say("  page not tracked, its neighbours are   %10.0f ns", beside);
	say("  page tracked, this module              %10.0f ns", rust_cost);
	say("  the same page after its last remove    %10.0f ns", after);
	check(beside < rust_cost / 10 && after < rust_cost / 10,
	      "only tracked pages cost: any other is written at full speed");

	head("Totals (debugfs kvm_page_track/vms)");
	st = kpt_debugfs_vm(getpid());
	show_table("/sys/kernel/debug/kvm_page_track/vms");
	check(st.rows == 1 && st.pages == 4,
	      "%lu pages tracked for other modules, %lu writes told to clients",
	      st.pages, st.events);

	head("rmmod: the guest goes back to KVM's tracker, and runs on");
	for (i = 1; i <= 3; i++)
		KPT_OK(kpt_call(client, KPT_OP_REMOVE_PAGE, vm, KPT_GFN + i));
	close(client);
	KPT_OK(kpt_mod_unload("kpt_client"));
	storm = storm_start();
	kpt_detach();
	show_log();
	before = shared(writes);
	storm_stop(storm);
	check(!kpt_mod_loaded("kvm_page_track") && shared(writes) > before,
	      "the module is gone, the guest runs and writes");
	check_page0();
	KPT_OK(kpt_call(kpt_stock, KPT_OP_WRITE_ADD, vm, KPT_GFN + 5));
	c_cost = time_page(5);
	KPT_OK(kpt_call(kpt_stock, KPT_OP_WRITE_REMOVE, vm, KPT_GFN + 5));
	say("a write to a tracked page costs %.0f ns now, and %.0f ns with the module", c_cost,
	    rust_cost);
	say("(nearly all of it is the exit and KVM's emulation; here, in an emulator, chance");
	say("decides which is more: make bench counts instructions)");

	head("Back and forth, under the same guest");
	storm = storm_start();
	for (i = 0; i < CYCLES; i++) {
		kpt_attach();
		usleep(200000);
		kpt_detach();
		usleep(200000);
	}
	storm_stop(storm);
	say("attached and detached %d times while the guest wrote", CYCLES);
	check_page0();
	KPT_OK(kpt_call(kpt_stock, KPT_OP_WRITE_REMOVE, vm, KPT_GFN));
	KPT_OK(kpt_unreg(kpt_stock, stock_id));
	kvm_vm_free(vm);

	printf("\n%s\n", failed ? "Something did not hold, see FAIL above." :
				  "All of it held.");
	return failed;
}
