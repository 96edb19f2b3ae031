/* strip_vnni.h - sums for strip_tile.h with VNNI: 32 bits all along, for codes up to 255. The including file has
 * add_dot(). */
#ifndef LQ_CPU_STRIP_VNNI_H
#define LQ_CPU_STRIP_VNNI_H

#define LQ_STRIP_SIGNED 0
#define LQ_SUM_STEPS(max) 8

LQ_INLINE vint sum_step(vint sum, vint u, vint s) { return add_dot(sum, u, s); }
LQ_INLINE vint sum_total(vint sum) { return sum; }
LQ_INLINE vint sum_signed(vint sum, vint w, vint s) { return add_dot(sum, w, s); }

#endif
