/* peak.h - as many 8-bit products as a vector width can do. The including file has chosen the width. */
#ifndef LQ_CPU_PEAK_H
#define LQ_CPU_PEAK_H

#include "backends/cpu/kernels/kernels.h"

#define N_VECTORS (16 / V_LANES)                   /* vectors that are 64 bytes */
#define N_SUMS (N_VECTORS == 1 ? LQ_PEAK_DOTS : 8) /* at most half of the registers; rounds are multiples of it */

static uint32_t int8_peak(const uint8_t *u, const int8_t *s, size_t n_rounds) {
    vint bytes_u[N_VECTORS], bytes_s[N_VECTORS], sums[N_SUMS];
    for (int i = 0; i < N_VECTORS; i++) {
        bytes_u[i] = vi_load(u + 4 * V_LANES * i);
        bytes_s[i] = vi_load(s + 4 * V_LANES * i);
    }
    LQ_UNROLL
    for (int i = 0; i < N_SUMS; i++) sums[i] = vi_set1(0);
    for (size_t round = 0; round < n_rounds; round++) {
        LQ_UNROLL
        for (int i = 0; i < N_VECTORS * LQ_PEAK_DOTS; i++) {
            vint *at = &bytes_u[i % N_VECTORS];
            __asm__ volatile("" : "+v"(*at)); /* may have changed: no product is taken out of the loop */
            sums[i % N_SUMS] = vi_add_dot(sums[i % N_SUMS], *at, bytes_s[i % N_VECTORS]);
        }
    }
    uint32_t lanes[V_LANES], sum = 0;
    for (int i = 1; i < N_SUMS; i++) sums[0] = vi_add(sums[0], sums[i]);
    vi_store(lanes, sums[0]);
    for (int i = 0; i < V_LANES; i++) sum += lanes[i];
    return sum;
}

#endif
