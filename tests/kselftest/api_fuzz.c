// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random calls of everything a client and user space can ask for, against a
 * model that predicts every return value, count and event.
 *
 *	api_fuzz [OPERATIONS [SEED]]	(or KPT_FUZZ_OPS, KPT_FUZZ_SEED)
 *
 * The same seed makes the same calls.  VM 0 has a vCPU that writes; the others
 * have none, and come and go.  After each call the page it was about is compared
 * with KVM's own structures, every FULL calls all pages of all VMs.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kpt_lib.h"

#define WIN		KPT_GFN		/* pages the memslots may lie in */
#define WIN_PAGES	1040ULL		/* two times 2 MiB and a little */
#define VMS		4
#define SLOTS		4		/* of each address space */
#define SLOT_ID		20
#define NODES		6		/* of each type */
#define FULL		512
#define HISTORY		24

struct page {
	u32 count;
};

struct slot {
	bool used, array;
	u64 base, npages, hva;
	u32 flags;
};

struct vm {
	bool alive, open;	/* open: we have its fd */
	bool known;		/* the module has an entry for it */
	int fd;
	u32 own_refs;		/* the fd's, and the vCPU's */
	u64 events;
	struct slot slot[2][SLOTS];
	struct page page[WIN_PAGES];
};

struct node {
	int id;			/* -1: not made yet */
	int vm;			/* -1: not registered */
	u32 type;
	u64 writes, bytes, removes, moves;
};

struct record {
	char text[160];
};

/* Not static: static memory of this program is the guest's as well. */
static struct vm *vms;
static struct node *nodes;
static struct record *history;
static struct kpt_event *got;
static struct kpt_page *pages;

static u64 rng, seed, nr_ops, op_nr, nr_as, generations;
static u8 *memory;
static struct kvm_vm *vm0;
static struct kvm_vcpu *vcpu0;
static bool tdp, external;
static u64 refused, succeeded, nr_events, guest_writes;

#define NR_NODES	(3 * NODES)

/* ---- randomness and history ---- */

static u64 rnd(u64 below)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (rng * 0x2545f4914f6cdd1dULL >> 11) % below;
}

static bool one_in(u64 n)
{
	return !rnd(n);
}

__attribute__((format(printf, 1, 2)))
static void note(const char *fmt, ...)
{
	struct record *r = &history[op_nr % HISTORY];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(r->text, sizeof(r->text), fmt, ap);
	va_end(ap);
}

__attribute__((format(printf, 1, 2), noreturn))
static void wrong(const char *fmt, ...)
{
	va_list ap;
	u64 i;

	for (i = op_nr > HISTORY ? op_nr - HISTORY + 1 : 0; i <= op_nr; i++)
		printf("# %lu: %s\n", i, history[i % HISTORY].text);
	printf("# operation %lu: ", op_nr);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n# again: KPT_FUZZ_SEED=%lu KPT_FUZZ_OPS=%lu\n", seed, op_nr + 1);
	fflush(stdout);
	_exit(KSFT_FAIL);
}

static void same(const char *what, long long is, long long should)
{
	if (is != should)
		wrong("%s is %lld, not %lld", what, is, should);
}

static void result(int is, int should)
{
	same("the return value", is, should);
	if (should)
		refused++;
	else
		succeeded++;
}

/* ---- the model ---- */

static bool in_window(u64 gfn)
{
	return gfn >= WIN && gfn - WIN < WIN_PAGES;
}

static struct slot *slot_of(struct vm *vm, u32 as, u64 gfn)
{
	struct slot *s;
	int i;

	for (i = 0; i < SLOTS; i++) {
		s = &vm->slot[as][i];
		if (s->used && gfn >= s->base && gfn - s->base < s->npages)
			return s;
	}
	return NULL;
}

static struct page *page_of(struct vm *vm, u64 gfn)
{
	return &vm->page[gfn - WIN];
}

static int model_add(struct vm *vm, u64 gfn)
{
	struct slot *s = slot_of(vm, 0, gfn);
	struct page *p;

	if (!s)
		return -EINVAL;
	p = page_of(vm, gfn);
	s->array = true;
	vm->known = true;
	if (p->count == KPT_MAX_USERS)
		return -EOVERFLOW;
	p->count++;
	return 0;
}

static int model_slot_add(struct vm *vm, struct slot *s, u64 gfn)
{
	struct page *p;

	if (!s || gfn < s->base || gfn - s->base >= s->npages)
		return -EINVAL;
	p = page_of(vm, gfn);
	if (!s->array || !vm->known)
		return -ENOMEM;
	if (p->count == KPT_MAX_USERS)
		return -EOVERFLOW;
	p->count++;
	return 0;
}

static int model_remove(struct vm *vm, struct slot *s, u64 gfn)
{
	struct page *p;

	if (!s || gfn < s->base || gfn - s->base >= s->npages)
		return -EINVAL;
	p = page_of(vm, gfn);
	if (!p->count)
		return -ENOENT;
	p->count--;
	return 0;
}

static int model_prepare(struct vm *vm, u64 gfn, u64 nr)
{
	struct slot *s = slot_of(vm, 0, gfn);

	if (!nr || gfn + nr - 1 < gfn || !s || gfn + nr > s->base + s->npages)
		return -EINVAL;
	s->array = true;
	vm->known = true;
	return 0;
}

static bool is_range(u32 op)
{
	return op == KPT_OP_ADD_RANGE || op == KPT_OP_REMOVE_RANGE;
}

/* All of it or nothing, but counters that were allocated stay. */
static int model_range(struct vm *vm, u32 op, u64 gfn, u64 nr)
{
	u64 i;

	if (!nr || gfn + nr - 1 < gfn)
		return -EINVAL;
	for (i = 0; i < nr; i++)
		if (!slot_of(vm, 0, gfn + i))
			return -EINVAL;
	if (op == KPT_OP_ADD_RANGE) {
		vm->known = true;
		for (i = 0; i < nr; i++)
			slot_of(vm, 0, gfn + i)->array = true;
		for (i = 0; i < nr; i++)
			if (page_of(vm, gfn + i)->count == KPT_MAX_USERS)
				return -EOVERFLOW;
	} else {
		for (i = 0; i < nr; i++)
			if (!page_of(vm, gfn + i)->count)
				return -ENOENT;
	}
	for (i = 0; i < nr; i++)
		page_of(vm, gfn + i)->count += op == KPT_OP_ADD_RANGE ? 1 : -1;
	return 0;
}

static int model_call(struct vm *vm, const struct kpt_call *c, u64 gfn)
{
	bool by_slot = c->op == KPT_OP_SLOT_ADD || c->op == KPT_OP_SLOT_REMOVE;
	struct slot *s = NULL;

	if (c->flags & KPT_CALL_NULL_KVM)
		return -EINVAL;
	if (by_slot && (c->flags & KPT_CALL_NULL_SLOT))
		return -EINVAL;
	if (c->mode && (by_slot || is_range(c->op) || c->op == KPT_OP_ADD_PAGE ||
			c->op == KPT_OP_REMOVE_PAGE))
		return -EINVAL;
	if (by_slot)
		s = slot_of(vm, 0, c->flags & KPT_CALL_SLOT_OF ? c->slot_gfn : gfn);

	switch (c->op) {
	case KPT_OP_ADD_PAGE:
	case KPT_OP_WRITE_ADD:
		return model_add(vm, gfn);
	case KPT_OP_REMOVE_PAGE:
	case KPT_OP_WRITE_REMOVE:
		return model_remove(vm, slot_of(vm, 0, gfn), gfn);
	case KPT_OP_PREPARE:
		return model_prepare(vm, gfn, c->nr);
	case KPT_OP_ADD_RANGE:
	case KPT_OP_REMOVE_RANGE:
		return model_range(vm, c->op, gfn, c->nr);
	case KPT_OP_SLOT_ADD:
		return model_slot_add(vm, s, gfn);
	default:
		return model_remove(vm, s, gfn);
	}
}

static u32 registered(int v, int type)
{
	u32 i, n = 0;

	for (i = 0; i < NR_NODES; i++)
		n += nodes[i].vm == v && (type < 0 || nodes[i].type == (u32)type);
	return n;
}

/* The VM's last reference may have gone with what was just done. */
static void model_put(int v)
{
	if (!vms[v].open && !registered(v, -1))
		vms[v].alive = false;
}

/* ---- comparing ---- */

/* disallow_lpage of the @level_pages around @gfn: KVM's part and ours. */
static long long lpages(struct vm *vm, u32 as, struct slot *s, u64 gfn,
			u64 level_pages)
{
	u64 first = gfn & ~(level_pages - 1), end = first + level_pages, g;
	u64 slot_end = s->base + s->npages;
	long long n = 0;

	if ((first < s->base) || (end > slot_end) ||
	    ((s->base ^ s->hva >> 12) & (level_pages - 1)))
		n = 1;
	if (as == 0)
		for (g = max(first, s->base); g < min(end, slot_end); g++)
			n += page_of(vm, g)->count;
	return n;
}

static void compare_page(int v, u32 as, u64 gfn)
{
	struct vm *vm = &vms[v];
	struct kpt_inspect in;
	struct slot *s;
	u64 i, sum = 0;

	if (!vm->open || !in_window(gfn))
		return;
	in = kpt_inspect_fd(vm->fd, as, gfn);
	s = slot_of(vm, as, gfn);
	same("has_slot", in.has_slot, !!s);
	if (s) {
		for (i = 0; !as && i < s->npages; i++)
			sum += page_of(vm, s->base + i)->count;
		same("has_array", in.has_array, s->array);
		same("the count", in.count, as ? 0 : page_of(vm, gfn)->count);
		same("the sum of the memslot", in.slot_sum, sum);
		same("slot_id", in.slot_id, SLOT_ID + (s - vm->slot[as]));
		same("slot_flags", in.slot_flags, s->flags);
		same("base_gfn", in.base_gfn, s->base);
		same("npages", in.npages, s->npages);
		same("lpage_2m", in.lpage_2m, lpages(vm, as, s, gfn, 512));
		same("lpage_1g", in.lpage_1g, lpages(vm, as, s, gfn, 512 * 512));
	}
	same("external_enabled", in.external_enabled, 0);
	same("list_empty", in.list_empty,
	     !external || !registered(v, KPT_NOTIFIER));
	same("references to the VM", in.users_count,
	     vm->own_refs + registered(v, -1));
}

static void compare_window(struct vm *vm, u32 as)
{
	struct slot *s = NULL;
	u64 i, gfn, lp2 = 0, lp1 = 0;

	kpt_pages_fd(vm->fd, as, WIN, WIN_PAGES, pages);
	for (i = 0; i < WIN_PAGES; i++) {
		struct slot *now = slot_of(vm, as, gfn = WIN + i);

		if (now && (now != s || !(gfn % 512))) {
			lp2 = lpages(vm, as, now, gfn, 512);
			lp1 = lpages(vm, as, now, gfn, 512 * 512);
		}
		s = now;
		if (!s && pages[i].flags)
			wrong("page %#lx of address space %u has a memslot", gfn, as);
		if (!s)
			continue;
		if (pages[i].flags != (KPT_PAGE_SLOT |
				       (s->array ? KPT_PAGE_ARRAY : 0)))
			wrong("page %#lx of address space %u: flags %u", gfn, as,
			      pages[i].flags);
		if (pages[i].count != (as ? 0 : vm->page[i].count))
			wrong("page %#lx of address space %u: count %u, not %u",
			      gfn, as, pages[i].count, vm->page[i].count);
		if ((u64)pages[i].lpage_2m != lp2 || (u64)pages[i].lpage_1g != lp1)
			wrong("page %#lx of address space %u: lpage %d %d, not %lu %lu",
			      gfn, as, pages[i].lpage_2m, pages[i].lpage_1g, lp2, lp1);
	}
}

static void compare_all(void)
{
	struct kpt_vm_stats st, want = {};
	struct kpt_counters c;
	int refs = 1;	/* kpt_client */
	u32 v, as, i;

	for (v = 0; v < VMS; v++) {
		struct vm *vm = &vms[v];

		for (as = 0; vm->open && as < nr_as; as++)
			compare_window(vm, as);
		if (!vm->alive || !vm->known)
			continue;
		want.rows++;
		want.events += vm->events;
		want.notifiers += registered(v, -1);
		/* all notifiers of a VM have one, and every client has one */
		refs += !!registered(v, KPT_NOTIFIER) + registered(v, KPT_CLIENT) +
			registered(v, KPT_CLIENT_MOVE);
		for (i = 0; i < WIN_PAGES; i++)
			want.pages += !!vm->page[i].count;
		for (as = 0; as < nr_as; as++)
			for (i = 0; i < SLOTS; i++)
				if (vm->slot[as][i].used && vm->slot[as][i].array)
					want.counter_bytes +=
						2 * vm->slot[as][i].npages;
	}
	/* under shadow paging memslots that are not ours have counters as well */
	if (!tdp && vms[0].known)
		want.counter_bytes +=
			2 * kpt_inspect_fd(vms[0].fd, 0, 0).npages +
			kpt_apic_bytes_fd(vms[0].fd);
	st = kpt_debugfs_vm(getpid());
	same("debugfs rows", st.rows, want.rows);
	same("debugfs pages", st.pages, want.pages);
	same("debugfs counter_bytes", st.counter_bytes, want.counter_bytes);
	same("debugfs notifiers", st.notifiers, want.notifiers);
	same("debugfs events", st.events, want.events);

	for (i = 0; i < NR_NODES; i++) {
		if (nodes[i].id < 0)
			continue;
		c = kpt_counters(kpt_dev, nodes[i].id);
		same("registered", c.registered, nodes[i].vm >= 0);
		same("writes", c.writes, nodes[i].writes);
		same("bytes", c.bytes, nodes[i].bytes);
		same("removes", c.removes, nodes[i].removes);
		same("moves", c.moves, nodes[i].moves);
		same("running", c.running, 0);
	}
	same("references to the module", kpt_mod_refs("kvm_page_track"), refs);
}

/* Every notifier of @v that @type_mask names got exactly this event, nobody else any. */
static void expect_events(int v, u32 type_mask, const struct kpt_event *want)
{
	u32 n = kpt_events(kpt_dev, got, NR_NODES + 1), i, k, expected = 0;

	for (i = 0; i < NR_NODES; i++) {
		struct node *node = &nodes[i];

		if (node->vm != v || !(type_mask & (1 << node->type)))
			continue;
		expected++;
		for (k = 0; k < n && got[k].id != node->id; k++)
			;
		if (k == n)
			wrong("notifier %d was not told", node->id);
		same("event type", got[k].type, want->type);
		same("event gpa", got[k].gpa, want->gpa);
		same("event new_gfn", got[k].new_gfn, want->new_gfn);
		same("event len", got[k].len, want->len);
		if (memcmp(got[k].data, want->data, 8))
			wrong("event data of notifier %d", node->id);
		if (want->type == KPT_EV_WRITE) {
			node->writes++;
			node->bytes += want->len;
		} else if (want->type == KPT_EV_REMOVE_REGION) {
			node->removes++;
		} else {
			node->moves++;
		}
	}
	same("number of events", n, expected);
	nr_events += n;
}

static void expect_no_events(void)
{
	same("number of events", kpt_events(kpt_dev, got, NR_NODES + 1), 0);
}

/* ---- the operations ---- */

static int pick_vm(bool open)
{
	int v, i;

	for (i = 0; i < 20; i++) {
		v = rnd(VMS);
		if (open ? vms[v].open : vms[v].alive)
			return v;
	}
	return 0;
}

static u64 pick_gfn(struct vm *vm)
{
	static const u64 odd[] = {
		0, 1, 0xfffff, 1ULL << 36, 1ULL << 40, 1ULL << 51, 1ULL << 52,
		1ULL << 63, ~0ULL, ~0ULL - 1, ~0ULL >> 12, (1ULL << 52) | WIN,
	};
	struct slot *s;
	u64 gfn;
	int i;

	if (one_in(30)) {
		gfn = odd[rnd(ARRAY_SIZE(odd))];
		/* the library's memory is not in the model */
		return vm == &vms[0] && gfn < 0x10000 ? ~0ULL : gfn;
	}
	if (one_in(12))
		return WIN + rnd(WIN_PAGES);
	for (i = 0; i < 8; i++) {
		s = &vm->slot[one_in(20) ? nr_as - 1 : 0][rnd(SLOTS)];
		if (!s->used)
			continue;
		switch (rnd(8)) {
		case 0:
			return s->base - 1;
		case 1:
			return s->base + s->npages;
		case 2:
			return s->base + s->npages - 1;
		case 3:
			return s->base + rnd(s->npages);
		default:
			return s->base + rnd(min(s->npages, (u64)4));
		}
	}
	return WIN + rnd(WIN_PAGES);
}

static void do_call(void)
{
	static const u32 modes[] = { 1, 2, 0x80000000, 0xffffffff };
	struct kpt_call c = {};
	int dev = kpt_dev, r, want = 0, v = pick_vm(false), i;
	struct vm *vm = &vms[v];
	u64 done = 0, times;

	c.op = rnd(KPT_OP_REMOVE_RANGE + 1);
	c.gfn = pick_gfn(vm);
	c.vm_fd = vm->fd;
	if (!vm->open || one_in(10)) {
		/* through a notifier of it */
		for (i = rnd(NR_NODES); i < NR_NODES && nodes[i].vm != v; i++)
			;
		if (i == NR_NODES) {
			if (!vm->open)
				return do_call();
		} else {
			c.flags |= KPT_CALL_BY_NODE;
			c.vm_fd = nodes[i].id;
		}
	}
	if (c.op == KPT_OP_PREPARE || is_range(c.op)) {
		c.nr = one_in(10) ? pick_gfn(vm) : rnd(9);
		if (is_range(c.op) && one_in(4))
			c.nr = rnd(300);
		if (is_range(c.op) && one_in(20))
			c.mode = modes[rnd(ARRAY_SIZE(modes))];
	} else {
		if (one_in(8)) {
			c.nr = 2 + rnd(30);
			c.flags |= one_in(2) ? KPT_CALL_STEP : 0;
		}
		if (one_in(20))
			c.mode = modes[rnd(ARRAY_SIZE(modes))];
	}
	if (one_in(40))
		c.flags |= KPT_CALL_NULL_KVM;
	if (one_in(40))
		c.flags |= KPT_CALL_NULL_SLOT;
	if (one_in(8)) {
		c.flags |= KPT_CALL_SLOT_OF;
		c.slot_gfn = pick_gfn(vm);
	}
	if ((c.op == KPT_OP_WRITE_ADD || c.op == KPT_OP_WRITE_REMOVE) && one_in(2) &&
	    !(c.flags & KPT_CALL_BY_NODE))
		dev = kpt_stock;
	/* to the limit and beyond, now and then */
	if (one_in(6000) && c.op != KPT_OP_PREPARE && !is_range(c.op)) {
		c.nr = KPT_MAX_USERS + 1;
		c.flags &= ~KPT_CALL_STEP;
	}

	note("call op %u vm %d gfn %#llx nr %lld slot_gfn %#llx mode %u flags %#x%s",
	     c.op, v, c.gfn, c.nr, c.slot_gfn, c.mode, c.flags,
	     dev == kpt_dev ? "" : " stock");
	times = c.op == KPT_OP_PREPARE || is_range(c.op) || !c.nr ? 1 : c.nr;
	for (done = 0; done < times; done++) {
		want = model_call(vm, &c, c.gfn +
				  (c.flags & KPT_CALL_STEP ? done : 0));
		if (want)
			break;
	}
	r = kpt_api(dev, &c);
	result(r, want);
	same("calls done", c.done, done);
	compare_page(v, 0, c.gfn);
	if (c.flags & KPT_CALL_STEP || is_range(c.op))
		compare_page(v, 0, c.gfn + c.nr - 1);
}

static int register_in_child(struct kpt_register *reg)
{
	int status, r;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (!pid) {
		r = kpt_reg_full(kpt_dev, reg);
		_exit(r < 0 ? -r : 0);
	}
	TEST_ASSERT(pid > 0 && waitpid(pid, &status, 0) == pid &&
		    WIFEXITED(status), "child");
	return -WEXITSTATUS(status);
}

static void do_register(void)
{
	int v = pick_vm(true), r, want = 0;
	struct node *node = &nodes[rnd(NR_NODES)];
	struct kpt_register reg = {
		.vm_fd = vms[v].fd, .type = node->type, .flags = KPT_REG_RECORD,
		.id = node->id,
	};
	bool foreign = one_in(100);

	if (one_in(20))
		reg.flags |= KPT_REG_NULL_KVM;
	if (one_in(20))
		reg.flags |= KPT_REG_NULL_NODE;
	note("register type %u id %d vm %d flags %#x%s", reg.type, reg.id, v,
	     reg.flags, foreign ? " from another process" : "");

	if (reg.flags & KPT_REG_NULL_KVM) {
		want = reg.type == KPT_NOTIFIER ? -ESRCH : -EINVAL;
	} else if (foreign) {
		want = -ESRCH;
	} else if (reg.flags & KPT_REG_NULL_NODE) {
		want = -EINVAL;
	} else {
		if (node->vm >= 0)
			want = -EEXIST;
		else
			vms[v].known = true;
	}
	r = foreign ? register_in_child(&reg) : kpt_reg_full(kpt_dev, &reg);
	result(r > 0 ? 0 : r, want);
	if (!want) {
		if (node->id >= 0)
			same("the id", r, node->id);
		node->id = r;
		node->vm = v;
	}
	compare_page(v, 0, WIN);
}

static void do_unregister(void)
{
	struct node *node = &nodes[rnd(NR_NODES)];
	struct kpt_unregister u = { .id = node->id };
	int v = node->vm, want = 0;

	if (node->id < 0)
		return do_call();
	if (v >= 0 && one_in(8))
		u.flags |= KPT_UNREG_NULL_KVM;
	if (v >= 0 && one_in(8))
		u.flags |= KPT_UNREG_NULL_NODE;
	note("unregister id %d flags %#x", u.id, u.flags);
	if (v < 0)
		want = -ENXIO;
	result(ioctl(kpt_dev, KPT_UNREGISTER, &u) ? -errno : 0, want);
	if (v >= 0 && !u.flags) {
		node->vm = -1;
		model_put(v);
	}
	if (v >= 0)
		compare_page(v, 0, WIN);
}

static int set_region(struct vm *vm, u32 as, u32 i, const struct slot *s,
		      u64 npages)
{
	struct kvm_userspace_memory_region mr = {
		.slot = as << 16 | (SLOT_ID + i), .flags = s->flags,
		.guest_phys_addr = s->base << 12, .memory_size = npages << 12,
		.userspace_addr = s->hva,
	};

	return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &mr) ? -errno : 0;
}

static bool overlaps(struct vm *vm, u32 as, int except, u64 base, u64 npages)
{
	struct slot *s;
	int i;

	for (i = 0; i < SLOTS; i++) {
		s = &vm->slot[as][i];
		if (i != except && s->used && base < s->base + s->npages &&
		    s->base < base + npages)
			return true;
	}
	return false;
}

static u64 random_place(u64 npages)
{
	u64 room = WIN_PAGES - npages + 1;

	return WIN + (one_in(3) ? rnd(room) / 512 * 512 : rnd(room));
}

static void create_slot(int v, u32 as, u32 i)
{
	static const u32 sizes[] = { 1, 2, 3, 7, 16, 31, 64, 200, 520 };
	struct vm *vm = &vms[v];
	struct slot s = { .used = true, .array = !tdp };
	int want = 0, r;

	s.npages = sizes[rnd(one_in(4) ? ARRAY_SIZE(sizes) : 6)];
	s.base = random_place(s.npages);
	s.hva = (u64)memory + (s.base - WIN) * 4096 + (one_in(2) ? 0 : 4096);
	s.flags = one_in(3) ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	note("create vm %d slot %u/%u at %#lx, %lu pages, flags %u", v, as, i,
	     s.base, s.npages, s.flags);
	if (overlaps(vm, as, i, s.base, s.npages))
		want = -EEXIST;
	r = set_region(vm, as, i, &s, s.npages);
	result(r, want);
	if (!want)
		vm->slot[as][i] = s;
	expect_no_events();
	compare_page(v, as, s.base);
}

static void delete_slot(int v, u32 as, u32 i)
{
	struct slot *s = &vms[v].slot[as][i];
	struct kpt_event ev = { .type = KPT_EV_REMOVE_REGION };
	u64 k;

	note("delete vm %d slot %u/%u", v, as, i);
	result(set_region(&vms[v], as, i, s, 0), 0);
	ev.gpa = s->base;
	ev.len = s->npages;
	/* address space 1 has no counts: only upstream's notifiers are told */
	expect_events(v, as ? 1 << KPT_NOTIFIER : 7, &ev);
	s->used = false;
	for (k = 0; !as && k < s->npages; k++)
		*page_of(&vms[v], s->base + k) = (struct page) {};
	compare_page(v, as, s->base);
}

static void change_slot(int v, u32 as, u32 i)
{
	struct slot *s = &vms[v].slot[as][i], to = *s;
	int want = 0;

	switch (rnd(6)) {
	case 0:
		to.npages++;
		want = -EINVAL;
		break;
	case 1:
		to.hva += 4096;
		want = -EINVAL;
		break;
	case 2:
		break;
	default:
		to.flags ^= KVM_MEM_LOG_DIRTY_PAGES;
	}
	note("change vm %d slot %u/%u: %lu pages, flags %u, at %#lx", v, as, i,
	     to.npages, to.flags, to.hva);
	result(set_region(&vms[v], as, i, &to, to.npages), want);
	if (!want)
		*s = to;
	expect_no_events();
	compare_page(v, as, s->base + rnd(s->npages));
}

static void move_slot(int v, u32 as, u32 i)
{
	struct vm *vm = &vms[v];
	struct slot *s = &vm->slot[as][i], to = *s;
	struct kpt_event ev = { .type = KPT_EV_MOVE_REGION };
	struct page *carried;
	int want = 0;
	u64 k;

	if (one_in(3)) {
		/* not far */
		to.base = s->base + rnd(5) - 2;
		if (to.base < WIN || to.base + to.npages > WIN + WIN_PAGES)
			to.base = s->base;
	} else {
		to.base = random_place(to.npages);
	}
	if (to.base == s->base)
		return change_slot(v, as, i);
	if (one_in(4))
		to.flags ^= KVM_MEM_LOG_DIRTY_PAGES;
	note("move vm %d slot %u/%u of %lu pages from %#lx to %#lx, flags %u", v,
	     as, i, s->npages, s->base, to.base, to.flags);

	if (overlaps(vm, as, i, to.base, to.npages))
		want = -EEXIST;
	else if (registered(v, KPT_NOTIFIER))
		want = external ? -EINVAL : -ENOMEM;
	else if (registered(v, KPT_CLIENT))
		want = -ENOMEM;
	result(set_region(vm, as, i, &to, to.npages), want);
	if (want) {
		expect_no_events();
		compare_page(v, as, s->base);
		return;
	}
	ev.gpa = s->base;
	ev.new_gfn = to.base;
	ev.len = s->npages;
	if (as)
		expect_no_events();
	else
		expect_events(v, 1 << KPT_CLIENT_MOVE, &ev);
	if (!as) {
		carried = calloc(s->npages, sizeof(*carried));
		for (k = 0; k < s->npages; k++) {
			carried[k] = *page_of(vm, s->base + k);
			*page_of(vm, s->base + k) = (struct page) {};
		}
		for (k = 0; k < s->npages; k++)
			*page_of(vm, to.base + k) = carried[k];
		free(carried);
	}
	k = s->base;
	*s = to;
	compare_page(v, as, k);
	compare_page(v, as, s->base);
	compare_page(v, as, s->base + s->npages - 1);
}

static void do_slot(void)
{
	int v = pick_vm(true);
	u32 as = nr_as > 1 && one_in(5), i = rnd(SLOTS);
	struct slot *s = &vms[v].slot[as][i];

	if (!s->used) {
		if (one_in(20)) {
			note("delete vm %d slot %u/%u that is not", v, as, i);
			result(set_region(&vms[v], as, i, s, 0), -EINVAL);
			return;
		}
		return create_slot(v, as, i);
	}
	switch (rnd(10)) {
	case 0:
	case 1:
		return delete_slot(v, as, i);
	case 2:
	case 3:
	case 4:
		return change_slot(v, as, i);
	default:
		return move_slot(v, as, i);
	}
}

static void open_vm(int v)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct vm *vm = &vms[v];

	memset(vm, 0, sizeof(*vm));
	vm->fd = ioctl(kvm, KVM_CREATE_VM, 0);
	TEST_ASSERT(vm->fd >= 0, "KVM_CREATE_VM: %s", strerror(errno));
	close(kvm);
	vm->alive = vm->open = true;
	vm->own_refs = 1;
	generations++;
}

/* VM 0 stays, the others come and go. */
static void do_vm(void)
{
	int v = 1 + rnd(VMS - 1);

	if (vms[v].open) {
		note("close vm %d", v);
		close(vms[v].fd);
		vms[v].open = false;
		model_put(v);
		expect_no_events();
	} else if (!vms[v].alive) {
		note("make vm %d", v);
		open_vm(v);
		compare_page(v, 0, WIN);
	} else {
		/* what keeps it goes */
		int i;

		for (i = 0; i < NR_NODES; i++) {
			if (nodes[i].vm != v)
				continue;
			note("last unregister id %d of vm %d", nodes[i].id, v);
			result(kpt_unreg(kpt_dev, nodes[i].id), 0);
			nodes[i].vm = -1;
		}
		model_put(v);
	}
}

static struct {
	u64 gva, value;
} cmd;

static void guest_code(void)
{
	for (;;) {
		WRITE_ONCE(*(u64 *)READ_ONCE(cmd.gva), READ_ONCE(cmd.value));
		GUEST_SYNC(1);
	}
}

static void do_guest_write(void)
{
	struct kpt_event ev = { .type = KPT_EV_WRITE, .len = 8 };
	u64 gfn = pick_gfn(&vms[0]), off = rnd(512) * 8;
	struct slot *s = in_window(gfn) ? slot_of(&vms[0], 0, gfn) : NULL;
	volatile u64 *mem;

	if (!s)
		return do_call();
	cmd.gva = KPT_GVA + ((gfn - WIN) << 12) + off;
	cmd.value = rng;
	note("guest writes %#lx to %#lx", cmd.value, (gfn << 12) + off);
	mem = (u64 *)(s->hva + ((gfn - s->base) << 12) + off);
	sync_global_to_guest(vm0, cmd);
	kpt_run_to(vcpu0, 1);
	if (*mem != cmd.value)
		wrong("memory holds %#lx", *mem);
	guest_writes++;
	if (!page_of(&vms[0], gfn)->count)
		return expect_no_events();
	ev.gpa = (gfn << 12) + off;
	memcpy(ev.data, &cmd.value, 8);
	expect_events(0, 7, &ev);
	vms[0].events += registered(0, -1) > registered(0, KPT_NOTIFIER);
}

static void setup(void)
{
	int i;

	vms = calloc(VMS, sizeof(*vms));
	nodes = calloc(NR_NODES, sizeof(*nodes));
	history = calloc(HISTORY, sizeof(*history));
	got = calloc(NR_NODES + 1, sizeof(*got));
	pages = calloc(WIN_PAGES, sizeof(*pages));
	/* aligned as the window is, so that KVM may use large pages */
	memory = mmap(NULL, 8 << 20, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(memory != MAP_FAILED, "no memory");
	memory = (u8 *)(((u64)memory + 0x1fffff) & ~0x1fffffULL);
	tdp = kpt_tdp();

	vm0 = __vm_create_with_one_vcpu(&vcpu0, WIN_PAGES, guest_code);
	virt_map(vm0, KPT_GVA, WIN << 12, WIN_PAGES);
	vms[0].fd = vm0->fd;
	vms[0].alive = vms[0].open = true;
	nr_as = kpt_inspect_fd(vm0->fd, 0, 0).nr_as;
	vms[0].own_refs = kpt_inspect_fd(vm0->fd, 0, 0).users_count;
	external = kpt_kvm_tracks();
	for (i = 1; i < VMS; i++)
		open_vm(i);
	for (i = 0; i < NR_NODES; i++) {
		nodes[i].id = -1;
		nodes[i].vm = -1;
		nodes[i].type = i % 3;
	}
}

/* Everything goes, and nothing is left. */
static void finish(void)
{
	u64 v, i, as;

	for (v = 0; v < VMS; v++) {
		for (as = 0; vms[v].open && as < nr_as; as++)
			for (i = 0; i < SLOTS; i++)
				if (vms[v].slot[as][i].used)
					delete_slot(v, as, i);
		if (v && vms[v].open) {
			close(vms[v].fd);
			vms[v].open = false;
			model_put(v);
		}
	}
	compare_all();
	for (i = 0; i < NR_NODES; i++) {
		if (nodes[i].vm < 0)
			continue;
		v = nodes[i].vm;
		KPT_OK(kpt_unreg(kpt_dev, nodes[i].id));
		nodes[i].vm = -1;
		model_put(v);
	}
	compare_all();
	kvm_vm_free(vm0);
	KPT_EQ(kpt_debugfs_vm(getpid()).rows, 0);
}

static void fuzz(void)
{
	printf("# KPT_FUZZ_SEED=%lu KPT_FUZZ_OPS=%lu\n", seed, nr_ops);
	rng = seed * 0x9e3779b97f4a7c15ULL | 1;
	setup();
	for (op_nr = 0; op_nr < nr_ops; op_nr++) {
		switch (rnd(100)) {
		case 0 ... 76:
			do_call();
			break;
		case 77 ... 86:
			do_slot();
			break;
		case 87 ... 91:
			do_guest_write();
			break;
		case 92 ... 95:
			do_register();
			break;
		case 96 ... 98:
			do_unregister();
			break;
		default:
			if (one_in(4))
				do_vm();
			else
				do_call();
		}
		if (op_nr % FULL == FULL - 1)
			compare_all();
		if (op_nr % 10000 == 9999)
			printf("# %lu operations\n", op_nr + 1);
	}
	compare_all();
	finish();
	printf("# %lu operations: %lu done, %lu refused; %lu guest writes, %lu events, %lu VMs\n",
	       nr_ops, succeeded, refused, guest_writes, nr_events, generations + 1);
	TEST_ASSERT(nr_ops < 1000 || (succeeded > nr_ops / 4 && refused > nr_ops / 10),
		    "the operations are lopsided");
}

int main(int argc, char **argv)
{
	static struct kpt_test tests[] = {
		{ "random calls do what the model says", fuzz, 60 },
	};

	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		seed = getpid();
	seed >>= 32;
	nr_ops = argc > 1 ? strtoull(argv[1], NULL, 0) :
			    kpt_env("KPT_FUZZ_OPS", 10000);
	seed = argc > 2 ? strtoull(argv[2], NULL, 0) :
			  kpt_env("KPT_FUZZ_SEED", seed);
	tests[0].timeout += nr_ops / 20;
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_NEED_CLIENT);
}
