/* runtime.cpp - the functions that nvcc's host code calls to register and start kernels. They start the C++ kernels
 * that ptx_to_cpp.py made of its PTX. With emulation.cpp this replaces CUDA's runtime library. */
#include <cuda_runtime.h>
#include <stdio.h>
#include <string.h>

#include <map>
#include <string>

#include "../emulation.h"
#include "ptx.h"

extern const lq_ptx_kernel *const lq_ptx_tables[]; /* each ends with a kernel without a name; the last one is NULL */

/* Kernels by host function. Static constructors register them, so the map is created on first use. */
static std::map<const void *, const lq_ptx_kernel *> &kernels() {
    static std::map<const void *, const lq_ptx_kernel *> all;
    return all;
}

static const lq_ptx_kernel *find(const void *function) {
    auto found = kernels().find(function);
    if (found == kernels().end()) lq_emulated_fail("a kernel that was not registered");
    return found->second;
}

static struct {
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
} thread_local pushed; /* set by <<<...>>>, read by the kernel's stub */

struct started {
    const lq_ptx_kernel *kernel;
    void *const *parameters;
};

extern "C" {
void **__cudaRegisterFatBinary(void *) {
    static void *handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
char __cudaInitModule(void **) { return 0; }

void __cudaRegisterFunction(void **, const char *function, char *, const char *name, int, uint3 *, uint3 *, dim3 *,
                            dim3 *, int *) {
    for (const lq_ptx_kernel *const *table = lq_ptx_tables; *table != NULL; table++)
        for (const lq_ptx_kernel *k = *table; k->name != NULL; k++)
            if (strcmp(k->name, name) == 0) {
                kernels()[function] = k;
                return;
            }
    lq_emulated_fail((std::string("no PTX of ") + name).c_str());
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, struct CUstream_st *stream) {
    pushed = {grid, block, shared_bytes, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream) {
    *grid = pushed.grid;
    *block = pushed.block;
    *shared_bytes = pushed.shared_bytes;
    *(cudaStream_t *)stream = pushed.stream;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                             cudaStream_t) {
    started s = {find(function), arguments};
    if (s.kernel->max_threads != 0 && block.x * block.y * block.z > s.kernel->max_threads)
        lq_emulated_fail("more threads than a kernel was compiled for");
    if (s.kernel->parameter_bytes > 4096) lq_emulated_fail("more than 4 KiB of parameters");
    if (grid.y > 65535 || grid.z > 65535) lq_emulated_fail("more than 65535 blocks in y or z");
    lq_emulated_launch(
        grid, block, s.kernel->shared_bytes + shared_bytes,
        [](const void *context) {
            const started &s = *(const started *)context;
            s.kernel->run(s.parameters);
        },
        &s);
    return cudaSuccess;
}

#if CUDART_VERSION >= 12010 /* newer stubs ask for a handle first; here it is the host function */
cudaError_t __cudaGetKernel(cudaKernel_t *handle, const void *function) {
    *handle = (cudaKernel_t)(uintptr_t)function;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t handle, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                               cudaStream_t stream) {
    return cudaLaunchKernel((const void *)(uintptr_t)handle, grid, block, arguments, shared_bytes, stream);
}
#endif

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->ptxVersion = LQ_CUDA_PTX_ARCH;
    attributes->sharedSizeBytes = find(function)->shared_bytes;
    return cudaSuccess;
}
}
