/* strip_int16.h - how many steps a sum of 16 bits holds, for strip_tile.h without VNNI: a step adds two products of a
 * code and at most 127 to each word. Codes up to 15 would fit 8 steps; 4 were faster. Signed bytes go to 32 bits at
 * once. */
#ifndef LQ_CPU_STRIP_INT16_H
#define LQ_CPU_STRIP_INT16_H

#define LQ_STRIP_SIGNED 1
#define LQ_SUM_STEPS(max) ((max) <= 31 ? 4 : 2)

#endif
