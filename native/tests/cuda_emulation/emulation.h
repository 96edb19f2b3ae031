/* emulation.h - the threads of a block as fibers, for cuda_runtime.h in this folder and for ptx.h; the type dim3 comes
 * from either's header. */
#ifndef LQ_EMULATED_EMULATION_H
#define LQ_EMULATED_EMULATION_H

#include <stddef.h>
#include <stdint.h>

/* What a thread knows. */
struct lq_emulated_thread {
    dim3 index, block, block_dim, grid;
    unsigned char *shared;
    size_t shared_bytes;
};
extern thread_local lq_emulated_thread *lq_emulated_self;

/* Ends the process: a defect of a kernel. */
[[noreturn]] void lq_emulated_fail(const char *what);

void lq_emulated_sync_block();
/* Every lane of the warp that still runs gives a value; returns all 32, as they are until the exchange after next. */
const uint64_t *lq_emulated_gather(uint64_t value);
unsigned lq_emulated_lane();
bool lq_emulated_tensor_cores(); /* whether the device that runs this kernel has any */
/* function(context) in every thread; shared_bytes of shared memory. */
void lq_emulated_launch(dim3 grid, dim3 block, size_t shared_bytes, void (*function)(const void *),
                        const void *context);
/* What each of the 65536 halves stands for. */
extern const float *const lq_emulated_halves;
/* Compute capability of the device, as in 80. */
int lq_emulated_capability();
/* function(context) once, as a library's kernel: it may touch device memory. */
void lq_emulated_library_call(void (*function)(const void *), const void *context);

#endif
