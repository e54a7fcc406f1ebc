/* SPDX-License-Identifier: GPL-2.0-only */
/* What the example gives to the code that knows the VM. */
#ifndef _KPT_EXAMPLE_H
#define _KPT_EXAMPLE_H

#include <kvm_page_track.h>

int example_watch(struct kvm *kvm, gfn_t gfn);
void example_unwatch(struct kvm *kvm, gfn_t gfn);

#endif /* _KPT_EXAMPLE_H */
