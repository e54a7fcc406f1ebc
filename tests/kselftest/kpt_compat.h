/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where the selftest libraries of the supported kernels differ.  What is there is
 * asked of the library's own headers, by the types of its functions.
 */
#ifndef KPT_COMPAT_H
#define KPT_COMPAT_H

#include "svm_util.h"

/* So that the compiler does not look at the call that is not made below. */
static inline void *kpt_function(void *f)
{
	return f;
}

/*
 * generic_svm_setup(): some take the top of L2's stack as well, in others it comes
 * with @svm.  (Of the two calls one is made, that of the function's own type.)
 */
#define kpt_svm_setup(svm, code, stack)						\
	__builtin_choose_expr(							\
		__builtin_types_compatible_p(typeof(generic_svm_setup),		\
			void (struct svm_test_data *, void *)),			\
		((void (*)(struct svm_test_data *, void *))			\
		 kpt_function(generic_svm_setup))(svm, code),			\
		((void (*)(struct svm_test_data *, void *, void *))		\
		 kpt_function(generic_svm_setup))(svm, code, stack))

#endif /* KPT_COMPAT_H */
