/* attn.h - all of attention but f16 cells (attn_f16.h). The including file has chosen a vector width. */
#ifndef LQ_CPU_ATTN_H
#define LQ_CPU_ATTN_H

#include "backends/cpu/kernels/attn_cells.h"
#include "backends/cpu/kernels/attn_page.h"
#include "backends/cpu/kernels/softmax.h"

/* These need the ones above. */
#include "backends/cpu/kernels/attn_many.h"

#ifdef V_HAS_DOT_INT16
#include "backends/cpu/kernels/attn_many_int16.h"
#else
#include "backends/cpu/kernels/attn_many_float.h"
#endif

static void init_attn(lq_kernels *kernels) {
    kernels->softmax_step = softmax_step;
    init_cells(kernels);
    init_pages(kernels);
    init_many(kernels);
    init_many_cells(kernels);
}

#endif
