/* formats.cuh - finds a type number's decoder, by formats/formats.def. A type without a decoder does not compile. */
#ifndef LQ_CUDA_FORMATS_CUH
#define LQ_CUDA_FORMATS_CUH

#include "backends/cuda/fmt_iq.cuh"
#include "backends/cuda/fmt_k.cuh"
#include "backends/cuda/fmt_plain.cuh"
#include "backends/cuda/fmt_q.cuh"

template <class F, bool IS_PLAIN> struct format_kind {
    template <class J> static void run(J &job) { job.template units<F>(); }
};
template <class F> struct format_kind<F, true> {
    template <class J> static void run(J &job) { job.template items<F>(); }
};

/* Calls job.units<F>() for types that are decoded in units, job.items<F>() for F32, F16 and BF16. */
template <class J> static void with_format(int32_t type, J &job) {
    switch (type) {
#define LQ_FORMAT(id, name, number, block_len, block_bytes)                                                            \
    case number:                                                                                                       \
        format_kind<fmt_##id, block_len == 1>::run(job);                                                               \
        break;
#include "formats/formats.def"
#undef LQ_FORMAT
    default:
        break;
    }
}

#endif
