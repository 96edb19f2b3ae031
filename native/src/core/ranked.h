/* ranked.h - the best of many numbers, as devices find them and samplers look at them. */
#ifndef LQ_CORE_RANKED_H
#define LQ_CORE_RANKED_H

#include <stdint.h>

/* A number and where it was among others. */
typedef struct lq_ranked {
    float value;
    uint32_t index;
} lq_ranked;

#define LQ_BEST_MOST 256

#endif
