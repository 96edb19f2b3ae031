/* emulation.h - runs the threads of a block as fibers, for cuda_runtime.h in this folder and for ptx.h. The header that
 * includes it defines dim3 first. */
#ifndef LQ_EMULATED_EMULATION_H
#define LQ_EMULATED_EMULATION_H

#include <stddef.h>
#include <stdint.h>

/* A thread's special registers and shared memory. */
struct lq_emulated_thread {
    dim3 index, block, block_dim, grid;
    unsigned char *shared;
    size_t shared_bytes;
};
extern thread_local lq_emulated_thread *lq_emulated_self;

/* Reports a defect of a kernel and ends the process. */
[[noreturn]] void lq_emulated_fail(const char *what);

void lq_emulated_sync_block();
/* Exchanges a value between the warp's running lanes. Returns all 32, valid until the exchange after the next one. */
const uint64_t *lq_emulated_gather(uint64_t value);
unsigned lq_emulated_lane();
bool lq_emulated_tensor_cores(); /* true if the device of this kernel has some */
/* Runs function(context) in every thread of the grid, with shared_bytes of shared memory for each block. */
void lq_emulated_launch(dim3 grid, dim3 block, size_t shared_bytes, void (*function)(const void *),
                        const void *context);
/* The float value of each of the 65536 halves. */
extern const float *const lq_emulated_halves;
/* The device's compute capability, in tens: 80 is 8.0. */
int lq_emulated_capability();
/* Runs function(context) once, as a kernel of a library such as cuBLAS: it may access device memory. */
void lq_emulated_library_call(void (*function)(const void *), const void *context);

#endif
