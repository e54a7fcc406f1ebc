// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every form of store arrives with its address, length and bytes, and guest
 * memory holds the value.
 *
 * Four pages: 0, 1 and 3 are tracked, 2 is not.  The guest does one store per
 * stage; the host knows what it writes and compares all of the memory and all
 * of the events.
 */
#include <string.h>

#include "kpt_lib.h"

#define NPAGES	4
#define SIZE	(NPAGES * 4096)

static const bool tracked[NPAGES] = { true, true, false, true };

struct effect {
	u32 off, len;
	u8 data[24];
};

enum how {
	EXACT,		/* one event per effect and page */
	COVER,		/* string instructions: any split, in order */
	REWRITE,	/* none, or the old value written once more */
};

struct form {
	const char *name;
	void (*guest)(u8 *p);
	enum how how;
	u32 nr;
	struct effect eff[3];
	/* a string instruction: bytes from str_off on are str[] */
	u32 str_off, str_len;
};

/* Bytes a string instruction stores; the guest's copy has the same contents. */
static u8 pattern[256] = { 1 };

#define AT(x) (*(p + (x)))
#define G(fn_name) static void fn_name(u8 *p)

G(mov8) { asm volatile("movb %1, %0" : "=m"(AT(0x10)) : "q"((u8)0xa1)); }
G(mov16) { asm volatile("movw %1, %0" : "=m"(AT(0x20)) : "r"((u16)0xb2b1)); }
G(mov32) { asm volatile("movl %1, %0" : "=m"(AT(0x30)) : "r"(0xc4c3c2c1)); }
G(mov64) { asm volatile("movq %1, %0" : "=m"(AT(0x40)) : "r"(0xd8d7d6d5d4d3d2d1)); }
G(mov64_odd) { asm volatile("movq %1, %0" : "=m"(AT(0x53)) : "r"(0x1817161514131211)); }
G(imm8) { asm volatile("movb $0x5a, %0" : "=m"(AT(0x60))); }
G(imm16) { asm volatile("movw $0x5b5c, %0" : "=m"(AT(0x62))); }
G(imm32) { asm volatile("movl $0x11223344, %0" : "=m"(AT(0x64))); }
G(imm64) { asm volatile("movq $-2, %0" : "=m"(AT(0x68))); }
G(movnti) { asm volatile("movnti %1, %0" : "=m"(AT(0x70)) : "r"(0x77665544)); }
G(setcc) { asm volatile("cmp %%eax, %%eax; setz %0" : "=m"(AT(0x78)) : : "cc"); }
G(fnstcw) { asm volatile("fninit; fnstcw %0" : "=m"(AT(0x7a))); }

static u64 sse_src[2] __aligned(16) = { 0x0706050403020100, 0x0f0e0d0c0b0a0908 };

#define SSE(name, insn, off)						\
G(name) { asm volatile("movdqu %1, %%xmm0; " insn " %%xmm0, %0"		\
		       : "=m"(AT(off)) : "m"(sse_src) : "xmm0"); }
SSE(sse_movups, "movups", 0x84)
SSE(sse_movaps, "movaps", 0xa0)
SSE(sse_movdqa, "movdqa", 0xb0)
SSE(sse_movdqu, "movdqu", 0xc1)
SSE(sse_movntdq, "movntdq", 0xe0)

/* on a tracked stack */
G(push64)
{
	asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; push %1; mov %%rbx, %%rsp"
		     : : "r"(p + 0x108), "r"(0x2827262524232221) : "rbx", "memory");
}

G(push_imm)
{
	asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; push $0x7b; mov %%rbx, %%rsp"
		     : : "r"(p + 0x118) : "rbx", "memory");
}

G(call_near)
{
	asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; call 1f; 1: mov %%rbx, %%rsp;"
		     "lea 1b(%%rip), %%rax; movq %%rax, %1"
		     : : "r"(p + 0x128), "m"(AT(0x2000)) : "rax", "rbx", "memory");
}

G(pop_mem)
{
	u64 v = 0x3837363534333231;

	asm volatile("push %1; popq %0" : "=m"(AT(0x130)) : "r"(v));
}

/* memory at 0x140 is 0 before */
G(xchg64)
{
	u64 v = 0x4847464544434241;

	asm volatile("xchg %1, %0" : "+m"(*(u64 *)(p + 0x140)), "+r"(v));
	GUEST_ASSERT_EQ(v, 0);
}

G(cmpxchg_lock)
{
	u64 old = 0x4847464544434241;

	asm volatile("lock cmpxchg %2, %0" : "+m"(*(u64 *)(p + 0x140)), "+a"(old)
		     : "r"(0x5857565554535251) : "cc");
	GUEST_ASSERT_EQ(old, 0x4847464544434241);
}

G(cmpxchg32)
{
	u32 old = 0x54535251;

	asm volatile("cmpxchg %2, %0" : "+m"(*(u32 *)(p + 0x140)), "+a"(old)
		     : "r"(0x64636261) : "cc");
	GUEST_ASSERT_EQ(old, 0x54535251);
}

G(cmpxchg_fails)
{
	u64 old = 0;

	asm volatile("lock cmpxchg %2, %0" : "+m"(*(u64 *)(p + 0x140)), "+a"(old)
		     : "r"(-1ul) : "cc");
	GUEST_ASSERT_EQ(old, 0x5857565564636261);
}

G(cmpxchg_fails_nolock)
{
	u64 old = 0;

	asm volatile("cmpxchg %2, %0" : "+m"(*(u64 *)(p + 0x140)), "+a"(old)
		     : "r"(-1ul) : "cc");
	GUEST_ASSERT_EQ(old, 0x5857565564636261);
}

G(cmpxchg8b)
{
	u32 lo = 0x64636261, hi = 0x58575655;

	asm volatile("lock cmpxchg8b %0"
		     : "+m"(*(u64 *)(p + 0x140)), "+a"(lo), "+d"(hi)
		     : "b"(0x11111111), "c"(0x22222222) : "cc");
	GUEST_ASSERT_EQ(lo, 0x64636261);
}

/* 0x150..: 0 before */
G(lock_add) { asm volatile("lock addl $5, %0" : "+m"(*(u32 *)(p + 0x150)) : : "cc"); }
G(add_nolock) { asm volatile("addl $7, %0" : "+m"(*(u32 *)(p + 0x150)) : : "cc"); }
G(inc) { asm volatile("lock incq %0" : "+m"(*(u64 *)(p + 0x158)) : : "cc"); }
G(or_imm) { asm volatile("orw $0x8001, %0" : "+m"(*(u16 *)(p + 0x160)) : : "cc"); }
G(bts) { asm volatile("lock btsl $9, %0" : "+m"(*(u32 *)(p + 0x164)) : : "cc"); }
G(neg) { asm volatile("negb %0" : "+m"(*(u8 *)(p + 0x163)) : : "cc"); }
G(not) { asm volatile("notl %0" : "+m"(*(u32 *)(p + 0x168)) : : "cc"); }

G(xadd)
{
	u32 v = 3;

	asm volatile("lock xaddl %1, %0" : "+m"(*(u32 *)(p + 0x150)), "+r"(v) : : "cc");
	GUEST_ASSERT_EQ(v, 12);
}

/* across page boundaries */
G(straddle_tt) { asm volatile("movq %1, %0" : "=m"(AT(0xffd)) : "r"(0x9897969594939291)); }
G(straddle_tt_16) { asm volatile("movw %1, %0" : "=m"(AT(0xfff)) : "r"((u16)0x0201)); }
G(straddle_tt_sse)
{
	asm volatile("movdqu %1, %%xmm0; movups %%xmm0, %0"
		     : "=m"(AT(0xff9)) : "m"(sse_src) : "xmm0");
}
/* the locked sum of bytes 5..8 of sse_src and of what is added */
G(straddle_tt_lock)
{
	asm volatile("lock addl $0x01010101, %0" : "+m"(*(u32 *)(p + 0xffe)) : : "cc");
}
G(straddle_tu) { asm volatile("movq %1, %0" : "=m"(AT(0x1ffb)) : "r"(0xa8a7a6a5a4a3a2a1)); }
G(straddle_ut) { asm volatile("movq %1, %0" : "=m"(AT(0x2ffe)) : "r"(0xb8b7b6b5b4b3b2b1)); }
G(straddle_tu_sse)
{
	asm volatile("movdqu %1, %%xmm0; movdqu %%xmm0, %0"
		     : "=m"(AT(0x1fff)) : "m"(sse_src) : "xmm0");
}
G(untracked) { asm volatile("movq %1, %0" : "=m"(AT(0x2100)) : "r"(0x1111111111111111)); }

/* string instructions */
static void rep_movsb(u8 *to, const u8 *from, u64 n)
{
	asm volatile("cld; rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

G(rep_stosb)
{
	void *d = p + 0x400;
	u64 n = 100;

	asm volatile("cld; rep stosb" : "+D"(d), "+c"(n) : "a"(0x77) : "memory");
	GUEST_ASSERT_EQ(n, 0);
	GUEST_ASSERT_EQ((u64)d, (u64)(p + 0x400 + 100));
}

G(rep_stosq)
{
	void *d = p + 0xfe0;
	u64 n = 8;

	asm volatile("cld; rep stosq" : "+D"(d), "+c"(n)
		     : "a"(0x7777777777777777) : "memory");
	GUEST_ASSERT_EQ(n, 0);
}

G(rep_movsb_in) { rep_movsb(p + 0x500, pattern, 61); }
G(rep_movsb_tt) { rep_movsb(p + 0xfe1, pattern, 64); }
/* pages 1 (tracked) and 2 (not) */
G(rep_movsb_tu) { rep_movsb(p + 0x1ff0, pattern, 32); }

G(rep_movsl)
{
	void *d = p + 0x600, *s = pattern;
	u64 n = 16;

	asm volatile("cld; rep movsl" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
	GUEST_ASSERT_EQ(n, 0);
}

G(stosb_one)
{
	void *d = p + 0x700;

	asm volatile("cld; stosb" : "+D"(d) : "a"(0x3c) : "memory");
	GUEST_ASSERT_EQ((u64)d, (u64)(p + 0x701));
}

#define S16 { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 }
#define ONE(f, o, l, ...) { #f, f, EXACT, 1, { { o, l, { __VA_ARGS__ } } } }
#define STRING(f, o, l) { #f, f, COVER, 0, {}, o, l }

static const struct form forms[] = {
	ONE(mov8, 0x10, 1, 0xa1),
	ONE(mov16, 0x20, 2, 0xb1, 0xb2),
	ONE(mov32, 0x30, 4, 0xc1, 0xc2, 0xc3, 0xc4),
	ONE(mov64, 0x40, 8, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8),
	ONE(mov64_odd, 0x53, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18),
	ONE(imm8, 0x60, 1, 0x5a),
	ONE(imm16, 0x62, 2, 0x5c, 0x5b),
	ONE(imm32, 0x64, 4, 0x44, 0x33, 0x22, 0x11),
	ONE(imm64, 0x68, 8, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
	ONE(movnti, 0x70, 4, 0x44, 0x55, 0x66, 0x77),
	ONE(setcc, 0x78, 1, 1),
	ONE(fnstcw, 0x7a, 2, 0x7f, 0x03),
	{ "sse_movups", sse_movups, EXACT, 1, { { 0x84, 16, S16 } } },
	{ "sse_movaps", sse_movaps, EXACT, 1, { { 0xa0, 16, S16 } } },
	{ "sse_movdqa", sse_movdqa, EXACT, 1, { { 0xb0, 16, S16 } } },
	{ "sse_movdqu", sse_movdqu, EXACT, 1, { { 0xc1, 16, S16 } } },
	{ "sse_movntdq", sse_movntdq, EXACT, 1, { { 0xe0, 16, S16 } } },
	ONE(push64, 0x100, 8, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28),
	ONE(push_imm, 0x110, 8, 0x7b, 0, 0, 0, 0, 0, 0, 0),
	ONE(pop_mem, 0x130, 8, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38),
	ONE(xchg64, 0x140, 8, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48),
	ONE(cmpxchg_lock, 0x140, 8, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58),
	ONE(cmpxchg32, 0x140, 4, 0x61, 0x62, 0x63, 0x64),
	{ "cmpxchg_fails", cmpxchg_fails, REWRITE, 1,
	  { { 0x140, 8, { 0x61, 0x62, 0x63, 0x64, 0x55, 0x56, 0x57, 0x58 } } } },
	{ "cmpxchg_fails_nolock", cmpxchg_fails_nolock, REWRITE, 1,
	  { { 0x140, 8, { 0x61, 0x62, 0x63, 0x64, 0x55, 0x56, 0x57, 0x58 } } } },
	ONE(cmpxchg8b, 0x140, 8, 0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22, 0x22),
	ONE(lock_add, 0x150, 4, 5, 0, 0, 0),
	ONE(add_nolock, 0x150, 4, 12, 0, 0, 0),
	ONE(xadd, 0x150, 4, 15, 0, 0, 0),
	ONE(inc, 0x158, 8, 1, 0, 0, 0, 0, 0, 0, 0),
	ONE(or_imm, 0x160, 2, 0x01, 0x80),
	ONE(bts, 0x164, 4, 0, 2, 0, 0),
	ONE(neg, 0x163, 1, 0),
	ONE(not, 0x168, 4, 0xff, 0xff, 0xff, 0xff),
	ONE(straddle_tt, 0xffd, 8, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98),
	ONE(straddle_tt_16, 0xfff, 2, 1, 2),
	{ "straddle_tt_sse", straddle_tt_sse, EXACT, 1, { { 0xff9, 16, S16 } } },
	ONE(straddle_tt_lock, 0xffe, 4, 6, 7, 8, 9),
	ONE(straddle_tu, 0x1ffb, 8, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8),
	ONE(straddle_ut, 0x2ffe, 8, 0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8),
	{ "straddle_tu_sse", straddle_tu_sse, EXACT, 1, { { 0x1fff, 16, S16 } } },
	ONE(untracked, 0x2100, 8, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11),
	STRING(rep_stosb, 0x400, 100),
	STRING(rep_stosq, 0xfe0, 64),
	STRING(rep_movsb_in, 0x500, 61),
	STRING(rep_movsb_tt, 0xfe1, 64),
	STRING(rep_movsb_tu, 0x1ff0, 32),
	STRING(rep_movsl, 0x600, 64),
	ONE(stosb_one, 0x700, 1, 0x3c),
	/* the return address: checked apart, see below */
	{ "call_near", call_near, EXACT, 0 },
};

static void guest_code(void)
{
	u32 i;

	for (i = 0; i < ARRAY_SIZE(forms); i++) {
		forms[i].guest((u8 *)KPT_GVA);
		GUEST_SYNC(i);
	}
	GUEST_DONE();
}

struct expected {
	u64 gpa;
	u32 len;
	u8 data[24];
};

/* One event per page, of tracked pages only. */
static int split(const struct effect *e, struct expected *out)
{
	u32 done = 0, n = 0, len, off;

	while (done < e->len) {
		off = e->off + done;
		len = min(e->len - done, 4096 - (off & 4095));
		if (tracked[off >> 12]) {
			out[n].gpa = KPT_GPA + off;
			out[n].len = len;
			memcpy(out[n].data, e->data + done, len);
			n++;
		}
		done += len;
	}
	return n;
}

/* The C tracker reports every emulated write; drop those of the page it may. */
static int filter(struct kpt_event *ev, int n)
{
	int i, k = 0;

	if (kpt_mod_loaded("kvm_page_track"))
		return n;
	for (i = 0; i < n; i++) {
		u64 page = (ev[i].gpa - KPT_GPA) >> 12;

		if (page < NPAGES && !tracked[page])
			continue;
		ev[k++] = ev[i];
	}
	return k;
}

static void check_string(const struct form *f, const u8 *model,
			 const struct kpt_event *ev, int n)
{
	u32 off = f->str_off, end = f->str_off + f->str_len;
	int i;

	for (i = 0; i < n; i++) {
		while (off < end && !tracked[off >> 12])
			off++;
		KPT_EQ(ev[i].gpa, KPT_GPA + off);
		TEST_ASSERT(ev[i].len && ev[i].len <= sizeof(ev[i].data) &&
			    off + ev[i].len <= end, "%s: event of %llu bytes",
			    f->name, ev[i].len);
		TEST_ASSERT(!memcmp(ev[i].data, model + off, ev[i].len),
			    "%s: wrong bytes at %#x", f->name, off);
		off += ev[i].len;
	}
	while (off < end && !tracked[off >> 12])
		off++;
	KPT_EQ(off, end);
}

static void check_exact(const struct form *f, const struct kpt_event *ev, int n)
{
	struct expected want[6];
	u32 i;
	int nr = 0, k;

	for (i = 0; i < f->nr; i++)
		nr += split(&f->eff[i], want + nr);
	if (f->how == REWRITE && !n)
		return;

	TEST_ASSERT(n == nr, "%s: %d events, not %d", f->name, n, nr);
	for (k = 0; k < n; k++) {
		TEST_ASSERT(ev[k].gpa == want[k].gpa && ev[k].len == want[k].len,
			    "%s: event %d is %llu bytes at %#llx, not %u at %#lx",
			    f->name, k, ev[k].len, ev[k].gpa, want[k].len,
			    want[k].gpa);
		TEST_ASSERT(!memcmp(ev[k].data, want[k].data, want[k].len),
			    "%s: event %d has other bytes", f->name, k);
	}
}

static void apply(const struct form *f, u8 *model)
{
	u32 i;

	for (i = 0; i < f->nr; i++)
		memcpy(model + f->eff[i].off, f->eff[i].data, f->eff[i].len);
	if (f->guest == rep_stosb || f->guest == rep_stosq)
		memset(model + f->str_off, 0x77, f->str_len);
	else if (f->how == COVER)
		memcpy(model + f->str_off, pattern, f->str_len);
}

static void run(int dev, u32 type)
{
	static struct kpt_event ev[1024];
	static u8 model[SIZE];
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 seq = 0, total = 0;
	u8 *mem, *ret;
	int i, n, k, id;

	for (i = 0; i < (int)sizeof(pattern); i++)
		pattern[i] = i * 7 + 3;

	vm = kpt_vm(&vcpu, guest_code, NPAGES, VM_MEM_SRC_ANONYMOUS);
	sync_global_to_guest(vm, pattern);
	mem = addr_gpa2hva(vm, KPT_GPA);
	id = kpt_reg(dev, vm, type, KPT_REG_RECORD);
	TEST_ASSERT(id >= 0, "register: %d", id);
	for (i = 0; i < NPAGES; i++)
		if (tracked[i])
			KPT_OK(kpt_call(dev, KPT_OP_ADD_PAGE, vm, KPT_GFN + i));

	for (i = 0; i < (int)ARRAY_SIZE(forms); i++) {
		const struct form *f = &forms[i];

		kpt_run_to(vcpu, i);
		n = kpt_events(dev, ev, ARRAY_SIZE(ev));
		for (k = 0; k < n; k++, total++) {
			KPT_EQ(ev[k].seq, seq++);
			KPT_EQ(ev[k].type, KPT_EV_WRITE);
			KPT_EQ(ev[k].id, id);
		}
		n = filter(ev, n);

		apply(f, model);
		if (f->guest == call_near) {
			/* the guest stored the address it returns to as well */
			ret = mem + 0x2000;
			KPT_EQ(n, 1);
			KPT_EQ(ev[0].gpa, KPT_GPA + 0x120);
			KPT_EQ(ev[0].len, 8);
			TEST_ASSERT(!memcmp(ev[0].data, ret, 8), "return address");
			memcpy(model + 0x2000, ret, 8);
			memcpy(model + 0x120, ret, 8);
		} else if (f->how == COVER) {
			check_string(f, model, ev, n);
		} else {
			check_exact(f, ev, n);
		}

		for (k = 0; k < SIZE; k++)
			TEST_ASSERT(mem[k] == model[k],
				    "%s: memory at %#x is %#x, not %#x",
				    f->name, k, mem[k], model[k]);
	}
	kpt_run_done(vcpu);

	KPT_EQ(kpt_counters(dev, id).writes, total);
	for (i = 0; i < NPAGES; i++)
		if (tracked[i])
			KPT_OK(kpt_call(dev, KPT_OP_REMOVE_PAGE, vm, KPT_GFN + i));
	KPT_OK(kpt_unreg(dev, id));
	kvm_vm_free(vm);
}

static void by_notifier(void) { run(kpt_dev, KPT_NOTIFIER); }
static void by_client(void) { run(kpt_dev, KPT_CLIENT); }
static void by_upstreams_calls(void) { run(kpt_stock, KPT_NOTIFIER); }

static const struct kpt_test tests[] = {
	{ "stores reach a notifier", by_notifier },
	{ "stores reach a client with its own registration", by_client },
	{ "stores reach a notifier that only knows kvm.ko", by_upstreams_calls },
};

static const struct kpt_test c_tests[] = {
	{ "stores reach a notifier of the C tracker", by_upstreams_calls },
};

int main(int argc, char **argv)
{
	/* "c": the same against the C tracker, to tell its faults from ours */
	if (argc > 1 && !strcmp(argv[1], "c"))
		return kpt_main(c_tests, ARRAY_SIZE(c_tests), KPT_WANT_C);
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_NEED_CLIENT);
}
