/* iq_values.h - the values that four-bit codes stand for in types whose steps are uneven. */
#ifndef LQ_FORMATS_IQ_VALUES_H
#define LQ_FORMATS_IQ_VALUES_H

#include <stdint.h>

/* Values of IQ4_NL and IQ4_XS (ggml's quants, as the gguf package lists them). */
static const int8_t lq_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* E2M1 numbers, doubled (OCP Microscaling Formats 1.0, section 5.3.3); scales are halved in turn. */
static const int8_t lq_e2m1_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#endif
