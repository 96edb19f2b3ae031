/* test_measure.c - tests the measured bounds: products are really computed, the same at every level, and speeds are
 * plausible. */
#include "backends/cpu/kernels/kernels.h"
#include "check.h"

static void check_peak(const lq_kernels *k) {
    unsigned long long seed = 1;
    uint8_t u[64];
    int8_t s[64];
    for (uint32_t n_rounds = 0; n_rounds < 40; n_rounds++) {
        uint32_t dot = 0;
        for (int i = 0; i < 64; i++) {
            u[i] = (uint8_t)(check_random(&seed) % 64);
            s[i] = (int8_t)((int)(check_random(&seed) % 255) - 127);
            dot += (uint32_t)(u[i] * s[i]);
        }
        uint32_t sum = k->int8_peak(u, s, n_rounds), expected = LQ_PEAK_DOTS * n_rounds * dot;
        CHECK_MSG(sum == expected, "%s: %u rounds add up to %u, not %u", k->level, n_rounds, sum, expected);
    }
}

int main(void) {
    size_t n_levels;
    lq_kernels kernels;
    const lq_cpu_level_desc *levels = lq_cpu_level_table(&n_levels);
    for (size_t i = 0; i < n_levels; i++) {
        if (!levels[i].supported()) continue;
        CHECK_STATUS(lq_kernels_select(&kernels, levels[i].name), LQ_OK);
        check_peak(&kernels);
    }
    double bytes_per_s = 0.0, products_per_s = 0.0, none = -1.0;
    CHECK_STATUS(lq_measure_read(1, 4 << 20, &bytes_per_s), LQ_OK);
    CHECK_MSG(bytes_per_s > 1e7 && bytes_per_s < 1e13, "reads %g bytes/s", bytes_per_s);
    CHECK_STATUS(lq_measure_int8(1, &products_per_s), LQ_OK);
    CHECK_MSG(products_per_s > 1e6 && products_per_s < 1e13, "%g products/s", products_per_s);
    CHECK_STATUS(lq_measure_read(3, (4 << 20) + 7, &bytes_per_s), LQ_OK); /* threads read parts of unequal sizes */
    CHECK_MSG(bytes_per_s > 1e7 && bytes_per_s < 1e13, "reads %g bytes/s with 3 threads", bytes_per_s);
    CHECK_STATUS(lq_measure_read(1, 100, &none), LQ_E_ARG);
    CHECK_STATUS(lq_measure_read(1, (uint64_t)1 << 60, &none), LQ_E_MEMORY);
    CHECK_STATUS(lq_measure_read(2000, 4 << 20, &none), LQ_E_ARG);
    CHECK_STATUS(lq_measure_read(1, 4 << 20, NULL), LQ_E_ARG);
    CHECK_STATUS(lq_measure_int8(2000, &none), LQ_E_ARG);
    CHECK_STATUS(lq_measure_int8(1, NULL), LQ_E_ARG);
    CHECK_MSG(none == -1.0, "a failed call wrote %g", none);
    return check_report("test_measure");
}
