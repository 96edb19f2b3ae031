/* ranked.h - the largest of many numbers, as devices select them and samplers read them. */
#ifndef LQ_CORE_RANKED_H
#define LQ_CORE_RANKED_H

#include <stdint.h>

/* A number and its index among the others. */
typedef struct lq_ranked {
    float value;
    uint32_t index;
} lq_ranked;

#define LQ_BEST_MOST 256

#endif
